"""Stopping a run at the end of a chosen epoch, so that it can be resumed, or forked into several."""

from __future__ import annotations

from mmengine.hooks import Hook
from mmengine.runner import Runner


class StopAfterHook(Hook):
    """End the training once an epoch is done, validated and saved; the schedule stays that of the whole run.

    Args:
        epoch: number of epochs after which to stop; one that is done already stops a resumed run at once.
    """

    def __init__(self, epoch: int):
        self.epoch = epoch

    def before_train(self, runner: Runner) -> None:
        """Stop at once where there is nothing to do."""
        self._stop_from(runner, runner.epoch)

    def after_train_epoch(self, runner: Runner) -> None:
        """Have this epoch be the last."""
        self._stop_from(runner, runner.epoch + 1)

    def _stop_from(self, runner: Runner, done: int) -> None:
        if done >= self.epoch:
            runner.train_loop.stop_training = True
