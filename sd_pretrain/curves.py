"""Training curves out of an mmengine work dir: ``<work_dir>/<timestamp>/vis_data/scalars.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from mmengine.config import Config

from sd_pretrain.cli import InputError
from sd_pretrain.schedule import snapshot_hooks

_TOP1 = 'accuracy/top1'
_LOGS = '*/vis_data/scalars.json'
_TRAIN_TOP1 = 'train/top1'
_T = TypeVar('_T')
_Points = list[tuple[float, float]]
_Log = tuple[dict[int, dict[str, Any]], dict[int, float], dict[int, float]]


@dataclass(frozen=True)
class Curves:
    """Points ``(epoch, value)`` of one training; ``boundaries`` are the epochs that ended with a snapshot.

    ``top1`` (of the validation images) and ``train_top1`` (of the epoch's training batches) are in percent.
    Epochs are fractional within an epoch for ``loss`` and ``lr``.
    """

    loss: _Points = field(default_factory=list)
    lr: _Points = field(default_factory=list)
    top1: _Points = field(default_factory=list)
    train_top1: _Points = field(default_factory=list)
    boundaries: list[int] = field(default_factory=list)

    @property
    def test_error(self) -> _Points:
        """Top-1 error of the validation images in percent, by epoch."""
        return [(epoch, 100 - value) for epoch, value in self.top1]

    @property
    def train_error(self) -> _Points:
        """Top-1 error of the epoch's training batches, augmented, in percent."""
        return [(epoch, 100 - value) for epoch, value in self.train_top1]


def has_log(work_dir: str | Path) -> bool:
    """Whether a work dir has a log of scalars, as a copy of its checkpoints alone has not."""
    return any(Path(work_dir).glob(_LOGS))


def read_curves(work_dir: str | Path) -> Curves:
    """Read the curves of a work dir, across resumes: where two runs overlap, the later one counts.

    Raises:
        InputError: the work dir has no log of scalars.
    """
    work_dir = Path(work_dir)
    logs = sorted(work_dir.glob(_LOGS))
    if not logs:
        raise InputError(
            f'{work_dir} holds no <timestamp>/vis_data/scalars.json: not the work dir of a training'
        )
    steps: dict[int, dict[str, Any]] = {}
    evaluations: dict[int, float] = {}
    accuracies: dict[int, float] = {}
    for train, val, train_top1 in in_order([_read(log) for log in logs], _epochs):
        if train:
            first = min(train)
            # The interrupted run went on to where nothing follows from: the resumed one started before that.
            steps = {step: line for step, line in steps.items() if step < first}
            epoch = train[first]['epoch']
            evaluations = {done: value for done, value in evaluations.items() if done < epoch}
            accuracies = {done: value for done, value in accuracies.items() if done < epoch}
        steps |= train
        evaluations |= val
        accuracies |= train_top1
    length = _epoch_length(steps.values())
    lines = [steps[step] for step in sorted(steps)]
    return Curves(
        loss=[(line['iter'] / length, line['loss']) for line in lines if _finite(line.get('loss'))],
        lr=[(line['iter'] / length, line['lr']) for line in lines if _finite(line.get('lr'))],
        top1=sorted((float(done), value) for done, value in evaluations.items()),
        train_top1=sorted((float(done), value) for done, value in accuracies.items()),
        boundaries=snapshot_epochs(work_dir)[:-1],
    )


def in_order(logs: list[_T], epochs: Callable[[_T], list[int]]) -> Iterator[_T]:
    """Logs, sorted by name, as they follow one another.

    mmengine names them by the local time, which may be an earlier one where a run is resumed: in another time
    zone, or after the end of summer time. Then the ``epochs`` of each tell: it begins at the latest where the
    one before ends.
    """
    reached = 0
    while logs:
        place = next((at for at, log in enumerate(logs) if min(epochs(log)) <= reached + 1), 0)
        log = logs.pop(place)
        reached = max(epochs(log))
        yield log


def _epochs(log: _Log) -> list[int]:
    train, *evaluations = log
    steps = [line['epoch'] for line in train.values()]
    return steps or [step for one in evaluations for step in one] or [0]


def _read(log: Path) -> _Log:
    """Training lines by iteration; top-1 accuracy in percent of validation and of training by epoch."""
    train, val, train_top1 = {}, {}, {}
    for text in log.read_text().splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue  # the last line of a run that was killed while it wrote
        if 'loss' in line and 'iter' in line and 'epoch' in line:
            train[int(line['iter'])] = line
        elif _finite(line.get(_TOP1)) and 'step' in line:
            val[int(line['step'])] = float(line[_TOP1])
        elif _finite(line.get(_TRAIN_TOP1)) and 'step' in line:
            train_top1[int(line['step'])] = float(line[_TRAIN_TOP1])
    return train, val, train_top1


def _epoch_length(lines: Iterable[dict[str, Any]]) -> int:
    """Iterations in an epoch, read off the lines: iteration i of epoch e has i <= e * length."""
    return max((math.ceil(line['iter'] / max(line['epoch'], 1)) for line in lines), default=1)


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def snapshot_epochs(work_dir: str | Path) -> list[int]:
    """Last epoch of each mini-generation, from the config that mmengine left in the work dir (else empty)."""
    for path in sorted(Path(work_dir).glob('*.py')):
        try:
            cfg = Config.fromfile(path, import_custom_modules=False)
        except Exception:
            continue  # any Python file may lie there, and the marks are only decoration
        if hooks := snapshot_hooks(cfg):
            return [int(end) for end in hooks[0].get('ends', ())]
    return []
