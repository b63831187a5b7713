"""Reproduce the paper's Table 2: how alike teacher and student may be (CIFAR-100)."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import add_training_arguments, parse_seeds, run_main, training_options
from sd_pretrain.launch import runs_side_by_side
from sd_pretrain.table2 import NETWORKS, TEMPERATURE, Table2, run_table2


def main() -> None:
    """Train what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(prog='tools/table2.sh', description=__doc__)
    parser.add_argument('--net', choices=NETWORKS, help='default: densenet100, with --quick resnet20')
    parser.add_argument('--seeds', default='1', help='how many (the paper: 2), or which (0,1,7)')
    parser.add_argument('--quick', action='store_true', help='few images and epochs: minutes on a CPU')
    parser.add_argument('--data-root', type=Path, help="folder of cifar-100-python (default: 'data')")
    parser.add_argument(
        '--temperature',
        type=float,
        default=TEMPERATURE,
        metavar='T',
        help='of the teachers (%(default)g); the paper states none for this table',
    )
    add_training_arguments(parser)
    parser.add_argument(
        '--parallel', type=int, help='runs side by side, also on one GPU; default: 4 on GPUs, else up to 2'
    )
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/table2, with --quick table2_quick')
    args = parser.parse_args()
    net = args.net or ('resnet20' if args.quick else 'densenet100')
    default = 'table2_quick' if args.quick else 'table2' if net == 'densenet100' else f'table2_{net}'
    what = Table2(
        work_dir=args.work_dir or Path('work_dirs') / default,
        net=net,
        seeds=parse_seeds(args.seeds),
        quick=args.quick,
        options=training_options(args),
        data_root=args.data_root,
        gpus=args.gpus,
        parallel=args.parallel or runs_side_by_side(args.gpus, on_a_gpu=4),
        amp=args.amp,
        temperature=args.temperature,
    )
    path = run_table2(what)
    print(f'\n{path.read_text()}\n{path}\n{path.with_suffix(".json")}')


if __name__ == '__main__':
    run_main(main)
