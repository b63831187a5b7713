"""Print a config with its bases filled in: ``python tools/print_config.py configs/sd_r152_imagenet.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from mmengine.config import Config

from sd_pretrain.cli import InputError, Options, run_main


def main() -> int:
    """Print the config."""
    parser = argparse.ArgumentParser(description='Print a config with its bases filled in.')
    parser.add_argument('config')
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    args = parser.parse_args()
    if not Path(args.config).is_file():
        raise InputError(f'no config {args.config}: see configs/ for those there are')
    try:
        cfg = Config.fromfile(args.config, import_custom_modules=False)
        cfg.merge_from_dict(args.cfg_options or {})
    except Exception as error:
        raise InputError(f'config {args.config} cannot be read: {type(error).__name__}: {error}') from error
    print(cfg.pretty_text)
    return 0


if __name__ == '__main__':
    run_main(main)
