"""Pretrain a classifier: ``python tools/train.py configs/sd_r152_imagenet.py``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import Options, run_main
from sd_pretrain.launch import LAUNCHERS, check_gpus, is_main_process
from sd_pretrain.train import train


def parse_args() -> argparse.Namespace:
    """Read the command line."""
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
    parser.add_argument('--compile', action='store_true', help='compile network and augmentation')
    parser.add_argument('--data-root', help="folder that holds ILSVRC2012/ (default: 'data')")
    parser.add_argument(
        '--cfg-options',
        nargs='+',
        action=Options,
        metavar='KEY=VALUE',
        help='override settings of the config',
    )
    parser.add_argument('--stop-after', type=int, metavar='EPOCH', help='stop there; --resume goes on')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none', help='how processes are started')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    parser.add_argument('--check', action='store_true', help='check config, data and GPUs, and stop')
    parser.add_argument('--gpus', type=int, help='with --check: GPUs (or CPU processes) on this machine')
    parser.add_argument(
        '--processes', type=int, help='with --check: processes on all machines (default: --gpus)'
    )
    return parser.parse_args()


def make_demo_data(config: str) -> None:
    """Make the embedded data that a demo config trains on, if it is not there yet."""
    if not Path(config).is_file():
        return
    from mmengine.config import Config

    from transfer.emoji_world import ensure

    root = Config.fromfile(config, import_custom_modules=False).get('default_data_root')
    if root and not Path(root).is_dir():
        print(f'Making the demo data in {root} (once).', flush=True)
        ensure(Path(root))


def main() -> int:
    """Train, and print the result."""
    args = parse_args()
    if args.gpus is not None:
        check_gpus(args.gpus)
    if args.data_root is None and args.launcher == 'none':
        make_demo_data(args.config)
    outcome = train(
        args.config,
        work_dir=args.work_dir,
        data_root=args.data_root,
        options=args.cfg_options,
        resume=args.resume,
        amp=args.amp,
        compile=args.compile,
        launcher=args.launcher,
        stop_after=args.stop_after,
        check_only=args.check,
        processes=args.processes or args.gpus,
    )
    if outcome.message and is_main_process(args.launcher):
        print(outcome.message)
    return 0


if __name__ == '__main__':
    run_main(main)
