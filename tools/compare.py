"""Compare trainings by their own logs: ``python tools/compare.py BL=work_dirs/a SD=work_dirs/b``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import run_main
from transfer.compare import FORMATS, compare_runs, group_runs, write


def main(argv: list[str] | None = None) -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(
        description='Means of groups of runs of mmdet, mmseg or any other mmengine project, and how sure '
        'their differences to the first group are.'
    )
    parser.add_argument(
        'runs',
        nargs='+',
        metavar='[NAME=]WORK_DIR',
        help='a work dir, or a folder of seed<k> work dirs; several under one name are one group',
    )
    parser.add_argument('--metric', nargs='+', help='names as logged; default: all that every run has')
    parser.add_argument('--format', choices=FORMATS, default='terminal', help='default: %(default)s')
    args = parser.parse_args(argv)
    print(write(compare_runs(group_runs(args.runs), args.metric), args.format))


if __name__ == '__main__':
    run_main(main)
