"""The results of a transfer work dir: reading them, and whether they belong into one table."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import read_json
from transfer.tasks import TASKS, dataset_of

# What :func:`transfer.transfer_report.note_transfer` writes.
NOTED = 'transfer.json'
_NETWORK = re.compile(r'_(r\d+|timm)(?=-)')


def collect(root: str | Path, first: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Read every ``<task>_<dataset>/<name>/seed<k>/result.json`` under a transfer work dir.

    Those of the backbones ``first`` come first, in that order, then the others as in the last report, its
    baseline first. Each gets its folder, as ``work_dir``.

    Raises:
        InputError: ``root`` is missing, or a result does not parse or lacks an entry.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f'no work dir {root}; fine-tune first, with tools/transfer.sh')
    results = []
    for path in sorted(root.glob('*_*/*/seed*/result.json')):
        remedy = 'delete it and run tools/transfer.sh again'
        result = read_json(path, remedy)
        missing = {'name', 'task', 'seed', 'metrics'} - set(result if isinstance(result, dict) else ())
        if missing:
            raise InputError(f'{path} lacks {", ".join(sorted(missing))}; {remedy}')
        if result['task'] in TASKS and result.get('dataset'):
            dataset_of(result['task'], result['dataset'])  # from now on its metrics are known
        results.append(result | {'work_dir': str(path.parent)})
    order = list(dict.fromkeys([*first, *_last_order(root)]))
    places = {name: place for place, name in enumerate(order)}
    return sorted(results, key=lambda one: places.get(one['name'], len(places)))


def _last_order(root: Path) -> list[str]:
    """Names of the backbones of a work dir's last report; without one the paper's baseline."""
    try:
        return [one['name'] for one in json.loads((root / NOTED).read_text())['backbones']]
    except (OSError, ValueError, KeyError):
        return ['BL']


def require_comparable(results: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to average over two backbones under one name, or to compare runs of two recipes.

    The same recipe for two networks is one recipe.

    Args:
        results: contents of ``result.json`` files, or what is known of them before the runs.

    Raises:
        InputError: two backbones, configs, settings or image lists where there must be one; names them.
    """
    methods = {one['name'] for one in results if one.get('pretraining')}
    keys = (
        ('backbones', 'sha256', ('name',)),
        ('backbones', 'network_sha256', ('name',)),
        ('configs', 'config', ('task', 'dataset')),
        ('settings', 'config_sha256', ('config',)),
        ('image lists', 'lists_sha256', ('task', 'dataset')),
    )
    for what, key, parts in keys:
        seen: dict[str, str] = {}
        for one in results:
            by = ('name', 'seed') if what == 'backbones' and one.get('name') in methods else parts
            group = ' '.join(str(one[part]) for part in by if one.get(part) is not None)
            if key not in one or not group:
                continue
            found = one[key] or 'none'  # random weights are a backbone, too
            first = seen.setdefault(group, found)
            if _NETWORK.sub('', first) != _NETWORK.sub('', found):
                raise InputError(
                    f'results of {group!r} come from two {what}: {first} and {found}; '
                    'delete the ones that are not meant, or keep them in another work dir'
                )
    for name in methods:
        by_seed = {one['seed']: one['sha256'] for one in results if one['name'] == name}
        if len(set(by_seed.values())) < len(by_seed):
            raise InputError(
                f'{name} has several pretrainings, each for a seed of its own, and two of its seeds '
                f'({", ".join(map(str, sorted(by_seed)))}) are of the same one: '
                'delete the ones that are not meant, or keep them in another work dir'
            )


def on_demo_data(result: Mapping[str, Any]) -> bool:
    """Whether a ``result.json`` is of the emoji world, whatever the config."""
    return result.get('demo', 'demo' in Path(result.get('config') or '').parts)
