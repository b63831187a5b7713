"""Make the embedded demo data: ``python tools/make_demo_data.py [ROOT] [--scale S] [--seed K]``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import InputError, run_main
from transfer.emoji_world import WorldSize, digest, ensure


def main() -> None:
    """Make the world, and print where it is and its digest."""
    parser = argparse.ArgumentParser(description='A small emoji world in the layouts of ILSVRC2012 and VOC.')
    parser.add_argument('root', nargs='?', type=Path, default=Path('work_dirs/demo_data'))
    parser.add_argument('--scale', type=float, default=1.0, help='times as many images of every kind')
    parser.add_argument('--seed', type=int, default=0)
    args = parser.parse_args()
    if args.scale <= 0:
        raise InputError(f'--scale must be positive, found {args.scale}')
    made = ensure(args.root, args.seed, WorldSize().scaled(args.scale))
    print(f'{args.root}: {"made" if made else "is there already"}, sha256 {digest(args.root)}')


if __name__ == '__main__':
    run_main(main)
