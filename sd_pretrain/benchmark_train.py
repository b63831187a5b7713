"""A training step of BL and SD, ours and naive, against the steps of timm, torchvision and mmengine."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_pretrain.benchmark import Section, Spread, interleaved, ratio, spread

if TYPE_CHECKING:
    from torch import Tensor

_BATCHES = 4
BASELINE = 'ours BL'


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The step to measure."""
    parser.add_argument('--arch', help='a ResNet of timm and torchvision (resnet152; on a CPU resnet18)')
    parser.add_argument('--batch', type=int, help='images a step (256; on a CPU 32)')
    parser.add_argument('--size', type=int, help='side of the images in pixels (224; on a CPU 64)')
    parser.add_argument('--amp', action='store_true', help='bfloat16 on a CPU, too (on a GPU always)')
    parser.add_argument('--compile', action='store_true', help='compile our steps')
    parser.add_argument('--whole', action='store_true', help='whole runs of BL and SD, instead of steps')


def measure(args: argparse.Namespace) -> Iterator[Section]:
    """Speeds on synthetic batches, with ``--data-root`` (not ``--quick``) on real ones, and device limits."""
    import torch

    from sd_pretrain.benchmark_steps import Setting
    from sd_pretrain.benchmark_whole import whole_runs
    from sd_pretrain.cli import InputError

    gpu = args.device == 'cuda'
    arch = args.arch or ('resnet152' if gpu else 'resnet18')
    size, batch = args.size or (224 if gpu else 64), args.batch or (256 if gpu else 32)
    if arch not in ('resnet18', 'resnet34', 'resnet50', 'resnet101', 'resnet152'):
        raise InputError(f'--arch {arch}: resnet18, 34, 50, 101 and 152 are those that all projects have')
    if size < 32 or batch < 2:
        raise InputError(f'--size must be at least 32 and --batch 2, found {size} and {batch}')
    setting = Setting(arch, torch.device(args.device), args.amp or gpu, args.compile)
    torch.backends.cudnn.benchmark = True
    rounds = args.rounds or (5 if args.quick else 9)
    if args.whole:
        yield whole_runs(setting, batch, size, rounds, args.data_root)
        return
    sources = {'synthetic': _synthetic(batch, size)}
    if args.data_root is not None and not args.quick:
        sources['real'] = _real(args.data_root, batch, size)
    for source, batches in sources.items():
        yield _section(setting, source, batches, rounds)


def _synthetic(batch: int, size: int) -> list[tuple[Tensor, Tensor]]:
    import torch

    chance = torch.Generator().manual_seed(0)
    return [
        (
            torch.randint(0, 256, (batch, 3, size, size), dtype=torch.uint8, generator=chance),
            torch.randint(0, 1000, (batch,), generator=chance),
        )
        for _ in range(_BATCHES)
    ]


def _real(root: Path, batch: int, size: int) -> list[tuple[Tensor, Tensor]]:
    """Random crops of the photos in ``root``, decoded before anything is timed."""
    import torch

    from sd_pretrain.imagenet import ImageNetFolder

    data = ImageNetFolder(str(root / 'ILSVRC2012'), 'train', size=size)
    batches = []
    for number in range(_BATCHES):
        samples = [data[(number * batch + index) % len(data)] for index in range(batch)]
        images = torch.stack([sample['inputs'] for sample in samples])
        batches.append((images, torch.tensor([sample['labels'] for sample in samples])))
    return batches


def _section(setting: Any, source: str, batches: list, rounds: int) -> Section:
    from sd_pretrain.benchmark_steps import mmengines, ours, timms, torchvisions
    from sd_pretrain.ceilings import graph_memory, step_memory

    gpu = setting.device.type == 'cuda'
    steps = {BASELINE: ours(setting, batches)}
    if setting.compile:
        steps['ours BL, not compiled'] = ours(dataclasses.replace(setting, compile=False), batches)
    taught = {
        'ours SD': 'auto',
        f'ours SD, teacher in {setting.other_precision}': setting.other_precision,
        'naive SD (eager, unfolded, autocast)': 'naive',
    }
    steps |= {name: ours(setting, batches, teacher) for name, teacher in taught.items()}
    steps['ours BL with rotation and jitter'] = ours(setting, batches, augmented=True)
    peers = {'timm': timms, 'torchvision references': torchvisions, 'mmengine defaults': mmengines}
    steps |= {name: peer(setting, batches) for name, peer in peers.items()}
    each = 10 if gpu else 1
    cases = {name: _repeat(step, each) for name, step in steps.items()}
    graphs = {name: graph_memory(step, setting.device) for name, step in steps.items()}
    seconds = interleaved(cases, rounds, setting.device)
    memory = {name: graphs[name] + step_memory(step, setting.device) for name, step in steps.items()}
    images, size = len(batches[0][0]), batches[0][0].shape[-1]
    rows = []
    for name, values in seconds.items():
        step = [1e3 * value / each for value in values]
        cells = [f'{images / spread(step).median * 1e3:,.0f}', spread(step).show(1)]
        cells.append(ratio(seconds[BASELINE], values).show(3))
        rows.append([name, *cells, f'{memory[name] / 2**20:,.0f}'])
    overheads, lines = {}, []
    for name in taught:
        over = ratio(seconds[name], seconds[BASELINE])
        overheads[name] = {k: Spread(*(1 + (one - 1) * (k - 1) / k for one in over)) for k in (2, 4)}
        lines.append(
            f'{name}: the teacher is {Spread(*(one - 1 for one in over)).show()} of a step; a whole run '
            f'costs {overheads[name][2].show(3)} of BL with K=2, {overheads[name][4].show(3)} with K=4.'
        )
    limits = _limits(setting, steps[BASELINE], spread(seconds[BASELINE]).median / each)
    lines.append(limits.pop('text'))
    lines.append(
        'Peak memory: what a step takes beyond what is there before it (weights, momentum)'
        + (', and what the CUDA graph of the teacher keeps for itself.' if gpu else '.')
    )
    kind = setting.numbers + (', ours compiled' if setting.compile else '')
    return Section(
        name=f'train_{setting.arch}_{size}_{source}' + ('_amp' if setting.amp else ''),
        title=f'Training step of {setting.arch}, {images} {source} images of {size} px, {kind}',
        columns=('step', 'img/s', 'ms a step', 'speed over ours BL', 'peak memory, MiB'),
        rows=rows,
        notes=[*lines, f'{rounds} rounds of {each} steps each.'],
        data={
            'seconds': seconds,
            'steps_a_round': each,
            'images': images,
            'overhead': overheads,
            'peak_memory_bytes': memory,
            'limits': limits,
        },
    )


def _repeat(step: Callable[[], object], times: int) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            step()

    return run


def _limits(setting: Any, step: Callable[[], object], seconds: float) -> dict[str, Any]:
    import torch

    from sd_pretrain.ceilings import copy_rate, matrix_rate, step_bytes, step_flops

    dtype = torch.bfloat16 if setting.amp else torch.float32
    matrix, copy = matrix_rate(setting.device, dtype), copy_rate(setting.device)
    if setting.compile:
        return {
            'matrix_flops': matrix,
            'copy_bytes': copy,
            'text': f'A large matrix product reaches {matrix / 1e12:.2f} TFLOP/s here, a large copy '
            f'{copy / 1e9:.1f} GB/s.',
        }
    flops, moved = step_flops(step), step_bytes(step)
    arithmetic, traffic = flops / seconds / matrix, moved / seconds / copy
    return {
        'matrix_flops': matrix,
        'copy_bytes': copy,
        'step_flops': flops,
        'step_bytes': moved,
        'text': f'Ours BL reaches {arithmetic:.0%} of the arithmetic of a large matrix product '
        f'({matrix / 1e12:.2f} TFLOP/s here) and {traffic:.0%} of the traffic of a large copy '
        f'({copy / 1e9:.1f} GB/s), counting all that its operations read and write.',
    }
