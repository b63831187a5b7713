"""Fine-tune backbones on a task and compare them: ``tools/transfer.sh det voc07 BL=a.pth SD=b.pth``."""

from __future__ import annotations

# Not tools/transfer.py: beside the other tools that would hide the package of that name.
import argparse
import os
import shlex
import sys
from pathlib import Path

from sd_pretrain.cli import InputError, parse_seeds, run_main
from transfer.tasks import DATASETS, TASKS


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(prog='tools/transfer.sh', description=__doc__)
    parser.add_argument('task', help='det, seg or probe (frozen features)')
    known = ', '.join(
        f'{" or ".join(name for one, name in DATASETS if one == task)} ({task})' for task in TASKS
    )
    parser.add_argument('dataset', help=f'{known}; or data of your own, as --config calls it')
    parser.add_argument(
        'checkpoints',
        nargs='*',
        metavar='NAME=CHECKPOINT',
        help='checkpoint file, pretraining work dir, torchvision:NAME, timm:NAME, NETWORK@FILE (where a file '
        'does not say of which network of timm it is), "none" (random ResNet) or none:NETWORK; the '
        'first is the baseline (default: BL and SD from work_dirs/{bl,sd}_r152_imagenet); a NAME given '
        'several times is a method, each CHECKPOINT a pretraining of it for a seed of its own',
    )
    gpus = os.environ.get('GPUS', '1')
    parser.add_argument(
        '--gpus-per-job', '--gpus', dest='gpus', default=gpus, help='GPUs of one run (default: $GPUS, or 1)'
    )
    parser.add_argument(
        '--seeds',
        help='how many (3), or which (0,1,7); default: one for each pretraining of a NAME, else seed 0',
    )
    parser.add_argument('--data-root', help='where VOCdevkit is (default: data)')
    parser.add_argument('--config', help='another config than the one for the task and depth')
    parser.add_argument('--demo', action='store_true', help='the small configs on the embedded emoji world')
    parser.add_argument('--work-dir', type=Path, help='default: work_dirs/transfer, with --demo ..._demo')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument(
        '--parallel',
        type=int,
        metavar='N',
        help='runs side by side (default: one for each GPU, or one; on Slurm all)',
    )
    parser.add_argument(
        '--slurm',
        metavar='KEY=VALUE,...',
        help='run as a Slurm job array with these options of sbatch: partition=...,account=...,time=...',
    )
    parser.add_argument('--dry-run', action='store_true', help='print the runs to do, and run nothing')
    parser.add_argument(
        '--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help='passed on to each run'
    )
    args = parser.parse_intermixed_args(argv)
    for value in args.cfg_options:
        name, _, path = value.partition('=')
        if '.' not in name and (Path(path).exists() or path.endswith(('.pth', '.safetensors'))):
            raise InputError(f'{value} stands after --cfg-options: NAME=CHECKPOINT must come before it')
    return args


def main(argv: list[str] | None = None) -> None:
    """Entry point."""
    args = parse_args(argv)
    if not args.gpus.isdigit():
        raise InputError(f'--gpus-per-job (or GPUS) {args.gpus}: a number is needed')
    from transfer import contenders, runner, table
    from transfer.results import collect
    from transfer.transfer_report import note_transfer, report_transfer

    runner.find_task(args.task, args.dataset, args.config)
    checkpoints = contenders.named_checkpoints(args.checkpoints, args.demo)
    work_dir = args.work_dir or Path('work_dirs/transfer_demo' if args.demo else 'work_dirs/transfer')
    options = runner.Options(
        seeds=parse_seeds(args.seeds or str(max(map(len, checkpoints.values())))),
        gpus=int(args.gpus),
        parallel=args.parallel,
        data_root=args.data_root,
        config=args.config,
        demo=args.demo,
        work_dir=work_dir,
        amp=args.amp,
        cfg_options=args.cfg_options,
        slurm=args.slurm,
        dry_run=args.dry_run,
    )
    runner.run_transfer(args.task, args.dataset, checkpoints, options)
    if args.dry_run:
        return
    results = collect(work_dir, first=checkpoints)
    print(table.format_table(results))
    sources = contenders.numbered(checkpoints)
    curves = {name: Path(source) for name, source in sources.items() if Path(source).is_dir()}
    content = note_transfer(work_dir, results, [shlex.join(sys.orig_argv)], curves)
    print('\n'.join(['', *(one['text'] for one in content['comparisons']), '']), flush=True)
    report_transfer(work_dir, results, content)
    print(f'{work_dir}/report.html')


if __name__ == '__main__':
    run_main(main)
