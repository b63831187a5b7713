"""Table 2 in Markdown and JSON: ours beside the paper's, and no difference without its uncertainty."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sd_pretrain.paper_table import settings_note
from sd_pretrain.run_record import RESULT
from sd_pretrain.work_dir import write_json

# By student and teacher: the place of their starts among (0, 75, 150). The caption says error rates, but
# these are accuracies in percent, as Section 3.3.2 says of them; averages of two runs.
PAPER = {(0, 0): 78.13, (1, 0): 78.18, (1, 1): 78.02, (2, 0): 77.67, (2, 1): 77.58, (2, 2): 77.47}
# "the average of [the three teachers] is 77.65%" (Section 3.3.2); the row "self" is not printed.
PAPER_SELF = 77.65
PAPER_NET, PAPER_EPOCHS = 'densenet100', 300
# It states none for this table; that of its other CIFAR-100 runs (Section 4.1.1).
TEMPERATURE = 2.0


def write_table2(
    work_dir: Path,
    *,
    net: str,
    epochs: int,
    starts: Sequence[int],
    temperature: float,
    quick: bool,
    options: Sequence[str],
    amp: bool,
    counts: Mapping[str, int],
    repetitions: Mapping[int, Mapping[str, Path]],
) -> Path:
    """Collect the results of finished runs, and write ``table2.json`` and ``table2.md``.

    Args:
        work_dir: where to.
        net: the network.
        epochs: length of each run.
        starts: the three numbers of common epochs.
        temperature: of the teachers' logits.
        quick: whether this was the small version.
        options: what was set besides.
        amp: whether training was in bfloat16.
        counts: images and classes of the data.
        repetitions: by seed, the work dirs by ``'M'``, ``'T<start>'`` and ``'S<start> T<start>'``.

    Returns:
        The path of ``table2.md``.
    """
    found = {
        str(seed): {
            name: json.loads((folder / RESULT).read_text())['top1'] for name, folder in folders.items()
        }
        for seed, folders in repetitions.items()
    }
    own = {seed: fmean(runs[f'T{start}'] for start in starts) for seed, runs in found.items()}
    cells = []
    for (s, t), paper in PAPER.items():
        values = {seed: runs[f'S{starts[s]} T{starts[t]}'] for seed, runs in found.items()}
        cells.append({'student': starts[s], 'teacher': starts[t], 'top1': values, 'paper': paper / 100})
    table = {
        'schema': 1,
        'net': net,
        'epochs': epochs,
        'starts': list(starts),
        'temperature': temperature,
        'quick': quick,
        'options': list(options),
        'amp': amp,
        'counts': dict(counts),
        'comparable': not quick
        and not settings_note(options, amp)
        and (net, epochs, temperature) == (PAPER_NET, PAPER_EPOCHS, TEMPERATURE),
        'self': {'top1': own, 'paper': PAPER_SELF / 100},
        'whole': {seed: runs['M'] for seed, runs in found.items()},
        'teachers': {
            str(start): {seed: runs[f'T{start}'] for seed, runs in found.items()} for start in starts
        },
        'cells': cells,
    }
    write_json(work_dir / 'table2.json', table)
    path = work_dir / 'table2.md'
    path.write_text(table2_markdown(table))
    return path


def table2_markdown(table: Mapping[str, Any]) -> str:
    """The table; ``table`` is the content of ``table2.json``, its accuracies fractions."""
    starts, own = table['starts'], table['self']
    cells = {(cell['student'], cell['teacher']): cell for cell in table['cells']}
    runs = len(own['top1'])
    lines = [f'# Table 2: {table["net"]}, CIFAR-100, {table["epochs"]} epochs', '']
    if not table['comparable']:
        small = '**Quick: few images and epochs, to see it work.** ' if table['quick'] else ''
        said = [f"{small}The settings are not the paper's: the numbers cannot be compared with its."]
        lines += [*said, *settings_note(table['options'], table['amp']), '']
    lines += [
        f'Top-1 accuracy in percent, {runs} run{"s" * (runs > 1)} each, and in brackets that of the paper',
        '(averages of two runs; its caption calls them error rates). ± is the standard error of the mean, ?',
        'where one run does not tell.',
        '',
        '| student | ' + ' | '.join(f'#{start}^T' for start in starts) + ' |',
        '| :-- | ' + ' | '.join('--:' for _ in starts) + ' |',
        '| self | ' + ' | '.join(_mean(table['teachers'][str(start)]) for start in starts) + ' |',
    ]
    for student in starts:
        shown = [_cell(cells.get((student, teacher))) for teacher in starts]
        lines.append(f'| #{student} | ' + ' | '.join(shown) + ' |')
    lines += [
        '',
        f'The mean of the three teachers: {_cell(own)}. The run they share their beginnings with, '
        f'#{table["epochs"]}: {_mean(table["whole"])}. Teacher #E^T and student #E share the first E '
        'epochs of that run, and its initial weights. '
        f'T = {table["temperature"]:g} (the paper does not say for this table).',
        '',
        '| difference | ours | paper |',
        '| :-- | --: | --: |',
    ]
    for name, one, other in _differences(starts, cells, own):
        paper = f'{100 * (one["paper"] - other["paper"]):+.2f} ± ?'
        lines.append(f'| {name} | {_difference(one["top1"], other["top1"])} | {paper} |')
    return '\n'.join(lines) + '\n'


def _differences(starts: Sequence[int], cells: Mapping, own: Mapping) -> list[tuple[str, Mapping, Mapping]]:
    """What the paper's text compares: each student with the teachers, and the teachers of one student."""
    rows = [(f'#{s} by #{t}^T - self', cell, own) for (s, t), cell in cells.items()]
    for student in starts:
        taught = [(teacher, cells[student, teacher]) for teacher in starts if (student, teacher) in cells]
        for (first, one), (second, other) in pairwise(taught):
            rows.append((f'#{student}: by #{first}^T - by #{second}^T', one, other))
    return rows


def _cell(cell: Mapping[str, Any] | None) -> str:
    return '—' if cell is None else f'{_mean(cell["top1"])} ({100 * cell["paper"]:.2f})'


def _mean(values: Mapping[Any, float]) -> str:
    return f'{100 * fmean(values.values()):.2f} ± {_error(list(values.values()))}'


def _difference(one: Mapping[Any, float], other: Mapping[Any, float]) -> str:
    # Of one seed, both sides share their beginning: seed by seed, what they share cancels.
    by_seed = [one[seed] - other[seed] for seed in one]
    return f'{100 * fmean(by_seed):+.2f} ± {_error(by_seed)}'


def _error(values: Sequence[float]) -> str:
    """Standard error of the mean, in percent."""
    return '?' if len(values) < 2 else f'{100 * stdev(values) / math.sqrt(len(values)):.2f}'
