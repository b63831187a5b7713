"""Print a config with its bases filled in: ``python tools/print_config.py configs/sd_r152_imagenet.py``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import Options, read_config, run_main


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
    print(read_config(args.config, args.cfg_options, import_custom_modules=False).pretty_text)
    return 0


if __name__ == '__main__':
    run_main(main)
