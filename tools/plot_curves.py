"""Draw train and test error over epochs: ``python tools/plot_curves.py work_dirs/bl work_dirs/sd``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import run_main
from transfer.plot_curves import plot_errors, read_runs


def main() -> None:
    """Draw, and print the files' names."""
    parser = argparse.ArgumentParser(description='Draw Figure 1 of the paper for any trainings.')
    parser.add_argument('runs', nargs='+', metavar='RUN', help='work dir of a training, or NAME=WORK_DIR')
    parser.add_argument('--out', default='work_dirs/curves', help='path without .png and .svg (%(default)s)')
    parser.add_argument('--max-error', type=float, help='upper end of the error axis, in percent')
    args = parser.parse_args()
    for path in plot_errors(read_runs(args.runs), args.out, args.max_error):
        print(path)


if __name__ == '__main__':
    run_main(main)
