"""A stopped and resumed run equals the unbroken one: randomness by epoch, and the settings it depends on."""

from __future__ import annotations

import inspect
import json
import math
from pathlib import Path
from typing import Any

from mmengine.config import Config
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner

from sd_pretrain.chance import derive_seed, seed_draws, seed_generators, seed_samples
from sd_pretrain.cli import InputError
from sd_pretrain.launch import unwrap
from sd_pretrain.losses import sd_loss
from sd_pretrain.run_record import without_places
from sd_pretrain.schedule import HOOK, snapshot_hooks
from sd_pretrain.teacher_source import identified

SETTINGS_KEY = 'run_settings'
# How images are drawn and put into batches.
_LOADER = ('sampler', 'batch_sampler', 'drop_last', 'collate_fn')
# Checkpoints of earlier states have none of these, as the first of each tells.
_LATER = (
    ('optim_wrapper.type', 'train_dataloader.dataset.', 'data_preprocessor.'),
    tuple(f'train_dataloader.{key}' for key in _LOADER),
)
_FORK = 'fork'


class EpochSeedHook(Hook):
    """Seed all generators by (seed, epoch, rank) as each epoch begins, so that no state has to be saved.

    Samples depend on (seed, epoch, index), whichever worker makes them. A run resumed from an
    ``epoch_N.pth`` therefore equals the unbroken one, bit for bit on a CPU.
    """

    # Before any other hook can draw.
    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Have the samples drawn by epoch."""
        seed_samples(runner.train_dataloader.dataset)

    def before_train_epoch(self, runner: Runner) -> None:
        """Seed this process, the dataset and the preprocessor."""
        self._seed_process(runner)
        # Both are optional: other datasets and preprocessors may do without.
        dataset = runner.train_dataloader.dataset
        if hasattr(dataset, 'set_epoch'):
            dataset.set_epoch(runner.seed, runner.epoch)
        preprocessor = unwrap(runner.model).data_preprocessor
        if hasattr(preprocessor, 'set_seed'):
            preprocessor.set_seed(derive_seed(runner.seed, runner.epoch, get_rank(), 1))

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed this process again: a loader draws where it starts its workers, which is not in each epoch."""
        if batch_idx == 0:
            self._seed_process(runner)

    @staticmethod
    def _seed_process(runner: Runner) -> None:
        seed_generators(derive_seed(runner.seed, runner.epoch, get_rank()))


class IterationSeedHook(Hook):
    """The same for runs that count in iterations: by (seed, iteration, rank), and by place samples."""

    priority = 'VERY_HIGH'

    def before_train(self, runner: Runner) -> None:
        """Have the samples drawn by place."""
        seed_draws(runner.train_dataloader, runner.seed, get_rank())

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Seed this process."""
        seed_generators(derive_seed(runner.seed, runner.iter, get_rank()))


class ExactResumeHook(EpochSeedHook):
    """The same for pretraining, whose checkpoints hold the settings that a resumed run must share.

    Args:
        settings: :func:`run_settings` of the run, kept in the ``meta`` of every checkpoint.
    """

    def __init__(self, settings: dict[str, Any]):
        self.settings = settings

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Let a fork keep its own seed: mmengine would take over that of the checkpoint.

        Raises:
            InputError: the checkpoint to resume from was saved within an epoch, as with ``by_epoch=False``;
                mmengine would begin that epoch anew, and the schedule would end too early.
        """
        meta, length = checkpoint.get('meta', {}), len(runner.train_dataloader)
        if runner._resume and meta['iter'] != meta['epoch'] * length:
            raise InputError(
                f'iteration {meta["iter"]}, of the checkpoint to resume from, is not the end of '
                f'{meta["epoch"]} epochs of {length} iterations; resume from an epoch_N.pth of a run on the '
                'same data'
            )
        seed = self.settings['randomness.seed']
        if self.settings.get(_FORK) and 'meta' in checkpoint and seed is not None:
            checkpoint['meta']['seed'] = seed

    def before_train(self, runner: Runner) -> None:
        """Say it where a resumed run would not equal the unbroken one."""
        super().before_train(runner)
        counts = self.settings.get('optim_wrapper.accumulative_counts', 1)
        length = len(runner.train_dataloader)
        if length % counts:
            runner.logger.warning(
                f'optim_wrapper.accumulative_counts={counts} does not divide the {length} iterations of an '
                'epoch: gradients are accumulated beyond its end, which no checkpoint holds, so that the run '
                'does not equal one that is stopped and resumed'
            )

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the settings."""
        checkpoint['meta'][SETTINGS_KEY] = self.settings


def run_settings(cfg: Config, processes: int) -> dict[str, Any]:
    """What a resumed run must share with the run that it goes on with; plain values by their config names.

    The optimizer's settings are not among them, its state has them; but for those by layer
    (``paramwise_cfg``), which the state tells from no others.

    Args:
        cfg: the config, the batch of one process set.
        processes: number of processes that train.
    """
    hook = dict(snapshot_hooks(cfg)[0])
    if hook.setdefault('distill', True):
        defaults = inspect.signature(sd_loss).parameters.values()
        hook = {item.name: item.default for item in defaults if item.default is not item.empty} | hook
        teacher = hook.pop('teacher', None)
        if teacher is not None:
            hook |= {f'teacher.{key}': value for key, value in identified(teacher).items()}
    else:
        hook = {key: hook[key] for key in ('ends', 'distill')}
    settings = {
        'model.network': cfg.model.network,
        'model.network_args': cfg.model.get('network_args') or {},
        'model.num_classes': cfg.model.get('num_classes', 1000),
        'total_batch_size': cfg.train_dataloader.batch_size * processes,
        'number of processes': processes,
        'train_cfg.max_epochs': cfg.train_cfg.max_epochs,
        'randomness.seed': (cfg.get('randomness') or {}).get('seed'),
    }
    images = without_places(cfg.train_dataloader.dataset)
    settings |= {f'train_dataloader.dataset.{key}': images[key] for key in images}
    loader = {'drop_last': False, **cfg.train_dataloader}
    settings |= {f'train_dataloader.{key}': loader[key] for key in _LOADER if key in loader}
    preprocessor = without_places(cfg.model.get('data_preprocessor') or cfg.get('data_preprocessor') or {})
    settings |= {f'data_preprocessor.{key}': preprocessor[key] for key in preprocessor}
    for key in ('init_seed', 'tolerance'):
        if cfg.model.get(key) is not None:
            settings[f'model.{key}'] = cfg.model[key]
    optim_wrapper = cfg.get('optim_wrapper') or {}
    settings['optim_wrapper.type'] = optim_wrapper.get('type', 'OptimWrapper')
    kept = ['accumulative_counts', 'clip_grad', 'paramwise_cfg']
    kept += ['optimizer'] if optim_wrapper.get('paramwise_cfg') else []
    settings |= {f'optim_wrapper.{key}': optim_wrapper[key] for key in kept if optim_wrapper.get(key)}
    if cfg.get('fork'):
        settings[_FORK] = True
    settings |= {f'{HOOK}.{key}': hook[key] for key in hook if key not in ('type', 'priority')}
    schedulers = cfg.get('param_scheduler') or []
    for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
        name = scheduler['type']
        settings |= {f'{name}.{key}': scheduler[key] for key in scheduler if key != 'type'}
    # Plain values: checkpoints are read without executing what is in them.
    return json.loads(json.dumps(settings, default=str))


def _taught_from(settings: dict[str, Any]) -> float:
    """Number of epochs before a run's first teacher."""
    if not settings[f'{HOOK}.distill']:
        return math.inf
    return settings.get(f'{HOOK}.teacher.from_epoch', settings[f'{HOOK}.ends'][0])


def check_settings(
    now: dict[str, Any], content: dict[str, Any], path: str | Path, fork: bool = False
) -> None:
    """Check that a checkpoint's run had the settings of the one that resumes it.

    Args:
        now: :func:`run_settings` of the resumed run.
        content: the checkpoint; one without settings is accepted.
        path: its path, for the message.
        fork: let the distillation and the seed differ, as long as nothing has been taught: SE, SD with any
            temperature and a run with a teacher out of a file are the same up to where something teaches,
            and what comes after may be drawn differently. A fork cannot be forked: its own checkpoints are
            resumed with its own settings.

    Raises:
        InputError: they differ; every difference is in the message.
    """
    before = content['meta'].get(SETTINGS_KEY)
    if before is None:
        return
    free = {_FORK}
    for later in _LATER:
        if later[0] not in before:
            free |= {key for key in now if key.startswith(later)}
    untaught = min(_taught_from(now), _taught_from(before))
    if fork and not before.get(_FORK) and content['meta']['epoch'] <= untaught:
        free |= {key for key in now.keys() | before.keys() if key.startswith(HOOK)} - {f'{HOOK}.ends'}
        free.add('randomness.seed')
    now, before = (
        {key: value for key, value in settings.items() if key not in free} for settings in (now, before)
    )
    wrong = [
        f'{key} was {before.get(key, "not set")}, now {now.get(key, "not set")}'
        for key in sorted(now.keys() | before.keys())
        # Without a pinned seed, the resumed run takes over that of the checkpoint.
        if now.get(key) != before.get(key) and not (key == 'randomness.seed' and now.get(key) is None)
    ]
    if wrong:
        raise InputError(
            f'{path} is of a run with other settings: {"; ".join(wrong)}; '
            'set them back, or start anew in another --work-dir'
        )
