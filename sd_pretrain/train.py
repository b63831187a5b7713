"""From a config to a trained classifier: what ``tools/train.py`` and ``tools/test.py`` do."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.runner import Runner

from sd_pretrain.checkpoint import check_fits, read_checkpoint
from sd_pretrain.classifier import check_network
from sd_pretrain.cli import InputError
from sd_pretrain.exact_resume import ExactResumeHook, run_settings
from sd_pretrain.ilsvrc_layouts import find_split
from sd_pretrain.launch import init_distributed, is_main_process, leave_distributed, unwrap, world_size
from sd_pretrain.memory import keep_freed_memory
from sd_pretrain.prepare import (
    DATA_CHECKS,
    check_classes,
    check_data,
    check_evaluation,
    check_model,
    check_stop,
    fit_machine,
    load_config,
    mini_generations,
    set_resume,
)
from sd_pretrain.run_record import RESULT, RunRecordHook, fingerprint, finished_result
from sd_pretrain.stop_hook import StopAfterHook
from sd_pretrain.teacher_source import check_teacher_source
from sd_pretrain.work_dir import alone_in, write_json

# Set by the shell launchers once their single-process check has passed: not every process needs to repeat it.
CHECKED = 'SD_PRETRAIN_CHECKED'


class Outcome(NamedTuple):
    """The content of ``result.json`` (``None`` after a mere check), and a line to print."""

    result: dict[str, Any] | None
    message: str


def describe(result: dict[str, Any], work_dir: str | Path) -> str:
    """One phrase on a finished run."""
    accuracy = f'top-1 {100 * result["top1"]:.2f}%, top-5 {100 * result["top5"]:.2f}%'
    return f'{accuracy}, {result["seconds"]:.0f} s, {Path(work_dir) / result["checkpoint"]}'


@contextmanager
def readable_worker_errors() -> Iterator[None]:
    """Reduce an InputError that a loader worker sends with its traceback to its own line."""
    try:
        yield
    except InputError as error:
        raise InputError(str(error).rstrip().rpartition('InputError: ')[2]) from error


def train(
    config: str | Path,
    *,
    work_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    options: dict[str, Any] | None = None,
    resume: str | None = None,
    amp: bool = False,
    compile: bool = False,
    launcher: str = 'none',
    stop_after: int | None = None,
    check_only: bool = False,
    processes: int | None = None,
) -> Outcome:
    """Pretrain a classifier by BL, SE or SD, as the config says.

    Args:
        config: the config file.
        work_dir: see :func:`load_config`.
        data_root: see :func:`load_config`.
        options: see :func:`load_config`.
        resume: ``None``, ``'auto'`` or the path of an ``epoch_N.pth``.
        amp: train under bfloat16 autocast.
        compile: compile network and augmentation (``torch.compile``).
        launcher: ``'none'``, ``'pytorch'``, ``'slurm'`` or ``'mpi'``.
        stop_after: stop, resumable, once this many epochs are done.
        check_only: check config and data, then stop.
        processes: with ``check_only``, the number of processes that will train.

    Raises:
        InputError: anything the user can mend.
    """
    keep_freed_memory()
    processes = (check_only and processes) or world_size(launcher)
    cfg = load_config(config, data_root, work_dir, options, amp, compile)
    settings = fingerprint(cfg)
    result = finished_result(cfg.work_dir, settings)
    if result is not None:
        where = f'trained on {result.get("data_root")}'
        again = 'choose another --work-dir, or remove this one, to train again'
        told = f'Finished already, nothing to do: {describe(result, cfg.work_dir)}, {where}; {again}.'
        return Outcome(result, told)
    fit_machine(cfg, processes)
    check_network(cfg.model.network)
    hook = mini_generations(cfg)
    generations = len(hook['ends'])
    check_teacher_source(hook.get('teacher'), cfg.model, cfg.train_cfg.max_epochs, hook.get('distill', True))
    check_evaluation(cfg)
    check_stop(cfg, stop_after)
    counts = {} if os.environ.get(CHECKED) else check_data(cfg)
    set_resume(cfg, resume, processes)
    check_model(cfg, processes)
    if check_only:
        return Outcome(None, f'Config and data are fine: {counts}.')
    cfg.launcher = launcher
    init_distributed(launcher, cfg)
    with readable_worker_errors(), alone_in(cfg.work_dir) if is_main_process(launcher) else nullcontext():
        runner = Runner.from_cfg(cfg)
        record = RunRecordHook()
        runner.register_hook(record)
        runner.register_hook(ExactResumeHook(run_settings(cfg, processes)))
        if stop_after is not None:
            runner.register_hook(StopAfterHook(stop_after))
        runner.train()
        if runner.epoch < runner.max_epochs:
            leave_distributed()
            return Outcome(
                None, f'Stopped after epoch {runner.epoch} of {runner.max_epochs}; --resume goes on.'
            )
    result = {
        'schema': 1,
        'config': str(config),
        'data_root': cfg.train_dataloader.dataset.get('data_root'),
        'top1': record.metrics['accuracy/top1'] / 100,
        'top5': record.metrics['accuracy/top5'] / 100,
        'seconds': record.seconds,
        'checkpoint': f'snapshot_{generations}.pth',
        'settings_sha256': settings,
    }
    if is_main_process(launcher):
        write_json(Path(cfg.work_dir) / RESULT, result)
    leave_distributed()
    return Outcome(result, f'Finished: {describe(result, cfg.work_dir)}.')


def test(
    config: str | Path,
    checkpoint: str | Path,
    *,
    work_dir: str | Path | None = None,
    data_root: str | Path | None = None,
    options: dict[str, Any] | None = None,
    launcher: str = 'none',
) -> dict[str, float]:
    """Evaluate a checkpoint on the validation images.

    Returns:
        ``{'accuracy/top1', 'accuracy/top5'}`` in percent.

    Raises:
        InputError: anything the user can mend.
    """
    keep_freed_memory()
    processes = world_size(launcher)
    cfg = load_config(config, data_root, work_dir, options)
    cfg.work_dir = str(work_dir or Path(cfg.work_dir) / 'test')
    content = read_checkpoint(checkpoint)
    check_network(cfg.model.network)
    # The validation images are all that is needed, and any number of processes may share them.
    for key in (
        'train_dataloader',
        'train_cfg',
        'optim_wrapper',
        'param_scheduler',
        'custom_hooks',
        'total_batch_size',
    ):
        cfg.pop(key, None)
    data = cfg.test_dataloader.dataset
    if data.type == 'ImageNetFolder':
        check_classes(cfg, data.data_root, len(find_split(data.data_root, data.split).classes))
    elif data.type in DATA_CHECKS:
        check_classes(cfg, data.data_root, DATA_CHECKS[data.type](data.data_root)['classes'])
    fit_machine(cfg, processes)
    cfg.launcher = launcher
    init_distributed(launcher, cfg)
    runner = Runner.from_cfg(cfg)
    model = unwrap(runner.model)
    check_fits(model, content, checkpoint)
    model.load_state_dict(content['state_dict'])
    with readable_worker_errors():
        metrics = runner.test()
    leave_distributed()
    return metrics
