"""What a finished run leaves behind: ``result.json`` in its work dir."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import broadcast_object_list
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sd_pretrain.cli import InputError
from sd_pretrain.curves import read_curves
from sd_pretrain.schedule import snapshot_hooks
from sd_pretrain.teacher_source import identified

RESULT = 'result.json'
# Where a run happens, and how fast, does not change what it is.
_LEFT_OUT = {
    'data_root',
    'default_data_root',
    'work_dir',
    'launcher',
    'resume',
    'load_from',
    'fork',
    'num_workers',
    'compile',
    'env_cfg',
}


class RunRecordHook(Hook):
    """Remember the last validation and the training time, over resumes as well.

    A checkpoint is written before its epoch is validated: a run that was stopped in between, and resumed,
    validates first.
    """

    # Before CheckpointHook: the seconds so far are in the checkpoint of the same epoch.
    priority = 'NORMAL'

    def __init__(self) -> None:
        self.metrics: dict[str, float] = {}
        self._before = 0.0
        self._start = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of training and validation so far."""
        return self._before + time.monotonic() - self._start

    def before_train(self, runner: Runner) -> None:
        """Start the clock, where the resumed run has stopped it; validate what it has not."""
        self._before = runner.message_hub.get_info('train_seconds', 0.0)
        self._start = time.monotonic()
        # Whatever this draws: each epoch is seeded as it begins.
        missed = [_misses_validation(runner)]
        broadcast_object_list(missed)
        if missed[0]:
            runner.val_loop.run()

    def after_train_epoch(self, runner: Runner) -> None:
        """Note the time for the checkpoint."""
        runner.message_hub.update_info('train_seconds', self.seconds)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Note the metrics."""
        self.metrics = dict(metrics or {})


def _misses_validation(runner: Runner) -> bool:
    """Whether the epoch of the checkpoint is to be validated: it is due, and the log has not got it.

    A work dir without a log begins here, as that of a run resumed from another one's checkpoint. The last
    epoch's metrics are part of the result, so that they are measured in any case.
    """
    loop, epoch = runner.train_loop, runner.epoch
    if not epoch or runner.val_loop is None:
        return False
    if epoch == loop.max_epochs:
        return True
    if epoch < loop.val_begin or epoch % loop.val_interval:
        return False
    try:
        return epoch not in {done for done, _ in read_curves(runner.work_dir).top1}
    except InputError:
        return False


def fingerprint(cfg: Config) -> str:
    """Hash of all settings of a run but where and how fast it happens; the same settings give the same text.

    A teacher out of a file counts by its weights, not by its place.

    Raises:
        InputError: such a teacher cannot be read.
    """
    settings = without_places(cfg.to_dict())
    for hook in snapshot_hooks(settings):
        if hook.get('teacher') is not None:
            hook['teacher'] = identified(hook['teacher'])
    text = json.dumps(settings, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def check_snapshots(work_dir: str | Path, count: int) -> None:
    """Check that a finished run still has its first ``count`` snapshots.

    Raises:
        InputError: one has been deleted.
    """
    names = [f'snapshot_{k}.pth' for k in range(1, count + 1)]
    missing = [name for name in names if not (Path(work_dir) / name).is_file()]
    if missing:
        raise InputError(
            f'the run in {work_dir} is finished, but {", ".join(missing)} has been deleted; put it back, or '
            f'delete {work_dir} and give the command again, which trains that run anew'
        )


def without_places(value: Any) -> Any:
    """A config, or a part of it, without the settings of where a run happens and how fast."""
    if isinstance(value, dict):
        return {key: without_places(item) for key, item in value.items() if key not in _LEFT_OUT}
    if isinstance(value, list | tuple):
        return [without_places(item) for item in value]
    return value


def finished_result(work_dir: str | Path, settings: str) -> dict[str, Any] | None:
    """The result of a finished run in ``work_dir``; ``None`` if there is none.

    Args:
        work_dir: the work dir.
        settings: :func:`fingerprint` of the run that wants the work dir.

    Raises:
        InputError: the finished run there had other settings, or its ``result.json`` cannot be read.
    """
    path = Path(work_dir) / RESULT
    if not path.is_file():
        return None
    try:
        result = json.loads(path.read_text())
        same = result['settings_sha256'] == settings
    except (ValueError, KeyError, TypeError):
        raise InputError(
            f'{path} cannot be read as the result of a run; remove it or choose another --work-dir'
        ) from None
    if not same:
        raise InputError(
            f'{work_dir} holds a finished run of other settings ({result.get("config")}); '
            'choose another --work-dir, or remove that one'
        )
    return result
