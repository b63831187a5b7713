"""Logging without waiting for the device: what an iteration logs stays there until the interval is over.

mmengine's ``RuntimeInfoHook`` fetches every logged value in every iteration, so the host cannot queue the
next one while the device is still busy; and its histories, of hundreds of thousands of values late in a long
run, are copied as a whole for each new one. Here nothing is fetched or copied until somebody looks.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from mmengine.hooks import IterTimerHook, RuntimeInfoHook
from mmengine.logging import HistoryBuffer, MessageHub
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor

# What is collected at most, where nobody looks.
_ROWS = 1000


class DeviceHistory(HistoryBuffer):
    """A history whose latest values are still underway: whoever looks at it has them fetched first.

    Copies, those in checkpoints among them, are plain ``HistoryBuffer`` objects.

    Args:
        fetch: completes ``pending``.
        max_length: number of values that are kept.
        history: where to go on from.
    """

    def __init__(self, fetch: Callable[[], None], max_length: int, history: HistoryBuffer | None = None):
        values, counts = (np.zeros(0), np.zeros(0, int)) if history is None else history.data
        self._fetch = fetch
        self.pending: list[float] = []
        super().__init__(values[-max_length:], counts[-max_length:], max_length)

    def _settle(self) -> None:
        self._fetch()
        if self.pending:
            values, self.pending = self.pending, []
            self._values = np.append(self._values, values)[-self.max_length :]
            self._counts = np.append(self._counts, np.ones(len(values), int))[-self.max_length :]

    # All of HistoryBuffer's methods go through these two.
    @property
    def _log_history(self) -> np.ndarray:
        self._settle()
        return self._values

    @_log_history.setter
    def _log_history(self, values: np.ndarray) -> None:
        self._values = values

    @property
    def _count_history(self) -> np.ndarray:
        self._settle()
        return self._counts

    @_count_history.setter
    def _count_history(self, counts: np.ndarray) -> None:
        self._counts = counts

    def __reduce__(self) -> tuple:
        return HistoryBuffer, (self._log_history, self._count_history, self.max_length)


@HOOKS.register_module()
class DeviceLogHook(RuntimeInfoHook):
    """Stands in for mmengine's ``RuntimeInfoHook`` and, in training, its ``IterTimerHook``.

    All keys and values are as theirs, for ``LoggerHook`` and for any other reader of the message hub, at any
    moment. But what was logged of training is fetched only where somebody looks at it, all of it since the
    last look in one transfer. ``time`` is the mean over these iterations: a single one has no end that the
    host would see. Histories hold as many values as the log processor averages over, and at least an epoch,
    so neither the cost of an iteration nor a checkpoint grows with the run.

    A ``clip_grad`` in the config's ``optim_wrapper`` costs a wait in each iteration all the same: mmengine
    fetches ``grad_norm`` there.
    """

    def __init__(self) -> None:
        self._histories: dict[str, DeviceHistory] = {}
        self._rows: list[tuple[list[DeviceHistory], Tensor]] = []

    def before_train(self, runner: Runner) -> None:
        """Begin anew, or go on with the histories that a resumed run has loaded."""
        super().before_train(runner)
        self._hub: MessageHub = runner.message_hub
        self._length = _longest_window(runner)
        self._rows, self._histories = [], {}
        self._iter, self._max_iters = runner.iter, runner.max_iters
        self._untimed = self._timed = 0
        self._seconds = 0.0

    def before_train_epoch(self, runner: Runner) -> None:
        """Start the clock."""
        super().before_train_epoch(runner)
        for history in self._hub.log_scalars.values():
            history.max_length = self._length
        self._read_until = self._idle_since = time.perf_counter()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Note the learning rate, and the time that the data took."""
        waited = time.perf_counter() - self._idle_since
        self._hub.update_info('iter', runner.iter)
        for name, (lr, *_) in runner.optim_wrapper.get_lr().items():
            self._history(f'train/{name}').pending.append(lr)
        self._history('train/data_time').pending.append(waited)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Collect what the model logs."""
        self._collect(outputs or {})
        self._history('train/time')
        self._iter = runner.iter
        self._untimed += 1
        if len(self._rows) >= _ROWS:
            self.fetch()
        self._idle_since = time.perf_counter()

    def after_train_epoch(self, runner: Runner) -> None:
        """Stop the clock: the validation is no part of it."""
        self.fetch()

    def fetch(self) -> None:
        """Bring all that was collected to the host, in one transfer, and take the time."""
        rows, self._rows = self._rows, []
        if rows:
            values = iter(torch.cat([row for _, row in rows]).tolist())
            for histories, _ in rows:
                for history in histories:
                    history.pending.append(next(values))
        if self._untimed:
            now = time.perf_counter()
            spent, count = now - self._read_until, self._untimed
            self._histories['train/time'].pending += [spent / count] * count
            self._untimed, self._read_until, self._idle_since = 0, now, now
            self._seconds += spent
            self._timed += count
            left = self._max_iters - self._iter - 1
            self._hub.update_info('eta', self._seconds / self._timed * left)

    def _collect(self, outputs: dict[str, Any]) -> None:
        histories, tensors = [], []
        for key, value in outputs.items():
            history = self._history(f'train/{key}')
            if isinstance(value, Tensor):
                histories.append(history)
                tensors.append(value.reshape(()))
            else:
                history.pending.append(float(value))
        if not tensors:
            return
        device = next((one.device for one in tensors if one.device.type != 'cpu'), tensors[0].device)
        with torch.no_grad():
            row = torch.stack([one.to(device, non_blocking=True) for one in tensors])
        self._rows.append((histories, row))

    def _history(self, key: str) -> DeviceHistory:
        found = self._histories.get(key)
        if found is None:
            before = self._hub.log_scalars.get(key)
            if before is None:
                # The hub's own way makes it a key that checkpoints keep.
                self._hub.update_scalar(key, 0.0)
            found = DeviceHistory(self.fetch, self._length, before)
            self._hub.log_scalars[key] = self._histories[key] = found
        return found


@HOOKS.register_module()
class EvaluationTimerHook(IterTimerHook):
    """mmengine's ``IterTimerHook`` for validation and test; :class:`DeviceLogHook` times the training."""

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Leave training alone."""

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """Leave training alone."""


def _longest_window(runner: Runner) -> int:
    """Number of values that the log processor may look back on; at least an epoch's."""
    lengths = [runner.log_processor.window_size, len(runner.train_dataloader)]
    if runner.val_loop is not None:
        lengths.append(len(runner.val_dataloader))
    for item in runner.log_processor.custom_cfg:
        size = item.get('window_size', 'global')
        if item.get('method_name') != 'current' and size != 'epoch':
            lengths.append(runner.max_iters if size == 'global' else size)
    return max(lengths)
