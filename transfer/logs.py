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
        evaluated_at: epoch or iteration of the last evaluation, where the log says it.
        planned: epochs or iterations of the whole training, where the config says it.
    """

    work_dir: Path
    metrics: dict[str, float]
    tested_on: dict[str, Any] = field(default_factory=dict)
    evaluated_at: int | None = None
    planned: int | None = None

    @property
    def half_written(self) -> bool:
        """Whether the training has not come to its end, as far as that is known."""
        return self.evaluated_at is not None and self.planned is not None and self.evaluated_at < self.planned


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
    evaluated_at = None
    for path in scalars:
        found, step = _last_of_scalars(path)
        metrics |= found
        evaluated_at = step if step is not None else evaluated_at
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
    cfg = _config(work_dir)
    train = (cfg.get('train_cfg') if cfg else None) or {}
    planned = train.get('max_epochs') or train.get('max_iters')
    return LoggedRun(work_dir, metrics, _tested_on(cfg), evaluated_at, planned)


def _last_of_scalars(path: Path) -> tuple[dict[str, float], int | None]:
    last: dict[str, float] = {}
    step = None
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
            step = line.get('step', step) if found else step
    return last, step


def _last_of_text(path: Path) -> dict[str, float]:
    last: dict[str, float] = {}
    for line in path.read_text(errors='replace').splitlines():
        match = _EVALUATION.search(line)
        if match is None:
            continue
        pairs = ((one['key'], float(one['value'])) for one in _VALUE.finditer(match['rest']))
        last |= {key: value for key, value in pairs if key not in _NO_METRIC and key != 'eta'}
    return last


def _config(work_dir: Path) -> Config | None:
    """The config that mmengine leaves in a work dir."""
    for path in sorted([*work_dir.glob('*.py'), *work_dir.glob('vis_data/config.py')]):
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception:
            continue  # any Python file may lie there
        if 'dataset' in (cfg.get('val_dataloader') or cfg.get('test_dataloader') or {}):
            return cfg
    return None


def _tested_on(cfg: Config | None) -> dict[str, Any]:
    """What a config says of the test images and the metrics."""
    if cfg is None:
        return {}
    dataset = (cfg.get('val_dataloader') or cfg.get('test_dataloader')).dataset
    return {
        'dataset': dataset.get('type'),
        'image list': str(dataset.get('ann_file', '')),
        'evaluation': _evaluators(cfg.get('val_evaluator') or cfg.get('test_evaluator')),
    }


def _evaluators(evaluator: Any) -> list[str]:
    every = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    kept = ('eval_mode', 'metric', 'iou_metrics', 'iou_thrs', 'topk')
    said = []
    for one in every:
        one = dict(one or {})
        # Ours differ from the stock ones in rounding alone, and one may stand for several.
        for more in ({}, *({'eval_mode': mode} for mode in one.get('also', {}).values())):
            settings = [f'{key}={(one | more)[key]}' for key in kept if key in one]
            said.append(' '.join([str(one.get('type', '')).removeprefix('Exact'), *settings]))
    return sorted(said)
