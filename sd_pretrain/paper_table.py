"""Tables of errors as the paper prints them, the paper's number beside each of ours: JSON and Markdown."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from sd_pretrain.cli import COMPILE
from sd_pretrain.experiments import Algorithm
from sd_pretrain.work_dir import whole

SCHEMA = 1
NONE = '—'
_NAMES = 2  # columns of text, the backbone and the algorithm; the others are numbers
NOTE = (
    'Errors in percent; in brackets the paper\'s, one run each. "vs. BL": the last error minus that of BL, '
    'over the seeds that both have.'
)
ONE_SEED = '± ?: one seed: the uncertainty is not known.'
SEEDS = '± after a mean: standard deviation over the seeds; after a difference: its standard error.'


@dataclass(frozen=True)
class Column:
    """A column: key in the JSON, title, and how to find its value.

    ``read`` is given what :func:`sd_pretrain.evaluate.run_errors` says of a run, and the number of
    mini-generations that the table has; it gives ``None`` where the run has no such value.
    """

    key: str
    title: str
    read: Callable[[Mapping[str, Any], int], float | None]


@dataclass(frozen=True)
class Layout:
    """A table of the paper.

    Args:
        number: its number in the paper.
        columns: its columns, in order.
        last: key of the column that the difference to BL is taken of.
        generations: mini-generations of SE and SD.
        algorithms: the rows of a backbone.
        nets: from the nets of our configs to the paper's names.
        paper: ``paper[net][algorithm key]``: the paper's numbers, one a column; ``None`` where it has none.
    """

    number: int
    columns: tuple[Column, ...]
    last: str
    generations: int
    algorithms: tuple[Algorithm, ...]
    nets: Mapping[str, str]
    paper: Mapping[str, Mapping[str, Sequence[float | None]]]


def snapshot_column(k: int, title: str, metric: str = 'top1') -> Column:
    """The error of snapshot ``k``; BL's only one stands in the last place."""

    def read(found: Mapping[str, Any], generations: int) -> float | None:
        index = found['generations'] - 1 - (generations - k)
        return found['snapshots'][index][metric] if 0 <= index < len(found['snapshots']) else None

    return Column(f'L{k}' if metric == 'top1' else f'L{k}_{metric}', title, read)


def ensemble_column(title: str, metric: str = 'top1') -> Column:
    """The error of the ensemble of all snapshots."""
    key = 'ensemble' if metric == 'top1' else f'ensemble_{metric}'
    return Column(key, title, lambda found, _: found['ensemble'] and found['ensemble'][metric])


def build_table(
    layout: Layout,
    found: Mapping[tuple[str, str], Mapping[int, dict]],
    *,
    data: str,
    settings: Mapping[str, Any] | None = None,
    nets: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Make the content of the JSON file.

    Args:
        layout: the table.
        found: what :func:`sd_pretrain.table_runs.collect` gives.
        data: what the runs were trained and tested on.
        settings: what else is to be known of them.
        nets: those to show; default: those with at least one finished run.

    Returns:
        ``rows``, in the paper's order, each with ``values`` by column: ``seeds``, ``mean``, ``sd`` (n - 1,
        ``None`` for one seed) and ``paper``; errors in percent, not rounded.
    """
    if nets is None:
        nets = [net for net in layout.nets if any(found.get((net, a.key)) for a in layout.algorithms)]
    rows = []
    for net in nets:
        baseline = _seeds(layout, layout.last, found.get((net, 'bl'), {}))
        for algorithm in layout.algorithms:
            runs = found.get((net, algorithm.key), {})
            paper = layout.paper[net][algorithm.key]
            values = {
                column.key: _summary(_seeds(layout, column.key, runs), number)
                for column, number in zip(layout.columns, paper, strict=True)
            }
            rows.append(
                {
                    'backbone': layout.nets[net],
                    'net': net,
                    'algorithm': algorithm.name,
                    'temperature': algorithm.temperature,
                    'values': values,
                    'minus_bl': None if algorithm.name == 'BL' else minus(values[layout.last], baseline),
                    'runs': {str(seed): _details(run) for seed, run in runs.items()},
                }
            )
    return {
        'schema': SCHEMA,
        'table': layout.number,
        'data': data,
        'paper': f'Snapshot Distillation (CVPR 2019), Section 4.{layout.number - 2}, Table {layout.number}',
        'settings': dict(settings or {}),
        'rows': rows,
    }


def _seeds(layout: Layout, key: str, runs: Mapping[int, dict]) -> dict[str, float]:
    read = next(column.read for column in layout.columns if column.key == key)
    values = {str(seed): read(run, layout.generations) for seed, run in runs.items()}
    return {seed: value for seed, value in values.items() if value is not None}


def _details(run: Mapping[str, Any]) -> dict[str, Any]:
    kept = ('snapshots', 'best', 'ensemble', 'ensemble_of_logits', 'seconds', 'epochs')
    return {key: run[key] for key in kept if key in run}


def _summary(values: dict[str, float], paper: float | None) -> dict[str, Any]:
    return {
        'seeds': values,
        'mean': fmean(values.values()) if values else None,
        'sd': stdev(values.values()) if len(values) > 1 else None,
        'paper': paper,
    }


def minus(mine: Mapping[str, Any], baseline: Mapping[str, float]) -> dict[str, Any] | None:
    """The mean difference to the baseline over common seeds; these share their initial weights.

    Args:
        mine: an entry of ``values``.
        baseline: the baseline's values by seed.

    Returns:
        ``mean`` and ``standard_error`` (of the differences, ``None`` for one seed), ``None`` without a seed
        that both have.
    """
    pairs = [value - baseline[seed] for seed, value in mine['seeds'].items() if seed in baseline]
    if not pairs:
        return None
    error = stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
    return {'mean': fmean(pairs), 'standard_error': error, 'seeds': len(pairs)}


def markdown(layout: Layout, table: Mapping[str, Any], notes: Sequence[str] = ()) -> str:
    """The table in Markdown, its columns aligned, with what the numbers mean below it."""
    head = ['Backbone', 'Alg.', 'T', *(column.title for column in layout.columns), 'vs. BL']
    body = []
    for row in table['rows']:
        cells = [_cell(row['values'][column.key]) for column in layout.columns]
        temperature = row['temperature']
        shown = 'N/A' if temperature is None else f'{temperature:g}'
        body.append([row['backbone'], row['algorithm'], shown, *cells, _difference(row['minus_bl'])])
    widths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    lines = [_line(head, widths), _line(_ruler(widths), widths)]
    lines += [_line(cells, widths) for cells in body]
    several = any(value['sd'] is not None for row in table['rows'] for value in row['values'].values())
    single = any((row['minus_bl'] or {'seeds': 2})['seeds'] == 1 for row in table['rows'])
    said = [NOTE, *([SEEDS] if several else []), *([ONE_SEED] if single else []), *notes]
    return '\n'.join([*lines, '', *said]) + '\n'


def settings_note(options: Sequence[str], amp: bool) -> list[str]:
    """A sentence on settings that are not the paper's, if there are any.

    Args:
        options: ``KEY=VALUE`` that the user has set.
        amp: whether training was in bfloat16.
    """
    ours = [*(['bfloat16 mixed precision'] if amp else []), *(one for one in options if one != COMPILE)]
    return [f'Settings of ours: {"; ".join(ours)}.'] if ours else []


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    names, numbers = (
        zip(cells[:_NAMES], widths, strict=False),
        zip(cells[_NAMES:], widths[_NAMES:], strict=True),
    )
    aligned = [*(cell.ljust(width) for cell, width in names), *(cell.rjust(width) for cell, width in numbers)]
    return f'| {" | ".join(aligned)} |'


def _ruler(widths: Sequence[int]) -> list[str]:
    return ['-' * width if place < _NAMES else '-' * (width - 1) + ':' for place, width in enumerate(widths)]


def _cell(value: Mapping[str, Any]) -> str:
    if value['mean'] is None and value['paper'] is None:
        return NONE
    ours = NONE if value['mean'] is None else f'{value["mean"]:.2f}'
    spread = '' if value['sd'] is None else f' ± {value["sd"]:.2f}'
    return f'{ours}{spread} ({NONE if value["paper"] is None else format(value["paper"], ".2f")})'


def _difference(value: Mapping[str, Any] | None) -> str:
    if value is None:
        return NONE
    error = value['standard_error']
    return f'{value["mean"]:+.2f} ± {"?" if error is None else format(error, ".2f")}'


def write_table(
    layout: Layout, table: Mapping[str, Any], work_dir: Path, notes: Sequence[str] = ()
) -> tuple[Path, Path]:
    """Write ``table<number>.json`` and ``.md`` into ``work_dir``; returns their paths."""
    paths = work_dir / f'table{layout.number}.json', work_dir / f'table{layout.number}.md'
    title = f'# Table {layout.number}: {table["data"]}\n\n'
    texts = json.dumps(table, indent=2, ensure_ascii=False) + '\n', title + markdown(layout, table, notes)
    for path, text in zip(paths, texts, strict=True):
        with whole(path) as part:
            part.write_text(text)
    return paths
