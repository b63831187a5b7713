"""``table5.json``: the machine-readable result of a whole run, its schema, and the Markdown made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from pathlib import Path
from statistics import fmean
from typing import Any

from sd_pretrain.cli import InputError
from sd_pretrain.markdown import markdown_table
from sd_pretrain.work_dir import read_json
from transfer.evidence import compare, compare_classes
from transfer.table import Row, format_rows, papers_setting, rows
from transfer.tasks import TASKS, all_datasets

SCHEMA = 1


def build_table5(
    results: Sequence[Mapping[str, Any]],
    *,
    data: str,
    stages: Sequence[Mapping[str, Any]],
    pretrain: Mapping[str, Mapping[str, float]] | None = None,
    baseline: str | None = None,
) -> dict[str, Any]:
    """Make the content of ``table5.json`` from the results of fine-tuning.

    Args:
        results: contents of ``result.json`` files (:func:`transfer.results.collect`); with their ``work_dir``
            the verdicts count the test images as a sample too.
        data: ``'demo'`` or ``'real'``.
        stages: ``{'name', 'seconds'}`` of each stage, in the order they ran.
        pretrain: for each backbone's name ``top1``, ``top5`` (fractions) and ``seconds``, where known.
        baseline: name of the backbone that the others are compared with; default: the first result's.

    Raises:
        InputError: see :func:`transfer.table.rows`.
    """
    backbones = []
    for row in rows(results, baseline):
        mine = [one for one in results if one['name'] == row.name]
        known = (pretrain or {}).get(row.name)
        entry = {
            'name': row.name,
            'arch': mine[0].get('arch'),
            'checkpoint': mine[0].get('backbone'),
            'sha256': mine[0].get('sha256'),
            'pretrain': {key: (known or {}).get(key) for key in ('top1', 'top5', 'seconds')},
        }
        if row.pretrainings:
            entry['pretrainings'] = _pretrainings(mine)
        for dataset in all_datasets().values():
            metric, *others = (one.name for one in dataset.metrics)
            runs = [one for one in mine if one['task'] == dataset.task and metric in one['metrics']]
            if runs:
                entry[dataset.key] = _entry(row, metric, runs) | {
                    other: _entry(row, other) for other in others if row.values.get(other)
                }
        backbones.append(entry)
    table5 = {
        'schema': SCHEMA,
        'data': data,
        'papers_setting': data == 'real' and papers_setting(results),
        'backbones': backbones,
        'comparisons': [one.as_json() for one in compare(results, baseline)],
        'class_comparisons': _class_comparisons(results, [one['name'] for one in backbones]),
        'stages': list(stages),
        'seconds': sum(stage['seconds'] for stage in stages),
    }
    validate_table5(table5)
    return table5


def _class_comparisons(results: Sequence[Mapping[str, Any]], names: Sequence[str]) -> list[dict[str, Any]]:
    """Every class of every backbone but the first, against that one; p-values adjusted for their number."""
    return [
        {
            'name': name,
            'task': task,
            'class': one.name,
            'difference': one.interval.value,
            'low': one.interval.low,
            'high': one.interval.high,
            'p_holm': one.p,
        }
        for task in TASKS
        for name in names[1:]
        for one in compare_classes(results, name, names[0], task)
    ]


def _pretrainings(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The backbones of a method, by seed."""
    found = {one['seed']: one for one in runs}
    return [
        {'seed': seed, 'checkpoint': one.get('backbone'), 'sha256': one.get('sha256')}
        for seed, one in sorted(found.items())
    ]


def backbone_files(table5: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Name, arch, checkpoint and sha256 of each backbone; of a method those of each pretraining."""
    return [
        {'name': backbone['name'], 'arch': backbone.get('arch')}
        | {'checkpoint': one.get('checkpoint'), 'sha256': one.get('sha256')}
        | ({'name': f'{backbone["name"]}, seed {one["seed"]}'} if one is not backbone else {})
        for backbone in table5['backbones']
        for one in backbone.get('pretrainings') or [backbone]
    ]


def _entry(row: Row, metric: str, results: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    runs = row.values.get(metric, {})
    seeds = sorted(runs)
    entry = {
        'metric': metric,
        'seeds': seeds,
        'values': [runs[seed] for seed in seeds],
        'mean': row.mean(metric),
    }
    per_class = [one['per_class'] for one in results if one.get('per_class')]
    if per_class:
        # A class without a value in one of the runs has no mean over the same runs as the others.
        shared = [name for name in per_class[0] if all(name in one for one in per_class)]
        entry['per_class'] = {name: fmean(one[name] for one in per_class) for name in shared}
    return entry


def load_table5(path: str | Path) -> dict[str, Any]:
    """Read and validate a ``table5.json``.

    Raises:
        InputError: there is no such file, it does not parse, or it is none.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no file {path}; bash tools/table5.sh writes it')
    table5 = read_json(path, 'run tools/table5.sh again')
    validate_table5(table5, str(path))
    return table5


def validate_table5(table5: Any, where: str = 'table5') -> None:
    """Check the content of a ``table5.json`` against schema 1.

    Raises:
        InputError: an entry is missing or of the wrong kind; says which.
    """
    _need(isinstance(table5, dict), where, 'an object')
    schema = table5.get('schema')
    _need(schema == SCHEMA, f'{where}: schema', f'{SCHEMA} (found {schema!r})')
    _need(table5.get('data') in ('demo', 'real'), f'{where}: data', "'demo' or 'real'")
    _need(_is_number(table5.get('seconds')), f'{where}: seconds', 'a number')
    for key in ('backbones', 'stages'):
        _need(isinstance(table5.get(key), list), f'{where}: {key}', 'a list')
    _need(bool(table5['backbones']), f'{where}: backbones', 'at least one entry')
    for index, stage in enumerate(table5['stages']):
        at = f'{where}: stages[{index}]'
        _need(isinstance(stage, dict) and isinstance(stage.get('name'), str), f'{at}.name', 'a string')
        _need(_is_number(stage.get('seconds')), f'{at}.seconds', 'a number')
    for index, backbone in enumerate(table5['backbones']):
        _validate_backbone(backbone, f'{where}: backbones[{index}]')


def _validate_backbone(backbone: Any, at: str) -> None:
    _need(isinstance(backbone, dict) and isinstance(backbone.get('name'), str), f'{at}.name', 'a string')
    pretrain = backbone.get('pretrain') or {}
    _need(isinstance(pretrain, dict), f'{at}.pretrain', 'an object or null')
    for key in ('top1', 'top5'):
        value = pretrain.get(key)
        _need(value is None or _is_fraction(value), f'{at}.pretrain.{key}', 'a fraction of 0 to 1, or null')
    for dataset in all_datasets().values():
        key, metric = dataset.key, dataset.metrics[0].name
        entry = backbone.get(key)
        if entry is None:
            continue
        _need(isinstance(entry, dict) and entry.get('metric') == metric, f'{at}.{key}.metric', repr(metric))
        values = entry.get('values')
        _need(
            isinstance(values, list) and bool(values) and all(map(_is_fraction, values)),
            f'{at}.{key}.values',
            'a list of fractions of 0 to 1',
        )
        mean = entry.get('mean')
        _need(
            _is_fraction(mean) and abs(mean - fmean(values)) < 1e-9, f'{at}.{key}.mean', 'the mean of values'
        )


def _need(fulfilled: bool, where: str, expected: str) -> None:
    if not fulfilled:
        raise InputError(f'{where} must be {expected}; run tools/table5.sh again, or mend the file')


def _is_number(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool)


def _is_fraction(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def table5_rows(table5: Mapping[str, Any]) -> list[Row]:
    """The backbones of a ``table5.json`` as rows of the comparison table, in their order."""
    table = []
    for backbone in table5['backbones']:
        values = {}
        for dataset in all_datasets().values():
            metric, *others = (one.name for one in dataset.metrics)
            entry = backbone.get(dataset.key)
            if entry is None:
                continue
            for one in (entry, *(entry[other] for other in others if other in entry)):
                seeds = one.get('seeds') or range(len(one['values']))
                values[one.get('metric', metric)] = dict(zip(seeds, one['values'], strict=True))
        known = backbone.get('pretrain') or {}
        pretrain = {key: known[key] for key in ('top1', 'top5') if known.get(key) is not None}
        table.append(Row(backbone['name'], values, pretrain, bool(backbone.get('pretrainings'))))
    return table


def table5_markdown(table5: Mapping[str, Any]) -> str:
    """Write ``table5.md``: the table, its notes, the checkpoints and the stages with their times."""
    what = 'the embedded demo data' if table5['data'] == 'demo' else 'real data'
    paper = table5.get('papers_setting', False)
    parts = [f'# Table 5 on {what}', format_rows(table5_rows(table5), 'markdown', paper)]
    said = [f'- {one["text"]}' for one in table5.get('comparisons', ())]
    parts += ['## Verdicts', '\n'.join(said)] if said else []
    files = [(one['name'], f'`{one["checkpoint"]}`', f'`{one["sha256"]}`') for one in backbone_files(table5)]
    parts.append(markdown_table(['backbone', 'checkpoint', 'sha256'], files, text_columns=3))
    stages = [*table5['stages'], {'name': 'whole run', 'seconds': table5['seconds']}]
    times = [(stage['name'], f'{stage["seconds"]:.0f}') for stage in stages]
    parts.append(markdown_table(['stage', 'seconds'], times))
    return '\n\n'.join(parts) + '\n'
