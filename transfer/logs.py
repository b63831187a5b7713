"""The metrics of any mmengine training, out of its own logs: mmdet's, mmseg's, mmpretrain's or ours."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sd_pretrain.cli import InputError
from sd_pretrain.curves import in_order

# What mmengine logs beside the metrics of an evaluation.
_NO_METRIC = {'step', 'epoch', 'iter', 'time', 'data_time', 'memory', 'lr', 'base_lr', 'loss', 'momentum'}
_TRAINING = re.compile(r'\bIter\(train\) *\[ *(?P<step>\d+)/\d+\]')
_EVALUATION = re.compile(
    r'\b(?:Epoch|Iter)\((?P<part>val|test)\) *(?:\[ *(?P<step>\d+)\])? *\[ *\d+/\d+\](?P<rest>.*)'
)


@dataclass(frozen=True)
class LoggedRun:
    """A training as its logs tell it.

    Args:
        work_dir: where they are.
        metrics: by name the last value of each metric, in the unit of the log; NaN for a class that no
            test image shows.
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
        InputError: there is no such folder, no log in it, or no evaluation in the log.
    """
    work_dir = Path(work_dir)
    if not work_dir.is_dir():
        raise InputError(f'no work dir {work_dir}')
    scalars = sorted([*work_dir.glob('vis_data/scalars.json'), *work_dir.glob('*/vis_data/scalars.json')])
    texts = sorted([*work_dir.glob('*.log'), *work_dir.glob('*/*.log')])
    texts = [path for path in texts if path.name != 'stdout.log'] or texts
    metrics: dict[str, float] = {}
    evaluated_at, part = None, 'val'  # mmengine writes no scalars of a test
    cfg = _config(work_dir)
    planned, lag = _planned(cfg)
    logs = [_last_of_scalars(path) for path in scalars]
    # Of a run by iterations, what is between two lines of its log is as an epoch.
    for found, step, _ in in_order(logs, lambda log: [-(-one // (lag + 1)) for one in log[2]]):
        metrics |= found
        evaluated_at = step or evaluated_at
    # A half-written or foreign scalars.json may have no evaluation; the text has the rounded values.
    if not metrics:
        for path in texts:
            found, step, last = _last_of_text(path)
            metrics |= found
            part = last or part
            evaluated_at = step or evaluated_at
    if not scalars and not texts:
        raise InputError(
            f'{work_dir} holds no log of mmengine: neither vis_data/scalars.json nor a .log file'
        )
    if not metrics:
        raise InputError(f'{work_dir} has a log, but no evaluation in it yet')
    if planned and evaluated_at and planned - lag <= evaluated_at:
        evaluated_at = planned
    return LoggedRun(work_dir, metrics, _tested_on(cfg, part), evaluated_at, planned)


def _last_of_scalars(path: Path) -> tuple[dict[str, float], int, list[int]]:
    """The last metrics, the epoch or iteration of their evaluation, and those of all lines; 0: unknown."""
    last: dict[str, float] = {}
    step = trained = 0
    steps = []
    for text in path.read_text(errors='replace').splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
        if not isinstance(line, dict):
            continue
        if 'loss' in line:
            trained = line.get('iter', trained)
            steps.append(line.get('epoch', trained))
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
        if found and 'epoch' not in line and 'iter' not in line:
            last |= found
            # 0 in runs by iterations, where mmengine's LoggerHook is not told so (log_metric_by_epoch).
            step = line.get('step') or trained
            steps.append(step)
    return last, step, steps or [0]


def _last_of_text(path: Path) -> tuple[dict[str, float], int, str]:
    """As :func:`_last_of_scalars`, and whether it was ``'val'`` or ``'test'`` (``''`` without any)."""
    last: dict[str, float] = {}
    step = trained = 0
    part = ''
    for line in path.read_text(errors='replace').splitlines():
        if training := _TRAINING.search(line):
            trained = int(training['step'])
        match = _EVALUATION.search(line)
        found = dict(_values(match['rest'])) if match else {}
        if found:
            last |= found
            step, part = int(match['step'] or trained), match['part']
    return last, step, part


def _values(text: str) -> Iterator[tuple[str, float]]:
    """Metrics of a line of the text log, two spaces apart; names of classes may have one in them."""
    for part in re.split(r' {2,}|\t', text):
        key, _, value = part.strip().rpartition(': ')
        with suppress(ValueError):
            if key and key not in _NO_METRIC:
                yield key, float(value)


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


def _planned(cfg: Config | None) -> tuple[int | None, int]:
    """Epochs or iterations of the whole training, if that is certain, and how far the log may lag behind."""
    cfg = cfg or {}
    train = cfg.get('train_cfg') or {}
    if any(hook.get('type') == 'EarlyStoppingHook' for hook in cfg.get('custom_hooks') or ()):
        return None, 0
    if not train.get('max_iters'):
        return train.get('max_epochs'), 0
    logger = (cfg.get('default_hooks') or {}).get('logger') or {}
    return train['max_iters'], logger.get('interval', 10) - 1


def _tested_on(cfg: Config | None, part: str) -> dict[str, Any]:
    """What a config says of the test images and the metrics of its ``'val'`` or ``'test'``."""
    if cfg is None:
        return {}
    loader, evaluator = (
        cfg.get(f'{part}_{what}') or cfg.get(f'val_{what}') or cfg.get(f'test_{what}')
        for what in ('dataloader', 'evaluator')
    )
    dataset = loader.dataset
    return {
        'dataset': dataset.get('type'),
        # Without a list of images it is all of a folder.
        'image list': dataset.get('ann_file') or dataset.get('data_prefix') or dataset.get('split') or '',
        'evaluation': _evaluators(evaluator),
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
