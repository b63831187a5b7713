"""The metrics of any mmengine training, out of its own logs: mmdet's, mmseg's, mmpretrain's or ours."""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sd_pretrain.cli import InputError

# What mmengine logs beside the metrics of an evaluation.
_NO_METRIC = {'step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'loss', 'momentum'}
_EVALUATION = re.compile(r'\b(?:Epoch|Iter)\((?:val|test)\) *(?:\[ *\d+\])? *\[ *\d+/\d+\](?P<rest>.*)')
_VALUE = re.compile(r'(?P<key>[^\s:]+): (?P<value>-?(?:\d+\.?\d*(?:e[+-]?\d+)?|nan|inf))(?=\s|$)', re.I)


@dataclass(frozen=True)
class LoggedRun:
    """A training as its logs tell it.

    Args:
        work_dir: where they are.
        metrics: by name the last value of each metric, in the unit of the log.
        tested_on: what is known of the evaluation: the dataset, its image list, the evaluators' settings.
    """

    work_dir: Path
    metrics: dict[str, float]
    tested_on: dict[str, Any] = field(default_factory=dict)


def read_run(work_dir: str | Path) -> LoggedRun:
    """Read a work dir: ``vis_data/scalars.json``, or the text log where that is all there is.

    The last evaluation counts, over all starts of the run. Half-written last lines are left out.

    Args:
        work_dir: a work dir with ``<timestamp>`` folders, or one of these.

    Raises:
        InputError: there is no such folder, no log in it, or no evaluation in the log; or the last value of a
            metric is no number.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise InputError(f'no work dir {work_dir}')
    scalars = sorted([*work_dir.glob('vis_data/scalars.json'), *work_dir.glob('*/vis_data/scalars.json')])
    texts = sorted([*work_dir.glob('*.log'), *work_dir.glob('*/*.log')])
    texts = [path for path in texts if path.name != 'stdout.log'] or texts
    metrics: dict[str, float] = {}
    for path in scalars:
        metrics |= _last_of_scalars(path)
    # A half-written or foreign scalars.json may have no evaluation; the text has the rounded values.
    if not metrics:
        for path in texts:
            metrics |= _last_of_text(path)
    if not scalars and not texts:
        raise InputError(
            f'{work_dir} holds no log of mmengine: neither vis_data/scalars.json nor a .log file'
        )
    if not metrics:
        raise InputError(f'{work_dir} has a log, but no evaluation in it yet')
    wrong = [key for key, value in metrics.items() if not math.isfinite(value)]
    if wrong:
        raise InputError(f'{work_dir}: {", ".join(wrong)} of the last evaluation is {metrics[wrong[0]]}')
    return LoggedRun(work_dir, metrics, _tested_on(work_dir))


def _last_of_scalars(path: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    for text in path.read_text(errors='replace').splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
        if not isinstance(line, dict) or 'loss' in line:
            continue
        found = {
            key: float(value)
            for key, value in line.items()
            if key not in _NO_METRIC
            and isinstance(value, int | float)
            and not isinstance(value, bool)
            and not key.startswith(('loss', 'lr', 'train/'))
        }
        # An evaluation logs the step that it comes after; what is logged while training has the epoch too.
        if 'epoch' not in line and 'iter' not in line:
            last |= found
    return last


def _last_of_text(path: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    for line in path.read_text(errors='replace').splitlines():
        match = _EVALUATION.search(line)
        if match is None:
            continue
        pairs = ((one['key'], float(one['value'])) for one in _VALUE.finditer(match['rest']))
        last |= {key: value for key, value in pairs if key not in _NO_METRIC and key != 'eta'}
    return last


def _tested_on(work_dir: Path) -> dict[str, Any]:
    """What the config that mmengine leaves in a work dir says of the test images and the metrics."""
    for path in sorted([*work_dir.glob('*.py'), *work_dir.glob('vis_data/config.py')]):
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception:
            continue  # any Python file may lie there
        loader = cfg.get('val_dataloader') or cfg.get('test_dataloader')
        if not loader or 'dataset' not in loader:
            continue
        dataset = loader.dataset
        return {
            'dataset': dataset.get('type'),
            'image list': str(dataset.get('ann_file', '')),
            'evaluation': _evaluators(cfg.get('val_evaluator') or cfg.get('test_evaluator')),
        }
    return {}


def _evaluators(evaluator: Any) -> list[str]:
    every = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    kept = ('eval_mode', 'metric', 'iou_metrics', 'iou_thrs', 'topk')
    said = []
    for one in every:
        one = dict(one or {})
        settings = [f'{key}={one[key]}' for key in kept if key in one]
        # Ours differ from the stock ones in rounding alone.
        said.append(' '.join([str(one.get('type', '')).removeprefix('Exact'), *settings]))
    return sorted(said)
