"""The comparison table: backbones in rows, what they reach after fine-tuning, and by how much they differ.

Every difference is printed with its uncertainty: the standard error of the difference of two means where both
backbones were run with several seeds, and ``± ?`` where a single run leaves it unknown.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sd_pretrain.cli import InputError
from sd_pretrain.markdown import markdown_table
from transfer.check_data import FULL_VOC07, FULL_VOC12
from transfer.results import require_comparable
from transfer.tasks import DATASETS, TABLE5, all_metrics

ACCURACIES = {'top1': 'top-1', 'top5': 'top-5'}
# Tables 4 (ResNet-152, ILSVRC2012; errors there, accuracies here) and 5 of the paper, as fractions.
PAPER = {
    'BL': {'top1': 0.7883, 'top5': 0.9434, 'mAP_11point': 0.7349, 'mIoU': 0.7753},
    'SD': {'top1': 0.7907, 'top5': 0.9445, 'mAP_11point': 0.7493, 'mIoU': 0.7797},
}
PAPER_ARCH = 'resnet152'
PAPER_CONFIGS = tuple(Path(DATASETS[pair].config.format(network='r152')) for pair in TABLE5)
# In each list, those to train on first.
PAPER_IMAGES = {'det': [*FULL_VOC07.values()], 'seg': [*FULL_VOC12.values()]}
_ROOT = Path(__file__).resolve().parents[1]
PAPER_NOTE = (
    'paper: Tables 4 and 5, ResNet-152 on ILSVRC2012 and PASCAL VOC, one run each; it says mAP only, which '
    "stands under 11-point here, VOC2007's own"
)
_ONE_RUN = '± ?: one run each: how much runs scatter is not known'
_SOME_SINGLE = '± ?: a single run on one side or both: how much runs scatter is not known'
_NO_SCATTER = '± -: the same in every run; what is left to chance are the test images'
_SEVERAL = (
    '± after a mean: standard deviation over the seeds; after a difference: its standard error, unpaired'
)


@dataclass(frozen=True)
class Difference:
    """A mean minus the mean of the baseline; ``error`` is its standard error, ``None`` if unknown.

    0 means that all runs of both sides are equal: nothing is known from them of the difference's chance.
    """

    value: float
    error: float | None


@dataclass(frozen=True)
class Row:
    """One backbone: ``values[metric][seed]`` after fine-tuning, and ``pretrain`` accuracies; fractions.

    With ``pretrainings`` it is a method, and each seed has a backbone of its own.
    """

    name: str
    values: dict[str, dict[int, float]]
    pretrain: dict[str, float] = field(default_factory=dict)
    pretrainings: bool = False

    def mean(self, metric: str) -> float | None:
        """Mean over the seeds, ``None`` where there is no run."""
        runs = self.values.get(metric)
        return fmean(runs.values()) if runs else None

    def sd(self, metric: str) -> float | None:
        """Standard deviation of a single run over the seeds (n - 1), ``None`` with less than two runs."""
        runs = self.values.get(metric, {})
        return stdev(runs.values()) if len(runs) > 1 else None

    def minus(self, other: Row, metric: str) -> Difference | None:
        """Difference to another backbone's mean, with Welch's standard error ``sqrt(s1^2/n1 + s2^2/n2)``."""
        mine, theirs = self.mean(metric), other.mean(metric)
        if mine is None or theirs is None:
            return None
        deviations = (self.sd(metric), other.sd(metric))
        if None in deviations:
            return Difference(mine - theirs, None)
        counts = (len(self.values[metric]), len(other.values[metric]))
        error = math.sqrt(sum(s**2 / n for s, n in zip(deviations, counts, strict=True)))
        return Difference(mine - theirs, error)


def rows(
    results: Sequence[Mapping[str, Any]],
    baseline: str | None = None,
    pretrain: Mapping[str, Mapping[str, float]] | None = None,
) -> list[Row]:
    """Group results by backbone, the baseline first, the others as they come.

    Args:
        results: contents of ``result.json`` files.
        baseline: name of the baseline; default: the first result's.
        pretrain: for each name ``top1`` and ``top5``, as fractions, where they are known.

    Raises:
        InputError: no results, no such baseline, or runs under one name that do not belong together.
    """
    if not results:
        raise InputError('no finished fine-tuning to compare; run tools/transfer.sh first')
    names = list(dict.fromkeys(one['name'] for one in results))
    baseline = names[0] if baseline is None else baseline
    if baseline not in names:
        raise InputError(f'no results of the baseline {baseline!r}; there are {", ".join(names)}')
    require_comparable(results)
    grouped: dict[str, dict[str, dict[int, float]]] = {name: {} for name in names}
    for one in results:
        for metric, value in one['metrics'].items():
            runs = grouped[one['name']].setdefault(metric, {})
            if int(one['seed']) in runs:
                raise InputError(
                    f'two runs of {one["name"]} have {metric} of seed {one["seed"]}: another data set needs '
                    'metrics of its own; compare them in work dirs of their own'
                )
            runs[int(one['seed'])] = float(value)
    order = [baseline, *(name for name in names if name != baseline)]
    known = pretrain or {}
    files = {name: {one.get('sha256') for one in results if one['name'] == name} for name in names}
    return [Row(name, grouped[name], dict(known.get(name) or {}), len(files[name]) > 1) for name in order]


def papers_setting(results: Sequence[Mapping[str, Any]]) -> bool:
    """Whether the paper's numbers can stand beside these: its network and images, its configs as they are.

    ``--amp`` does not count, nor do tasks that the paper has not.
    """
    known = {metric for values in PAPER.values() for metric in values}
    papers = [one for one in results if known & set(one.get('metrics') or ())]
    return bool(papers) and all(
        one.get('arch') == PAPER_ARCH
        and one.get('images') == PAPER_IMAGES.get(one.get('task'))
        and Path(one.get('config') or '') in PAPER_CONFIGS
        and one.get('config_sha256') in _config_hashes(one['config'])
        for one in papers
    )


@cache
def _config_hashes(path: str) -> tuple[str, ...]:
    from transfer.run_record import config_sha256, load_config

    return tuple(config_sha256(load_config(_ROOT / path, amp=amp)) for amp in (False, True))


def format_table(
    results: Sequence[Mapping[str, Any]],
    baseline: str | None = None,
    fmt: str = 'terminal',
    paper: bool | None = None,
    pretrain: Mapping[str, Mapping[str, float]] | None = None,
) -> str:
    """Write results as a table of percentages with two decimals.

    Args:
        results: contents of ``result.json`` files.
        baseline: name of the baseline; default: the first result's.
        fmt: ``'terminal'`` (aligned text) or ``'markdown'``.
        paper: whether to add the paper's rows; default: where it is the paper's setting.
        pretrain: for each name ``top1`` and ``top5``, as fractions, where they are known.

    Raises:
        InputError: see :func:`rows`.
    """
    paper = papers_setting(results) if paper is None else paper
    return format_rows(rows(results, baseline, pretrain), fmt, paper)


def format_rows(table: Sequence[Row], fmt: str = 'terminal', paper: bool = False) -> str:
    """Write rows, the first of which is the baseline; see :func:`format_table`."""
    titles = {
        name: one.title for name, one in all_metrics().items() if any(row.values.get(name) for row in table)
    }
    accuracies = [key for key in ACCURACIES if any(key in row.pretrain for row in table)]
    header = ['backbone (%)', *(ACCURACIES[key] for key in accuracies)]
    for title in titles.values():
        header += [title, 'difference']
    lines = [[row.name, *_cells(row, table[0], accuracies, titles)] for row in table]
    if paper:
        reference = paper_rows()
        lines += [[row.name, *_cells(row, reference[0], accuracies, titles)] for row in reference]
    parts = [_layout(header, lines, fmt)]
    if any(len(runs) > 1 for row in table for runs in row.values.values()):
        parts.append(_layout(*_run_lines(table, titles), fmt))
    bullet = '- ' if fmt == 'markdown' else ''  # else its renderers make one paragraph of them
    parts.append('\n'.join(bullet + note for note in notes(table, paper)))
    return '\n\n'.join(parts)


def paper_rows() -> list[Row]:
    """The paper's BL and SD, one run each."""
    return [
        Row(
            f'paper: {name}',
            {metric: {0: values[metric]} for metric in all_metrics() if metric in values},
            {key: values[key] for key in ACCURACIES},
        )
        for name, values in PAPER.items()
    ]


def notes(table: Sequence[Row], paper: bool) -> list[str]:
    """What a reader must know about the numbers of a table."""
    counts = {len(runs) for row in table for runs in row.values.values()}
    said = [f'differences are to {table[0].name}']
    changes = [row.minus(table[0], metric) for row in table[1:] for metric in all_metrics()]
    errors = [change.error for change in changes if change is not None]
    if 0 in errors:
        said.append(_NO_SCATTER)
    if paper or None in errors:
        said.append(_ONE_RUN if max(counts, default=1) == 1 else _SOME_SINGLE)
    if any(count > 1 for count in counts):
        said.append(_SEVERAL)
    several = [row.name for row in table if row.pretrainings]
    if several:
        said.append(f'{", ".join(several)}: each seed has a pretraining of its own')
    return [*said, PAPER_NOTE] if paper else said


def percent(value: float | None, sd: float | None = None) -> str:
    """A fraction as percent with two decimals, with its standard deviation where there is one."""
    if value is None:
        return '-'
    return f'{100 * value:.2f}' + (f' ± {100 * sd:.2f}' if sd is not None else '')


def signed(difference: Difference | None) -> str:
    """A difference in percentage points, never without its uncertainty."""
    if difference is None:
        return '-'
    error = '?' if difference.error is None else f'{100 * difference.error:.2f}' if difference.error else '-'
    return f'{100 * difference.value:+.2f} ± {error}'


def _cells(row: Row, baseline: Row, accuracies: Sequence[str], metrics: Iterable[str]) -> list[str]:
    cells = [percent(row.pretrain.get(key)) for key in accuracies]
    for metric in metrics:
        cells.append(percent(row.mean(metric), row.sd(metric)))
        cells.append('' if row is baseline else signed(row.minus(baseline, metric)))
    return cells


def _run_lines(table: Sequence[Row], titles: Mapping[str, str]) -> tuple[list[str], list[list[str]]]:
    seeds = sorted({seed for row in table for runs in row.values.values() for seed in runs})
    lines = [
        [row.name, title, *(percent(row.values[metric].get(seed)) for seed in seeds)]
        for row in table
        for metric, title in titles.items()
        if row.values.get(metric)
    ]
    return ['each run (%)', 'metric', *(f'seed {seed}' for seed in seeds)], lines


def _layout(header: list[str], lines: list[list[str]], fmt: str) -> str:
    if fmt == 'markdown':
        return markdown_table(header, lines)
    if fmt != 'terminal':
        raise ValueError(f"fmt must be 'terminal' or 'markdown', found {fmt!r}")
    widths = [max(map(len, column)) for column in zip(header, *lines, strict=True)]
    rule = ['-' * width for width in widths]

    def aligned(line: list[str]) -> str:
        cells = [line[0].ljust(widths[0])] + [
            cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)
        ]
        return '  '.join(cells).rstrip()

    return '\n'.join(aligned(line) for line in [header, rule, *lines])
