"""When the teacher is taken, saved and restored: the mini-generations of the paper as an mmengine hook."""

from __future__ import annotations

import inspect
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from mmengine.dist import all_reduce, is_distributed, master_only
from mmengine.hooks import Hook
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from sd_pretrain.cli import InputError
from sd_pretrain.launch import unwrap
from sd_pretrain.losses import sd_loss
from sd_pretrain.schedule import HOOK, check_ends, check_scheduler, mini_generation, teacher_iteration
from sd_pretrain.teacher import FrozenTeacher, check_teacher_options
from sd_pretrain.teacher_source import load_teacher, teacher_spec
from sd_pretrain.work_dir import whole

TEACHER_KEY = 'snapshot_distillation_teacher'


@HOOKS.register_module()
class SnapshotDistillationHook(Hook):
    """Divide the run into mini-generations; the end of each one teaches the next (Sections 3.2 and 3.3.4).

    At the last iteration of mini-generation k it averages the batch normalisation statistics over the
    processes, writes ``snapshot_k.pth`` (tensors and a small ``meta``) to the work dir and, if there is a
    next mini-generation, attaches the frozen teacher to the model. The teacher is kept in every later
    checkpoint under a key of its own and comes back on resume. During the first mini-generation the hook
    costs nothing.

    One end is the baseline (BL), several without distillation are Snapshot Ensemble (SE), with it Snapshot
    Distillation (SD). With a ``teacher`` out of a file the snapshots are taken all the same, but that one
    teaches, from the epoch it says to the end of the run (two-generation training). It is not kept in the
    checkpoints: a resumed run reads the file again, which must hold the same weights.

    Args:
        ends: last epoch of each mini-generation (``L'_1 .. L'_K``); the last one is ``max_epochs``.
        distill: whether anything teaches.
        teacher: ``None``, the snapshots of this run teach; or a checkpoint of another run, as
            :func:`sd_pretrain.teacher_source.teacher_spec` describes it.
        teacher_options: ``precision``, ``cuda_graph``, ``overlap`` of
            :class:`sd_pretrain.teacher.FrozenTeacher`: how it runs.
        **loss_args: ``temperature``, ``lambda_s``, ``lambda_t``, ``symmetric``, ``scale_by_t2`` of
            :func:`sd_pretrain.losses.sd_loss`.

    Raises:
        InputError: ``sd_loss`` or the teacher has no such argument, or the temperature is not positive: it
            would be found out only when the first teacher is there.
    """

    # Before the scheduler (LOW) and CheckpointHook (VERY_LOW): the checkpoint of the same epoch holds the
    # teacher.
    priority = 'NORMAL'

    def __init__(
        self,
        ends: Sequence[int],
        distill: bool = True,
        teacher: Mapping[str, object] | None = None,
        teacher_options: Mapping[str, object] | None = None,
        **loss_args: object,
    ):
        check_loss_args(loss_args)
        self.teacher = teacher_spec(teacher)
        self.teacher_options = check_teacher_options(teacher_options)
        self.end_epochs = list(ends)
        self.distill = distill
        self.loss_args = loss_args
        self.ends: list[int] = []
        self._saved_teacher: dict | None = None
        self._teacher_iteration = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Keep the checkpoint's teacher until it is clear whether this is a resume."""
        self._saved_teacher = checkpoint.get(TEACHER_KEY)

    def before_train(self, runner: Runner) -> None:
        """Check the schedule; on resume, attach the teacher that the next iteration needs."""
        check_ends(self.end_epochs, runner.max_epochs, 'epochs')
        epoch_length = len(runner.train_dataloader)
        if epoch_length == 0:
            raise InputError('the training data holds less than one batch; lower total_batch_size')
        self.ends = [end * epoch_length for end in self.end_epochs]
        check_scheduler(runner.param_schedulers, self.ends, _config_lr(runner.cfg))
        saved, self._saved_teacher = self._saved_teacher, None
        model = unwrap(runner.model)
        model.attach_teacher(None)
        if not self.distill or self.teacher or runner.iter >= self.ends[-1]:
            return
        needed = teacher_iteration(runner.iter + 1, self.ends)
        if not needed:
            return
        if runner.iter == needed:
            # Stopped right at the boundary: the student that was loaded is the snapshot.
            teacher = FrozenTeacher(model.network, **self.teacher_options)
        else:
            check_teacher(saved, needed)
            teacher = FrozenTeacher(model.network, saved['state_dict'], **self.teacher_options)
        model.attach_teacher(teacher, **self.loss_args)
        self._teacher_iteration = needed
        runner.logger.info(f'Restored the teacher of iteration {needed}.')

    def before_train_epoch(self, runner: Runner) -> None:
        """Attach the teacher out of a file, once its epoch has come; after a resume as well."""
        model = unwrap(runner.model)
        if not self.teacher or runner.epoch < self.teacher['from_epoch'] or model.teacher is not None:
            return
        network = load_teacher(self.teacher, model.arch, model.network, model.network_args, model.num_classes)
        teacher = FrozenTeacher(network, **self.teacher_options)
        model.attach_teacher(teacher, **self.loss_args)
        runner.logger.info(f'From epoch {runner.epoch + 1} on {self.teacher["checkpoint"]} teaches.')

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: object = None, outputs: dict | None = None
    ) -> None:
        """At the end of a mini-generation: take the snapshot and make it the teacher of the next one."""
        iteration = runner.iter + 1
        if iteration not in self.ends:
            return
        k = mini_generation(iteration, self.ends)
        model = unwrap(runner.model)
        average_bn_statistics(model)
        self._save_snapshot(runner, model, k, iteration)
        if self.distill and not self.teacher and iteration < self.ends[-1]:
            model.attach_teacher(FrozenTeacher(model.network, **self.teacher_options), **self.loss_args)
            self._teacher_iteration = iteration
            runner.logger.info(f'Mini-generation {k + 1} is taught by the snapshot of iteration {iteration}.')

    def after_train_epoch(self, runner: Runner) -> None:
        """Let validation and the checkpoint see the same batch normalisation statistics on every process."""
        average_bn_statistics(unwrap(runner.model))

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict) -> None:
        """Store a snapshot that teaches beside the student. On the main process only: no collective here."""
        teacher = unwrap(runner.model).teacher
        if teacher is not None and not self.teacher:
            checkpoint[TEACHER_KEY] = {
                'iteration': self._teacher_iteration,
                'state_dict': teacher.state_dict(),
            }

    @master_only
    def _save_snapshot(self, runner: Runner, model: nn.Module, k: int, iteration: int) -> None:
        state = {key: value.detach().cpu().clone() for key, value in model.state_dict().items()}
        meta = {
            'schema': 1,
            'arch': model.arch,
            # Plain values: checkpoints are read without executing what is in them.
            'network_args': json.loads(json.dumps(model.network_args, default=str)),
            'mini_generation': k,
            'epoch': self.end_epochs[k - 1],
            'iter': iteration,
        }
        path = Path(runner.work_dir) / f'snapshot_{k}.pth'
        # By way of memory, as mmengine writes: torch's own writer does not say that a disk is full.
        buffer = io.BytesIO()
        torch.save({'meta': meta, 'state_dict': state}, buffer)
        with whole(path) as part:
            part.write_bytes(buffer.getbuffer())
        runner.logger.info(f'Saved {path.name} at the end of mini-generation {k}.')


def check_loss_args(loss_args: dict[str, object]) -> None:
    """Check what a config hands to :func:`sd_pretrain.losses.sd_loss` through the hook.

    Raises:
        InputError: an unknown name, a temperature that is not positive, or a weight that is no number.
    """
    known = list(inspect.signature(sd_loss).parameters)[3:]  # after both logits and the labels
    unknown = sorted(set(loss_args) - set(known))
    if unknown:
        raise InputError(
            f'SnapshotDistillationHook has no setting {", ".join(unknown)}; it takes ends, distill, teacher, '
            'teacher_options, ' + ', '.join(known)
        )
    temperature = loss_args.get('temperature', 1.0)
    if not isinstance(temperature, int | float) or not temperature > 0:
        raise InputError(
            f'the temperature of SnapshotDistillationHook must be positive, found {temperature!r}'
        )
    for name, default in (('lambda_s', None), ('lambda_t', 1.0)):
        weight = loss_args.get(name, default)
        if weight is not default and not isinstance(weight, int | float):
            raise InputError(f'{name} of {HOOK} must be a number, found {weight!r}')


def check_teacher(saved: dict | None, needed: int) -> None:
    """Check that a checkpoint's teacher is the one that is due.

    Args:
        saved: the checkpoint's entry ``TEACHER_KEY``, if it has one.
        needed: the iteration it must have been taken at.

    Raises:
        InputError: it is missing, or of another iteration.
    """
    if saved is None or saved['iteration'] != needed:
        found = 'has none' if saved is None else f'has that of iteration {saved["iteration"]}'
        raise InputError(
            f'this resume needs the teacher of iteration {needed}, but the checkpoint {found}; '
            'resume from an epoch_N.pth of the same SD run, with the same data and batch'
        )


def _config_lr(cfg: dict) -> float | None:
    optim_wrapper = cfg.get('optim_wrapper') or {}
    if optim_wrapper.get('paramwise_cfg') or (cfg.get('auto_scale_lr') or {}).get('enable'):
        return None
    return (optim_wrapper.get('optimizer') or {}).get('lr')


def average_bn_statistics(model: nn.Module) -> None:
    """Average running mean and variance over the processes, in one message; alone, do nothing.

    Each process normalises its own part of the batch, so the buffers differ (DDP runs with
    ``broadcast_buffers=False``); without this, every process would have another teacher.
    """
    if not is_distributed():
        return
    buffers = [
        buffer
        for module in model.modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats
        for buffer in (module.running_mean, module.running_var)
    ]
    if not buffers:
        return
    flat = torch.cat([buffer.flatten().float() for buffer in buffers])
    all_reduce(flat, op='mean')
    for buffer, mean in zip(buffers, flat.split([buffer.numel() for buffer in buffers]), strict=True):
        buffer.copy_(mean.view_as(buffer))
