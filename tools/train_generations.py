"""Train a network in generations: ``tools/train_generations.sh configs/cifar100/ban_resnet20.py 3``."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import add_training_arguments, run_main, training_options
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
    add_training_arguments(parser)
    args = parser.parse_args()
    what = Generations(
        config=args.config,
        count=args.generations,
        work_dir=args.work_dir or Path('work_dirs') / f'{args.config.stem}_generations',
        options=training_options(args),
        seed=args.seed,
        data_root=args.data_root,
        gpus=args.gpus,
        amp=args.amp,
    )
    path = run_generations(what)
    print(f'\n{path.read_text()}\n{path}')


if __name__ == '__main__':
    run_main(main)
