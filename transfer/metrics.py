"""The stock VOC metrics that configs name, and the exact ones that stand in for them in fine-tuning.

mmdet and mmseg alone therefore run the configs as they are.
"""

from __future__ import annotations

import importlib
from typing import NamedTuple


class _Exact(NamedTuple):
    """A metric of ours: its name, and the module that registers it, which needs mmdet or mmseg."""

    name: str
    module: str


_EXACT = {
    'VOCMetric': _Exact('ExactVOCMetric', 'transfer.voc_metric'),
    'IoUMetric': _Exact('ExactIoUMetric', 'transfer.iou_metric'),
}


def use_exact_metrics(evaluator: dict | list) -> dict | list:
    """Return an evaluator config with mmdet's and mmseg's VOC metrics replaced by ours, which are imported.

    Several ``VOCMetric`` that differ in ``eval_mode`` and ``prefix`` alone become one, which matches the
    boxes once.
    """
    if not isinstance(evaluator, list | tuple):
        exact = _EXACT.get(evaluator['type'])
        if exact is None:
            return dict(evaluator)
        importlib.import_module(exact.module)
        return {**evaluator, 'type': exact.name}
    found: list[dict] = []
    for one in map(use_exact_metrics, evaluator):
        leader = next((earlier for earlier in found if _shares(earlier, one)), None)
        if leader is None:
            found.append(one)
        else:
            leader['also'] = {**leader.get('also', {}), one['prefix']: one.get('eval_mode', '11points')}
    return found


def _shares(earlier: dict, one: dict) -> bool:
    own = ('eval_mode', 'prefix', 'also')
    first, second = ({key: value for key, value in part.items() if key not in own} for part in (earlier, one))
    return one['type'] == 'ExactVOCMetric' and first == second and {'prefix'} <= earlier.keys() & one.keys()
