"""Train a network in generations: ``tools/train_generations.sh configs/cifar100/ban_resnet20.py 3``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import run_main
from sd_pretrain.generations import Generations, run_generations


def main() -> None:
    """Train what is not done yet, and print the errors of the generations."""
    parser = argparse.ArgumentParser(prog='tools/train_generations.sh', description=__doc__)
    parser.add_argument('config', type=Path, help='of the taught generations; it names that of the first')
    parser.add_argument(
        'generations', type=int, metavar='K', help='number of generations, the first included'
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/<config name>_generations')
    parser.add_argument('--data-root', type=Path, help="folder of cifar-100-python (default: 'data')")
    parser.add_argument('--seed', type=int, default=0, help='of the first generation; the next have the next')
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of one run')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='settings for all generations'
    )
    args = parser.parse_args()
    what = Generations(
        config=args.config,
        count=args.generations,
        work_dir=args.work_dir or Path('work_dirs') / f'{args.config.stem}_generations',
        options=tuple(args.cfg_options),
        seed=args.seed,
        data_root=args.data_root,
        gpus=args.gpus,
        amp=args.amp,
    )
    path = run_generations(what)
    print(f'\n{path.read_text()}\n{path}')


if __name__ == '__main__':
    run_main(main)
