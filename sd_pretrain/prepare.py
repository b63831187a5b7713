"""From a config file to a config that is ready to run: reading it, fitting it to the machine, checking it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torch.nn.modules.batchnorm import _BatchNorm

from sd_pretrain.bfloat16 import train_in_bf16
from sd_pretrain.checkpoint import check_fits, check_optimizer, read_checkpoint
from sd_pretrain.cifar_files import ensure_cifar100
from sd_pretrain.cli import InputError, read_config, set_data_root, split_total_batch
from sd_pretrain.exact_resume import check_settings, run_settings
from sd_pretrain.imagenet import check_imagenet
from sd_pretrain.launch import cpu_share
from sd_pretrain.schedule import HOOK, check_ends, check_periods, snapshot_hooks, teacher_iteration
from sd_pretrain.snapshot_hook import TEACHER_KEY, check_loss_args, check_teacher
from sd_pretrain.teacher import check_teacher_options
from sd_pretrain.vis_backends import check_vis_backends
from sd_pretrain.work_dir import latest_checkpoint

# By the dataset's type: from its data_root to the counts of 'classes', 'train' and 'val'.
DATA_CHECKS = {'ImageNetFolder': check_imagenet, 'Cifar100': ensure_cifar100}


def load_config(
    path: str | Path,
    data_root: str | Path | None = None,
    work_dir: str | Path | None = None,
    options: dict[str, Any] | None = None,
    amp: bool = False,
    compile: bool = False,
) -> Config:
    """Read a pretraining config and apply what the command line says.

    Args:
        path: the config file.
        data_root: replaces the leading ``data`` of the config's data roots; default: the config's
            ``default_data_root``, if it has one.
        work_dir: output folder; default ``work_dirs/<config stem>``.
        options: ``--cfg-options``.
        amp: train under bfloat16 autocast.
        compile: compile network and augmentation.

    Raises:
        InputError: no such file, it does not parse, or it logs to what is not installed.
    """
    path = Path(path)
    cfg = read_config(path, options)
    if 'train_dataloader' not in cfg or 'TimmClassifier' not in str(cfg.get('model')):
        raise InputError(f'{path} is no pretraining config: it needs a TimmClassifier and a train_dataloader')
    check_vis_backends(cfg)
    root = data_root or cfg.get('default_data_root')
    if root:
        set_data_root(cfg, root)
    cfg.work_dir = str(work_dir or cfg.get('work_dir') or Path('work_dirs') / path.stem)
    if amp:
        train_in_bf16(cfg)
    if compile:
        cfg.model.compile = True
    return cfg


def fit_machine(cfg: Config, processes: int) -> None:
    """Set what depends on the machine: the batch of one process, its loader workers, pinned memory."""
    split_total_batch(cfg, processes)
    if cfg.get('model_wrapper_cfg') and (cfg.get('optim_wrapper') or {}).get('accumulative_counts', 1) > 1:
        # DDP learns a static graph in the first iteration, which does not reduce any gradient then.
        cfg.model_wrapper_cfg.static_graph = False
    workers = cpu_share(processes)
    for name in ('train_dataloader', 'val_dataloader', 'test_dataloader'):
        loader = cfg.get(name)
        if not loader:
            continue
        loader.num_workers = min(loader.get('num_workers', 0), workers)
        if not loader.num_workers:
            loader.persistent_workers = False
            loader.pop('prefetch_factor', None)
        # A dataset that lives on the device says False.
        loader.pin_memory = loader.get('pin_memory', True) and torch.cuda.is_available()


def check_data(cfg: Config) -> dict[str, int]:
    """Check that the config's data is there, and that it holds the classes that the model has.

    Returns:
        The counts of classes and images; empty for a dataset type that ``DATA_CHECKS`` does not know.

    Raises:
        InputError: it is not, or does not.
    """
    dataset = cfg.train_dataloader.dataset
    if dataset.type not in DATA_CHECKS:
        return {}
    counts = DATA_CHECKS[dataset.type](dataset.data_root)
    check_classes(cfg, dataset.data_root, counts['classes'])
    images = dataset.get('subset') or counts['train']
    batch = cfg.get('total_batch_size', 1)
    if images < batch:
        raise InputError(
            f'{images} training images are less than one batch of {batch}; '
            'lower it with --cfg-options total_batch_size=N'
        )
    return counts


def check_classes(cfg: Config, root: str | Path, found: int) -> None:
    """Check that ``root`` has as many classes as the config's model.

    Raises:
        InputError: it has not.
    """
    classes = cfg.model.num_classes
    if found != classes:
        raise InputError(
            f'{root} has {found} classes, the config has model.num_classes={classes}; '
            f'give --cfg-options model.num_classes={found} or other data'
        )


def check_model(cfg: Config, processes: int) -> None:
    """Check that the model can be made, and its batch normalisation synchronised where that is asked for.

    Raises:
        InputError: see :class:`sd_pretrain.classifier.TimmClassifier`; or mmengine's ``sync_bn`` would put
            plain layers in the place of those that do more, such as the activation that follows.
    """
    with torch.device('meta'):
        model = MODELS.build(cfg.model)
    if processes == 1 or not cfg.get('sync_bn'):
        return
    layers = {type(one) for one in model.modules() if isinstance(one, _BatchNorm)}
    more = sorted(one.__name__ for one in layers if not one.__module__.startswith('torch.nn.'))
    if more:
        raise InputError(
            f'sync_bn would make plain batch normalisation of the {", ".join(more)} of {cfg.model.network}, '
            'and take out the activations in them; leave sync_bn out'
        )


def mini_generations(cfg: Config) -> dict[str, Any]:
    """The config's SnapshotDistillationHook, its ends checked against run and learning rate.

    Raises:
        InputError: there is none, or its ends do not fill the run or do not fit the periods.
    """
    hooks = snapshot_hooks(cfg)
    if len(hooks) != 1:
        raise InputError(
            f'the config has {len(hooks)} {HOOK} in custom_hooks; it takes one, '
            'also for BL (ends=[max_epochs], distill=False)'
        )
    ends = hooks[0].get('ends')
    check_loss_args(
        {
            key: hooks[0][key]
            for key in hooks[0]
            if key not in ('type', 'ends', 'distill', 'teacher', 'teacher_options', 'priority')
        }
    )
    check_teacher_options(hooks[0].get('teacher_options'))
    if 'max_epochs' not in cfg.train_cfg:
        raise InputError('train_cfg has no max_epochs: mini-generations are trained, and end, by epochs')
    check_ends(ends, cfg.train_cfg.max_epochs, 'epochs')
    schedulers = cfg.get('param_scheduler') or []
    schedulers = schedulers if isinstance(schedulers, list) else [schedulers]
    # The hook checks what was built from this; here it is found before any process starts.
    types = [scheduler['type'] for scheduler in schedulers]
    if types == ['CosineRestartLR'] and schedulers[0].get('by_epoch', True):
        check_periods(schedulers[0].get('periods', []), ends, 'epochs')
    return hooks[0]


def check_evaluation(cfg: Config) -> None:
    """Check that a run comes to its result: top-1 and top-5 of its last snapshot on the validation images.

    Raises:
        InputError: it is not validated by both after the last epoch, or other weights are.
    """
    evaluators = cfg.get('val_evaluator') or []
    evaluators = evaluators if isinstance(evaluators, list) else [evaluators]
    ranks = {k for one in evaluators if one.type == 'TopKAccuracy' for k in one.get('topk', (1, 5))}
    epochs = cfg.train_cfg.max_epochs
    if not {1, 5} <= ranks or not cfg.get('val_dataloader') or cfg.train_cfg.get('val_begin', 1) > epochs:
        raise InputError(
            'a run ends with top-1 and top-5 of the validation images: the config needs a val_dataloader, a '
            f'val_begin of at most {epochs}, and in val_evaluator a TopKAccuracy with topk=(1, 5)'
        )
    if any(hook.get('type') == 'EMAHook' for hook in cfg.get('custom_hooks') or []):
        raise InputError(
            'EMAHook has averaged weights validated, which are not those of the snapshots that teach and are '
            'reported; leave it out of custom_hooks'
        )


def set_resume(cfg: Config, resume: str | None, processes: int) -> None:
    """Set where to resume: ``'auto'`` is the latest checkpoint of the work dir, if there is one.

    Raises:
        InputError: the checkpoint is missing, damaged, of another model or other optimizer settings,
            or lacks the teacher that is due.
    """
    if resume is None:
        return
    if resume == 'auto':
        latest = latest_checkpoint(cfg.work_dir)
        if latest is None:
            return
        resume = str(latest)
    content = read_checkpoint(resume)
    if 'optimizer' not in content:
        raise InputError(f'{resume} cannot be resumed: it has no optimizer state; use an epoch_N.pth')
    check_settings(run_settings(cfg, processes), content, resume, fork=cfg.get('fork', False))
    with torch.device('meta'):
        check_fits(MODELS.build(cfg.model), content, resume)
    check_optimizer(cfg, content, resume)
    hook, epoch = mini_generations(cfg), content['meta']['epoch']
    last = f'snapshot_{len(hook["ends"])}.pth'
    if epoch >= hook['ends'][-1] and not (Path(cfg.work_dir) / last).is_file():
        raise InputError(
            f'{resume} is of the last epoch: there is nothing left to train, and {cfg.work_dir} has no '
            f'{last}; evaluate it with tools/test.py'
        )
    if hook.get('distill', True) and not hook.get('teacher') and epoch < hook['ends'][-1]:
        end = teacher_iteration(epoch + 1, hook['ends'])
        # At the boundary itself the student is the teacher that is due.
        if end not in (0, epoch):
            check_teacher(content.get(TEACHER_KEY), end * content['meta']['iter'] // epoch)
    if (cfg.get('randomness') or {}).get('seed') is None:
        # The sampler is built before mmengine restores the seed.
        cfg.randomness = {**(cfg.get('randomness') or {}), 'seed': content['meta']['seed']}
    cfg.resume = True
    cfg.load_from = resume


def check_stop(cfg: Config, stop_after: int | None) -> None:
    """Check that a run can be resumed from where it is to stop.

    Raises:
        InputError: no checkpoint is written after that epoch.
    """
    interval = cfg.default_hooks.checkpoint.get('interval', 1)
    if stop_after is not None and (stop_after < 1 or stop_after % interval):
        raise InputError(
            f'--stop-after {stop_after}: a checkpoint is there after every {interval} epochs, '
            f'so it must be a multiple of {interval}'
        )
