"""Reproduce the paper's Table 3: BL, SE and SD on CIFAR-100, or with ``--quick`` a cut-down run of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import add_training_arguments, parse_seeds, run_main, training_options
from sd_pretrain.launch import runs_side_by_side
from sd_pretrain.table3 import NETS, run_table3


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(prog='tools/table3.sh', description=__doc__)
    parser.add_argument(
        '--nets', help=f'of {",".join(NETS)}; default: all of them, with --quick resnet20', metavar='NET,...'
    )
    parser.add_argument('--seeds', default='1', help='how many (3), or which (0,1,7)')
    add_training_arguments(parser)
    parser.add_argument(
        '--so-far', action='store_true', help='train nothing: the table of the snapshots there are by now'
    )
    parser.add_argument(
        '--parallel', type=int, help='runs side by side, also on one GPU; default: 4 on GPUs, else up to 2'
    )
    parser.add_argument('--quick', action='store_true', help='1,000 images, 8 epochs: minutes on a CPU')
    parser.add_argument(
        '--data-root', type=Path, default=Path('data'), help='folder of cifar-100-python (%(default)s)'
    )
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/table3, with --quick work_dirs/table3_quick'
    )
    args = parser.parse_args()
    nets = args.nets if args.nets is not None else 'resnet20' if args.quick else ','.join(NETS)
    paths = run_table3(
        args.work_dir or Path('work_dirs/table3_quick' if args.quick else 'work_dirs/table3'),
        args.data_root,
        [net.strip() for net in nets.split(',') if net.strip()],
        seeds=parse_seeds(args.seeds),
        quick=args.quick,
        gpus=args.gpus,
        parallel=args.parallel or runs_side_by_side(args.gpus, on_a_gpu=4),
        amp=args.amp,
        options=training_options(args),
        so_far=args.so_far,
    )
    print(f'\n{paths[1].read_text()}')
    print(*paths, sep='\n')


if __name__ == '__main__':
    run_main(main)
