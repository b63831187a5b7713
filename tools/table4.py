"""Reproduce the paper's Table 4: BL, SE and SD on ILSVRC2012, or with ``--demo`` a small run of it."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import (
    InputError,
    add_training_arguments,
    parse_seeds,
    run_main,
    training_options,
)
from sd_pretrain.launch import runs_side_by_side
from sd_pretrain.table4 import NETS, run_table4

DEMO_DATA = Path('work_dirs/demo_data')


def main() -> None:
    """Run what is not done yet, and print the table."""
    parser = argparse.ArgumentParser(prog='tools/table4.sh', description=__doc__)
    parser.add_argument('--nets', default=','.join(NETS), help='default: %(default)s', metavar='NET,...')
    parser.add_argument('--seeds', default='1', help='how many (3), or which (0,1,7)')
    add_training_arguments(parser)
    parser.add_argument(
        '--so-far', action='store_true', help='train nothing: the table of the snapshots there are by now'
    )
    parser.add_argument('--parallel', type=int, help='runs side by side; default: 1 on GPUs, else up to 2')
    parser.add_argument(
        '--demo', action='store_true', help='300 images, 4 epochs: minutes on a CPU, nothing to be had first'
    )
    parser.add_argument('--data-root', type=Path, help='folder of ILSVRC2012; default: data')
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/table4, with --demo work_dirs/table4_demo'
    )
    args = parser.parse_args()
    if args.demo and args.data_root:
        raise InputError(f'--demo has data of its own, {DEMO_DATA}; leave one of --demo and --data-root out')
    if args.demo:
        from transfer.emoji_world import ensure

        if ensure(DEMO_DATA):
            print(f'Made the demo data in {DEMO_DATA} (once).', flush=True)
    paths = run_table4(
        args.work_dir or Path('work_dirs/table4_demo' if args.demo else 'work_dirs/table4'),
        DEMO_DATA if args.demo else args.data_root or Path('data'),
        [net.strip() for net in args.nets.split(',') if net.strip()],
        seeds=parse_seeds(args.seeds),
        demo=args.demo,
        gpus=args.gpus,
        parallel=args.parallel or runs_side_by_side(args.gpus),
        amp=args.amp,
        options=training_options(args),
        so_far=args.so_far,
    )
    print(f'\n{paths[1].read_text()}')
    print(*paths, sep='\n')


if __name__ == '__main__':
    run_main(main)
