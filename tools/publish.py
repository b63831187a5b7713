"""Publish a finished pretraining: weights for timm, torchvision and mmdet (of networks other than ResNets for
timm), a model card, a metafile.

python tools/publish.py work_dirs/sd_r152_imagenet published/ --results work_dirs/transfer
"""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import run_main


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    from transfer.model_card import LICENSES
    from transfer.publish import publish

    parser = argparse.ArgumentParser(
        prog='tools/publish.py', description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('work_dir', type=Path, help='of a finished pretraining')
    parser.add_argument('out', type=Path, help='a new folder')
    parser.add_argument(
        '--results', nargs='+', type=Path, default=[], metavar='DIR', help='work dirs of tools/transfer.sh'
    )
    parser.add_argument(
        '--baseline',
        default='BL',
        help='what the results are compared with (default: BL, or as in their report)',
    )
    parser.add_argument('--license', default='other', help=f'one of {", ".join(LICENSES)}')
    args = parser.parse_args(argv)
    done = publish(args.work_dir, args.out, args.results, args.license, args.baseline)
    print('\n'.join(str(path) for path in vars(done).values()))


if __name__ == '__main__':
    run_main(main)
