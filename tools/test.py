"""Evaluate a pretraining checkpoint: ``python tools/test.py configs/sd_r152_imagenet.py snapshot_2.pth``."""

from __future__ import annotations

import argparse

from sd_pretrain.cli import Options, run_main
from sd_pretrain.launch import LAUNCHERS, is_main_process
from sd_pretrain.train import test


def parse_args() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description='Top-1 and top-5 of a checkpoint on the validation images.')
    parser.add_argument('config', help='the config it was trained with')
    parser.add_argument('checkpoint', help='an epoch_N.pth or snapshot_k.pth')
    parser.add_argument('--work-dir', help='where the log goes (default: work_dirs/<config name>/test)')
    parser.add_argument('--data-root', help="folder that holds ILSVRC2012/ (default: 'data')")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes are started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Evaluate, and print the accuracies."""
    args = parse_args()
    metrics = test(
        args.config,
        args.checkpoint,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=args.cfg_options,
        launcher=args.launcher,
    )
    if is_main_process(args.launcher):
        top1, top5 = metrics['accuracy/top1'], metrics['accuracy/top5']
        print(f'top-1 {top1:.2f}%, top-5 {top5:.2f}%: {args.checkpoint}')
    return 0


if __name__ == '__main__':
    run_main(main)
