"""Make ILSVRC2012 faster to train on: ``python tools/prepare_imagenet.py SRC DST --restart-markers``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import InputError, run_main
from sd_pretrain.restart_tree import rewrite_tree, summary


def main() -> None:
    """Rewrite a tree; a broken-off run goes on where it was."""
    parser = argparse.ArgumentParser(
        description='Write the JPEGs of SRC to DST so that a crop can be decoded without the rest: lossless, '
        'every pixel as before, a few percent larger. Training on DST needs no other settings.'
    )
    parser.add_argument('source', metavar='SRC', help='such as data/ILSVRC2012, with train/ and val/')
    parser.add_argument('target', metavar='DST', help='folder to write to')
    parser.add_argument('--restart-markers', action='store_true', required=True, help='what is to be done')
    parser.add_argument('--workers', type=int, help='processes; default: one for each core')
    parser.add_argument('--no-verify', action='store_true', help='do not compare the pixels of each image')
    args = parser.parse_args()
    if args.workers is not None and args.workers < 1:
        raise InputError(f'--workers must be at least 1, found {args.workers}')
    totals = rewrite_tree(
        args.source,
        args.target,
        args.workers,
        not args.no_verify,
        report=lambda line: print(line, flush=True),
    )
    print(summary(totals))


if __name__ == '__main__':
    run_main(main)
