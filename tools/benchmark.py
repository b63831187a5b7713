"""Measure speeds as ratios: ``python tools/benchmark.py {data,loop,train,eval,all} [--quick]``."""

from __future__ import annotations

import argparse
import importlib
import time
from pathlib import Path

from sd_pretrain.benchmark import describe_machine, machine, write_section
from sd_pretrain.cli import InputError, run_main

PARTS = {
    # First: the memory of loader workers is measured, and they inherit what this process holds.
    'data': ('sd_pretrain.benchmark_data', 'reading, decoding and cropping training images'),
    'loop': ('sd_pretrain.benchmark_loop', 'what hooks and logging add to an iteration'),
    'train': ('sd_pretrain.benchmark_train', 'a training step: BL, SD, and the steps of other projects'),
    'eval': ('transfer.benchmark_eval', 'VOC metrics, and fine-tuning steps against stock mmdet and mmseg'),
}


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Read the command line; each part has arguments of its own."""
    parser = argparse.ArgumentParser(prog='tools/benchmark.py', description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest='part', required=True)
    modules = {name: importlib.import_module(module) for name, (module, _) in PARTS.items()}
    for name, (_, about) in PARTS.items():
        command = commands.add_parser(name, help=about, description=about)
        modules[name].add_arguments(command)
        _add_common(command)
        command.set_defaults(measure=[modules[name].measure])
    command = commands.add_parser('all', help='all of them', description='all of them')
    for module in modules.values():
        module.add_arguments(command)
    _add_common(command)
    command.set_defaults(measure=[module.measure for module in modules.values()])
    return parser.parse_args(argv)


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument('--quick', action='store_true', help='few rounds and small cases: minutes on a CPU')
    parser.add_argument('--rounds', type=int, help='rounds of each table')
    parser.add_argument('--device', choices=('cpu', 'cuda'), help='default: cuda where there is one')
    parser.add_argument('--data-root', type=Path, help='folder of ILSVRC2012 and VOCdevkit, for real images')
    parser.add_argument('--out', type=Path, default=Path('work_dirs/benchmark'), help='folder of the tables')


def main(argv: list[str] | None = None) -> None:
    """Measure, print each table as it is there, and write Markdown and JSON."""
    import torch

    args = parse_args(argv)
    args.device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    if args.device == 'cuda' and not torch.cuda.is_available():
        raise InputError('--device cuda: PyTorch sees no GPU here; leave --device out')
    if args.rounds is not None and args.rounds < 1:
        raise InputError(f'--rounds must be at least 1, found {args.rounds}')
    where, started = machine(args.device), time.monotonic()
    texts = [f'Measured on {describe_machine(where)}; medians [quartiles].']
    print(texts[0], flush=True)
    for measure in args.measure:
        for section in measure(args):
            write_section(section, args.out, where)
            texts.append(section.markdown())
            print(f'\n{texts[-1]}', flush=True)
    page = args.out / f'{args.part}.md'
    page.write_text('\n\n'.join(texts) + '\n')
    print(f'\n{page}; {time.monotonic() - started:.0f} s')


if __name__ == '__main__':
    run_main(main)
