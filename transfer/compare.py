"""Compare logged trainings of any origin: groups of runs, their means, and how sure their differences are."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sd_pretrain.cli import InputError, named_folder
from sd_pretrain.markdown import markdown_table
from transfer.logs import LoggedRun, read_run
from transfer.statistics import Interval, seed_difference

FORMATS = ('terminal', 'markdown', 'csv', 'json', 'latex', 'html')
_SEED = re.compile(r'seed[_-]?(\d+)')


@dataclass(frozen=True)
class Line:
    """A group of runs in one metric, in the unit of the log.

    Args:
        name: the group.
        metric: the metric.
        values: by seed (without one, by folder) the value of each run.
        difference: to the first group, with its interval; ``None`` for that one, or with single runs.
        change: the difference itself; ``None`` for the first group.
    """

    name: str
    metric: str
    values: dict[int | str, float]
    change: float | None
    difference: Interval | None

    @property
    def mean(self) -> float:
        """Mean over the runs."""
        return fmean(self.values.values())

    @property
    def sd(self) -> float | None:
        """Standard deviation over the runs, ``None`` for one."""
        return stdev(self.values.values()) if len(self.values) > 1 else None


def group_runs(arguments: Sequence[str]) -> dict[str, dict[int | str, LoggedRun]]:
    """Read ``[NAME=]WORK_DIR`` arguments; the first group is the baseline.

    A folder of ``seed<k>`` folders is a group of runs, and so are several arguments under one name.

    Returns:
        By name and seed; a run whose folder names no seed stands under its folder, so that it makes no pair
        with a run of another group.

    Raises:
        InputError: a folder is missing, or has no log; a group has no run, or one seed twice; two folders
            without ``NAME=`` would have the same name.
    """
    groups: dict[str, dict[int | str, LoggedRun]] = {}
    places: dict[str, Path] = {}
    for argument in arguments:
        name, where = named_folder(argument)
        path = Path(where)
        seeds = sorted(one for one in path.glob('seed*') if one.is_dir() and _SEED.fullmatch(one.name))
        folders = seeds or [path]
        if not name:
            place = (path.parent if _SEED.fullmatch(path.name) else path).resolve()
            name = place.name
            if places.setdefault(name, place) != place:
                raise InputError(f'{places[name]} and {place} are both called {name}: say NAME={place}')
        if not path.is_dir():
            raise InputError(f'no work dir {path}')
        group = groups.setdefault(name, {})
        for folder in folders:
            match = _SEED.fullmatch(folder.name)
            seed = int(match.group(1)) if match else str(folder)
            if seed in group:
                what = f'seed {seed}' if match else 'a folder'
                raise InputError(f'{name} has {what} twice: {group[seed].work_dir} and {folder}')
            group[seed] = read_run(folder)
    if not groups:
        raise InputError('no work dir given')
    return groups


def require_same_test(groups: Mapping[str, Mapping[int | str, LoggedRun]]) -> None:
    """Refuse to compare runs that were tested differently, as far as their configs tell.

    Raises:
        InputError: other datasets, image lists or settings of the evaluation; says what differs.
    """
    runs = [run for group in groups.values() for run in group.values()]
    for run in runs[1:]:
        differ = [
            f'{key} is {value} and {run.tested_on[key]}'
            for key, value in runs[0].tested_on.items()
            if key in run.tested_on and run.tested_on[key] != value
        ]
        if differ:
            raise InputError(f'{runs[0].work_dir} and {run.work_dir} cannot be compared: {"; ".join(differ)}')


def compare_runs(
    groups: Mapping[str, Mapping[int | str, LoggedRun]], metrics: Sequence[str] | None = None
) -> list[Line]:
    """Compare every group with the first, metric by metric.

    Args:
        groups: of :func:`group_runs`.
        metrics: names as logged; default: all that every run has, but for those without a number in any.

    Raises:
        InputError: a run has not come to its end, lacks a metric (lists those it has), or its value is no
            number. Or see :func:`require_same_test`.
    """
    require_same_test(groups)
    runs = [run for group in groups.values() for run in group.values()]
    for run in runs:
        if run.half_written:
            raise InputError(
                f'{run.work_dir} is half-written: its last evaluation is at {run.evaluated_at} of '
                f'{run.planned}; let the run come to its end'
            )
    if not metrics:
        metrics = [name for name in runs[0].metrics if all(name in run.metrics for run in runs)]
        if not metrics:
            raise InputError(
                'the runs share no metric: '
                + '; '.join(f'{r.work_dir} has {", ".join(r.metrics)}' for r in runs)
            )
        known = [name for name in metrics if any(math.isfinite(run.metrics[name]) for run in runs)]
        metrics = known or metrics
    lines = []
    for metric in metrics:
        for run in runs:
            if metric not in run.metrics:
                raise InputError(f'{run.work_dir} has no metric {metric}; it has {", ".join(run.metrics)}')
            if not math.isfinite(run.metrics[metric]):
                raise InputError(f'{run.work_dir}: {metric} of the last evaluation is {run.metrics[metric]}')
        first: dict[int | str, float] | None = None
        for name, group in groups.items():
            values = {seed: run.metrics[metric] for seed, run in group.items()}
            if first is None:
                first = values
                lines.append(Line(name, metric, values, None, None))
            else:
                change = fmean(values.values()) - fmean(first.values())
                found = seed_difference(values, first)
                # Values rounded for the log can agree to its last digit: nothing is known of their scatter.
                known = found is not None and found.error > 1e-9
                lines.append(Line(name, metric, values, change, found if known else None))
    return lines


def write(lines: Sequence[Line], fmt: str) -> str:
    """The comparison as text.

    Args:
        lines: of :func:`compare_runs`.
        fmt: one of ``FORMATS``; ``'latex'`` needs the package booktabs.
    """
    if fmt == 'json':
        return json.dumps([_as_json(line) for line in lines], indent=2)
    head = ['metric', 'runs of', 'n', 'mean', 's.d.', 'difference', '95% CI']
    body = [_cells(line) for line in lines]
    if fmt == 'csv':
        out = io.StringIO()
        csv.writer(out, lineterminator='\n').writerows([head, *body])
        return out.getvalue().rstrip('\n')
    if fmt == 'markdown':
        return markdown_table(head, body, text_columns=2)
    if fmt == 'latex':
        first, *rest = (' & '.join(map(_latex, row)) + r' \\' for row in [head, *body])
        begin, end = r'\begin{tabular}{llrrrrr}', r'\end{tabular}'
        return '\n'.join([begin, r'\toprule', first, r'\midrule', *rest, r'\bottomrule', end])
    if fmt == 'html':
        cells = [''.join(f'<th scope="col">{html.escape(cell)}</th>' for cell in head)]
        cells += [''.join(f'<td>{html.escape(cell)}</td>' for cell in row) for row in body]
        rows = '\n'.join(f'<tr>{row}</tr>' for row in cells)
        return f'<table>\n<caption>Comparison of runs</caption>\n{rows}\n</table>'
    widths = [max(map(len, column)) for column in zip(head, *body, strict=True)]
    rows = [head, ['-' * width for width in widths], *body]
    return '\n'.join(
        '  '.join(
            cell.ljust(width) if place < 2 else cell.rjust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    )


def _cells(line: Line) -> list[str]:
    digits = 4 if abs(line.mean) <= 1 else 2
    known = line.difference
    return [
        line.metric,
        line.name,
        str(len(line.values)),
        f'{line.mean:.{digits}f}',
        '' if line.sd is None else f'{line.sd:.{digits}f}',
        '' if line.change is None else f'{line.change:+.{digits}f}',
        ''
        if line.change is None
        else '?'
        if known is None
        else f'[{known.low:+.{digits}f}, {known.high:+.{digits}f}]',
    ]


def _as_json(line: Line) -> dict[str, Any]:
    known = line.difference
    return {
        'metric': line.metric,
        'name': line.name,
        'values': {str(seed): value for seed, value in line.values.items()},
        'mean': line.mean,
        'sd': line.sd,
        'difference': line.change,
        'low': None if known is None else known.low,
        'high': None if known is None else known.high,
        'p': None if known is None or math.isnan(known.p) else known.p,
    }


def _latex(cell: str) -> str:
    escaped = re.sub(r'([&%$#_{}])', r'\\\1', cell.replace('\\', r'\textbackslash '))
    escaped = escaped.replace('~', r'\textasciitilde ').replace('^', r'\textasciicircum ')
    return re.sub(r'^\+|(?<=[\[ ])\+', '$+$', re.sub(r'^-(?=\d)|(?<=[\[ ])-(?=\d)', '$-$', escaped))
