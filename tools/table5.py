"""Reproduce the paper's Table 5, on the demo data or (``--data-root data --gpus 8``) at full size."""

from __future__ import annotations

import argparse
from pathlib import Path

from sd_pretrain.cli import InputError, parse_seeds, run_main
from sd_pretrain.launch import runs_side_by_side
from transfer.table import format_rows
from transfer.table5 import Table5, run_table5
from transfer.table5_json import load_table5, table5_rows


def main() -> None:
    """Run what is not done yet, and print the table and the time of each stage."""
    parser = argparse.ArgumentParser(prog='tools/table5.sh', description=__doc__)
    parser.add_argument(
        '--data-root', type=Path, help='folder of ILSVRC2012 and VOCdevkit; default: the demo data'
    )
    parser.add_argument('--gpus', type=int, default=1, help='GPUs of one run')
    parser.add_argument(
        '--arch',
        default='r152',
        choices=('r18', 'r34', 'r50', 'r101', 'r152'),
        help='on real data; default: r152',
    )
    parser.add_argument(
        '--seeds',
        help='of the fine-tunings: how many (3), or which (0,1,7); default: one for each pretraining',
    )
    parser.add_argument(
        '--pretrainings',
        type=int,
        default=1,
        metavar='N',
        help='pretrain each N times, with other seeds: the verdict is then about the methods',
    )
    parser.add_argument('--scratch', action='store_true', help='add fine-tunings from random weights')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument('--compile', action='store_true', help='compile network and augmentation to pretrain')
    parser.add_argument('--parallel', type=int, help='runs side by side; default: 1 on GPUs, else up to 2')
    parser.add_argument(
        '--work-dir', type=Path, help='default: work_dirs/table5, on real data work_dirs/table5_<arch>'
    )
    parser.add_argument(
        '--demo-data', type=Path, default=Path('work_dirs/demo_data'), help='made where missing'
    )
    args = parser.parse_args()
    if args.pretrainings < 1:
        raise InputError(f'--pretrainings {args.pretrainings}: at least one')
    default = 'work_dirs/table5' + (f'_{args.arch}' if args.data_root else '')
    what = Table5(
        work_dir=args.work_dir or Path(default),
        data_root=args.data_root,
        demo_data=args.demo_data,
        arch=args.arch,
        gpus=args.gpus,
        seeds=parse_seeds(args.seeds or str(args.pretrainings)),
        pretrainings=args.pretrainings,
        parallel=args.parallel or runs_side_by_side(args.gpus),
        scratch=args.scratch,
        amp=args.amp,
        compile=args.compile,
    )
    path = run_table5(what)
    table5 = load_table5(path)
    print(f'\n{format_rows(table5_rows(table5), "terminal", table5["papers_setting"])}\n')
    print('\n'.join([*(one['text'] for one in table5['comparisons']), '']))
    print(', '.join(f'{stage["name"]} {stage["seconds"]:.0f} s' for stage in table5['stages']), end='; ')
    print(f'{table5["seconds"]:.0f} s in all')
    for name in ('table5.json', 'table5.md', 'report.html'):
        print(what.work_dir / name)


if __name__ == '__main__':
    run_main(main)
