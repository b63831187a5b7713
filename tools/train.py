"""Pretrain a classifier: ``python tools/train.py configs/sd_r152_imagenet.py``."""

from __future__ import annotations

import argparse

from mmengine.config import DictAction

from sd_pretrain.cli import run_main
from sd_pretrain.launch import LAUNCHERS, check_gpus
from sd_pretrain.train import train


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Pretrain a classifier by BL, SE or SD.')
    parser.add_argument('config', help='a config of configs/, such as configs/sd_r152_imagenet.py')
    parser.add_argument('--work-dir', help='where logs and checkpoints go (default: work_dirs/<config name>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        metavar='CHECKPOINT',
        help='resume from a checkpoint, or without one from the latest in the work dir',
    )
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument('--data-root', help="folder that holds ILSVRC2012/ (default: 'data')")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=DictAction,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes are started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--check', action='store_true', help='check config, data and GPUs, and stop')
    parser.add_argument(
        '--gpus', type=int, help='with --check: the number of GPUs (or CPU processes) to be used'
    )
    return parser.parse_args()


def main() -> int:
    args = parse_args()
    if args.gpus is not None:
        check_gpus(args.gpus)
    result = train(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=args.cfg_options,
        resume=args.resume,
        amp=args.amp,
        launcher=args.launcher,
        check_only=args.check,
    )
    print(result)
    return 0


if __name__ == '__main__':
    run_main(main)
