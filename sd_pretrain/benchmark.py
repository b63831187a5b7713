"""Speeds as ratios: cases timed in turn within one run, their medians with spread, a table and a JSON file.

A machine's speed wanders by more than what is to be told apart. So the cases of one table take turns, a
little work each, and what is compared is the ratio within each round: its median and its quartiles.
"""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sd_pretrain.launch import cpu_share
from sd_pretrain.markdown import markdown_table


class Spread(NamedTuple):
    """Median and quartiles of some measurements."""

    median: float
    low: float
    high: float

    def show(self, digits: int = 2) -> str:
        """``1.23 [1.20, 1.31]``."""
        return f'{self.median:.{digits}f} [{self.low:.{digits}f}, {self.high:.{digits}f}]'


@dataclass(frozen=True)
class Section:
    """One table of the benchmark.

    Args:
        name: file name of the JSON.
        title: heading.
        columns: heads of the columns.
        rows: cells, as they are printed.
        notes: sentences below the table.
        data: everything that was measured, JSON-able; seconds are in the order of the rounds.
    """

    name: str
    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    notes: Sequence[str] = ()
    data: Mapping[str, Any] = field(default_factory=dict)

    def markdown(self) -> str:
        """The table with its heading and notes."""
        table = markdown_table(self.columns, self.rows)
        return '\n'.join([f'### {self.title}', '', table, *(f'\n{note}' for note in self.notes)])


def spread(values: Sequence[float]) -> Spread:
    """Median and quartiles."""
    low, median, high = np.percentile(np.asarray(values, dtype=float), [25, 50, 75])
    return Spread(float(median), float(low), float(high))


def ratio(numerator: Sequence[float], denominator: Sequence[float]) -> Spread:
    """Median and quartiles of the ratio within each round."""
    return spread([one / other for one, other in zip(numerator, denominator, strict=True)])


def interleaved(
    cases: Mapping[str, Callable[[], object]],
    rounds: int,
    device: str | torch.device = 'cpu',
    warmup: int = 1,
) -> dict[str, list[float]]:
    """Seconds that each case took in each round.

    Each round runs every case once; who begins changes from round to round.

    Args:
        cases: what to time, by name.
        rounds: number of rounds.
        device: a CUDA device is waited for before each reading of the clock.
        warmup: calls of each case before the first round, untimed.
    """
    names = list(cases)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for name in names:
        for _ in range(warmup):
            cases[name]()
    for index in range(rounds):
        shift = index % len(names)
        for name in names[shift:] + names[:shift]:
            synchronize(device)
            start = time.perf_counter()
            cases[name]()
            synchronize(device)
            seconds[name].append(time.perf_counter() - start)
    return seconds


def synchronize(device: str | torch.device) -> None:
    """Wait until a CUDA device has done its work."""
    if torch.device(device).type == 'cuda':
        torch.cuda.synchronize(device)


def machine(device: str | torch.device = 'cpu') -> dict[str, Any]:
    """What was measured on: processor, cores and threads, GPU, versions."""
    processor = platform.processor() or platform.machine()
    info = Path('/proc/cpuinfo')
    if info.is_file():
        names = [
            line.split(':', 1)[1].strip() for line in info.read_text().splitlines() if 'model name' in line
        ]
        processor = names[0] if names else processor
    found = {
        'processor': processor,
        'cores': cpu_share(1),
        'threads': torch.get_num_threads(),
        'python': platform.python_version(),
        'torch': torch.__version__,
    }
    if torch.device(device).type == 'cuda':
        found['gpu'] = torch.cuda.get_device_name(device)
        found['cuda'] = torch.version.cuda
    return found


def describe_machine(found: Mapping[str, Any]) -> str:
    """One line on :func:`machine`'s result."""
    gpu = f'{found["gpu"]}, CUDA {found["cuda"]}; ' if 'gpu' in found else ''
    return (
        f'{gpu}{found["cores"]} cores of {found["processor"]}, {found["threads"]} threads, '
        f'PyTorch {found["torch"]}, Python {found["python"]}'
    )


def write_section(section: Section, folder: str | Path, where: Mapping[str, Any]) -> Path:
    """Write ``<folder>/<name>.json`` and return its path."""
    path = Path(folder) / f'{section.name}.json'
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({'schema': 1, 'machine': dict(where), **asdict(section)}, indent=1) + '\n')
    return path
