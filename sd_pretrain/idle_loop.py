"""A run without work, at any iteration of a long training: what is left is the cost of hooks and logging."""

from __future__ import annotations

import contextlib
import io
import logging
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from mmengine.logging import HistoryBuffer
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import DataLoader

import sd_pretrain.device_log
import sd_pretrain.metrics
import sd_pretrain.prefetch  # noqa: F401 - the hooks of the config are known from here on
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.exact_resume import ExactResumeHook
from sd_pretrain.run_record import RunRecordHook
from sd_pretrain.schedule import learning_rate
from sd_pretrain.snapshot_hook import TEACHER_KEY

EPOCHS = 90
# ILSVRC2012 in batches of 256.
EPOCH_LENGTH = 5004
LOG_INTERVAL = 100
RUNTIME = Path(__file__).resolve().parents[1] / 'configs/_base_/pretrain_runtime.py'
STOCK_HOOKS = dict(
    runtime_info=dict(type='RuntimeInfoHook'),
    timer=dict(type='IterTimerHook'),
    sampler_seed=dict(type='DistSamplerSeedHook'),
    logger=dict(type='LoggerHook'),
    param_scheduler=dict(type='ParamSchedulerHook'),
    checkpoint=dict(type='CheckpointHook', interval=1),
)


class IdleClassifier(TimmClassifier):
    """A classifier whose training step gives out constant losses.

    Where ``taught`` is set, the loss has the term of a teacher, also without one.

    Args:
        device: where the losses are.
    """

    def __init__(self, device: str):
        super().__init__('test_resnet', num_classes=10)
        self.taught = False
        self._constants = {name: torch.tensor(1.0, device=device) for name in ('loss', 'loss_ce', 'loss_kl')}

    def train_step(self, data: Any, optim_wrapper: Any) -> dict[str, Tensor]:
        """Total and terms of a loss, as ``parse_losses`` gives them."""
        names = ('loss', 'loss_ce', 'loss_kl') if self.taught else ('loss', 'loss_ce')
        return OrderedDict((name, self._constants[name]) for name in names)


class PausedTrainLoop(EpochBasedTrainLoop):
    """Stands where ``iteration`` iterations are done, as a resumed run does; :meth:`advance` goes on."""

    def __init__(self, *args: Any, iteration: int, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._iter, self._epoch = iteration, iteration // len(self.dataloader)

    def run(self) -> torch.nn.Module:
        """Bring everything that depends on the iterations before to where they would have left it."""
        runner, done = self.runner, self._iter
        boundary = self.max_iters // 2
        taught = max(0, done - boundary)
        runner.model.taught = taught > 0
        hub = runner.message_hub
        for key in ('lr', 'data_time', 'loss', 'loss_ce', 'time', 'loss_kl'):
            count = taught if key == 'loss_kl' else done
            if count:
                hub.update_scalar(f'train/{key}', 0.0)
                values = np.random.default_rng(0).random(count)
                hub.log_scalars[f'train/{key}'] = HistoryBuffer(values, np.ones(count, int))
        for scheduler in runner.param_schedulers:
            scheduler.last_step = scheduler._global_step = done
        for group in runner.optim_wrapper.param_groups:
            group['lr'] = learning_rate(done + 1, [boundary, self.max_iters], [group['lr']] * 2)
        teacher = {'iteration': boundary, 'state_dict': runner.model.network.state_dict()}
        runner.call_hook('after_load_checkpoint', checkpoint={TEACHER_KEY: teacher, 'meta': {}})
        runner.call_hook('before_train')
        runner.call_hook('before_train_epoch')
        return runner.model

    def advance(self, count: int) -> None:
        """Do ``count`` iterations; the epoch they are in does not end."""
        for _ in range(count):
            self.run_iter(self._iter % (EPOCH_LENGTH // LOG_INTERVAL * LOG_INTERVAL), None)


def paused_runner(ours: bool, iteration: int, work_dir: str | Path, device: str = 'cpu') -> Runner:
    """A runner at an iteration of a run over ILSVRC2012 whose second half is taught; its step does nothing.

    Args:
        ours: all hooks of a pretraining as this project configures it; else those that mmengine has by
            default, with the same interval of the log.
        iteration: number of iterations that are done.
        work_dir: its logs go there.
        device: where the losses are.
    """
    hooks = Config.fromfile(RUNTIME, import_custom_modules=False).default_hooks if ours else STOCK_HOOKS
    half = EPOCHS // 2
    snapshots = dict(type='SnapshotDistillationHook', ends=[half, EPOCHS], distill=True, temperature=2.0)
    cosine = dict(
        type='CosineRestartLR',
        periods=[half, half],
        restart_weights=[1, 1],
        eta_min=0,
        by_epoch=True,
        convert_to_iter_based=True,
    )
    images = range(EPOCH_LENGTH)
    # The file is part of a log's cost, the terminal is not.
    with contextlib.redirect_stdout(io.StringIO()):
        runner = Runner(
            IdleClassifier(device),
            str(work_dir),
            train_dataloader=DataLoader(images, sampler=DefaultSampler(images, seed=0)),
            train_cfg=dict(type=PausedTrainLoop, max_epochs=EPOCHS, iteration=iteration),
            optim_wrapper=dict(optimizer=dict(type='SGD', lr=0.1)),
            param_scheduler=[cosine],
            default_hooks={**hooks, 'logger': dict(type='LoggerHook', interval=LOG_INTERVAL)},
            custom_hooks=[snapshots, RunRecordHook(), ExactResumeHook({'randomness.seed': 0})]
            if ours
            else [],
            randomness=dict(seed=0),
            default_scope='mmengine',
            experiment_name=f'{Path(work_dir).parent.name}_{Path(work_dir).name}',
        )
    for handler in list(runner.logger.handlers):
        if not isinstance(handler, logging.FileHandler):
            runner.logger.removeHandler(handler)
    runner.train()
    return runner
