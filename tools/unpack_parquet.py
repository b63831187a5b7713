"""Unpack the parquet shards of imagenet-1k into class folders: ``python tools/unpack_parquet.py FROM TO``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import run_main
from sd_pretrain.ilsvrc_parquet import unpack


def main() -> None:
    """Unpack both splits; a broken-off run goes on where it was."""
    parser = argparse.ArgumentParser(
        description='Write the images of parquet shards, byte for byte, to TO/{train,val}/<wnid>/.'
    )
    parser.add_argument('root', metavar='FROM', help='folder with data/{train,validation}-*-of-*.parquet')
    parser.add_argument('out', metavar='TO', help='such as data/ILSVRC2012')
    args = parser.parse_args()
    for split in ('train', 'val'):
        print(f'{split}: {unpack(args.root, split, args.out):,} images in {args.out}', flush=True)


if __name__ == '__main__':
    run_main(main)
