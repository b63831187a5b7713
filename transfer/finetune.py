"""Fine-tune a backbone with mmdet or mmseg: ``python -m transfer.finetune CONFIG --backbone FILE``.

The configs are ordinary ones. What this adds to the training scripts of mmdet and mmseg: the proof that the
backbone was loaded, unrounded metrics, and a ``result.json`` that says what was run.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.runner import BaseLoop, Runner
from torch import nn
from torch.utils.data import DataLoader

import sd_pretrain.device_log
import sd_pretrain.optim  # noqa: F401  (both register what transfer.speed and --amp name)
from sd_pretrain.cli import InputError, Options, run_main, set_data_root, split_total_batch
from sd_pretrain.exact_resume import EpochSeedHook, IterationSeedHook
from sd_pretrain.launch import LAUNCHERS, init_distributed, is_main_process, leave_distributed, world_size
from sd_pretrain.memory import keep_freed_memory
from sd_pretrain.work_dir import latest_checkpoint, write_json
from transfer import mmcv_ops
from transfer.backbone import Backbone, prove_loaded, put_into, read_backbone
from transfer.confusion import save_confusion
from transfer.predictions import image_names, image_paths, save_predictions
from transfer.run_record import load_config, open_run
from transfer.speed import check_amp, check_float16, prepare_model, right_fused, wait_less
from transfer.tasks import dataset_of


def parse_args(
    argv: list[str] | None = None,
    prog: str = 'python -m transfer.finetune',
    description: str = __doc__.splitlines()[0],
) -> argparse.Namespace:
    """Parse the command line of a run, one of ``python -m transfer.finetune`` or of another task's module."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument('config', help='a config of configs/det, configs/seg, configs/probe or configs/demo')
    parser.add_argument(
        '--backbone',
        required=True,
        help='backbone file of tools/convert_checkpoint.py, checkpoint of another network of timm, '
        'timm:NAME, "none" or none:NAME (random)',
    )
    parser.add_argument('--work-dir', required=True, type=Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--name', help='name of the backbone in result.json; default: from the work dir')
    parser.add_argument(
        '--pretraining',
        type=int,
        metavar='N',
        help='the backbone is the N-th of several pretrainings by that name, each for a seed of its own',
    )
    parser.add_argument('--data-root', help='replaces the leading "data" of the data roots in the config')
    parser.add_argument('--amp', action='store_true', help='train in bfloat16 mixed precision')
    parser.add_argument('--resume', action='store_true', help='go on with a broken-off run in the work dir')
    parser.add_argument('--cfg-options', nargs='+', action=Options, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=LAUNCHERS, default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


class FinetuneRunner(Runner):
    """A runner that compares the initialised model with the backbone file, and does its work fast."""

    backbone: Backbone | None = None
    _images: Any = None

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Prepare the model, and wrap it for several processes."""
        if self.cfg.get('task') == 'det' and self.cfg.get('batched_heads', True):
            from transfer.batch_detector import batch_detector

            self.logger.info(f'for whole batches: {", ".join(batch_detector(model)) or "nothing"}')
        if self.cfg.get('task') == 'seg':
            from transfer.seg_speed import loss_on_device

            self.logger.info(f'loss without waiting: {", ".join(loss_on_device(model)) or "none"}')
        bfloat16 = self.cfg.optim_wrapper.get('type') == 'Bf16OptimWrapper'
        return super().wrap_model(model_wrapper_cfg, prepare_model(model, bfloat16))

    def build_optim_wrapper(self, optim_wrapper: dict | OptimWrapper) -> OptimWrapper:
        """Build the optimizer, fused as the config says."""
        if isinstance(optim_wrapper, Mapping):
            optim_wrapper = right_fused(optim_wrapper)
        return super().build_optim_wrapper(optim_wrapper)

    def build_dataloader(self, dataloader: dict | DataLoader, *args: Any, **kwargs: Any) -> DataLoader:
        """Build a loader whose images are decoded once, unless the config says ``cache_images = False``."""
        built = super().build_dataloader(dataloader, *args, **kwargs)
        if self.cfg.get('cache_images', True):
            from transfer.image_cache import ImageStore, budget, cache_images

            if self._images is None:
                self._images = ImageStore(budget())
            cache_images(built.dataset, self._images)
        return built

    def build_val_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the validation loop; its results come in the order of the dataset, whatever the batches."""
        built = super().build_val_loop(loop)
        if self.cfg.get('task') == 'det':
            from transfer.det_speed import keep_order

            keep_order(built)
        return built

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        if self.backbone is not None and not self.backbone.random:
            model = self.model.module if is_model_wrapper(self.model) else self.model
            equal = prove_loaded(model, self.backbone.tensors)
            self.logger.info(f'backbone: {equal} of {equal} tensors equal those of {self.backbone.path}')


class _ResultHook(Hook):
    """Keep the last validation's metrics, and the training time over all resumes (seconds)."""

    priority = 'LOW'

    def __init__(self) -> None:
        self.metrics: dict[str, float] | None = None
        self.seconds = 0.0

    def before_train(self, runner: Runner) -> None:
        self._started = time.monotonic() - runner.message_hub.runtime_info.get('finetune_seconds', 0.0)

    def after_train_iter(self, runner: Runner, *_: Any, **__: Any) -> None:
        runner.message_hub.update_info('finetune_seconds', time.monotonic() - self._started)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self.metrics = metrics

    def after_train(self, runner: Runner) -> None:
        self.seconds = time.monotonic() - self._started


def finetune(args: argparse.Namespace) -> dict[str, Any]:
    """Train and evaluate as the command line says, and write ``result.json`` (rank 0).

    Returns:
        The content of ``result.json``.
    """
    keep_freed_memory()
    mmcv_ops.install()
    processes, main_process = world_size(args.launcher), is_main_process(args.launcher)
    cfg = load_config(args.config, args.cfg_options, args.amp, processes)
    check_amp(args.amp)
    if args.data_root:
        set_data_root(cfg, args.data_root)
    backbone = read_backbone(args.backbone)
    run, finished = open_run(args, cfg, backbone)
    if finished is not None:
        return finished
    check_float16(cfg)
    put_into(cfg, backbone)
    _localise(cfg, args, processes)
    if main_process:
        write_json(args.work_dir / 'run.json', run)

    runner = FinetuneRunner.from_cfg(cfg)
    runner.backbone = backbone
    if cfg.task == 'seg':
        from transfer.seg_speed import batch_evaluation

        batch_evaluation(getattr(runner.model, 'module', runner.model), runner._val_dataloader)
    hook = _ResultHook()
    runner.register_hook(hook)
    runner.register_hook(EpochSeedHook() if 'max_epochs' in cfg.train_cfg else IterationSeedHook())
    with _readable_image_errors():
        runner.train()
        metrics = hook.metrics if hook.metrics is not None else runner.val_loop.run()
    result = {
        **run,
        **_summary(cfg, metrics, runner.val_evaluator.metrics),
        'checkpoint': latest_checkpoint(args.work_dir).name,
        'seconds': hook.seconds,
        **_cost(processes),
    }
    if main_process:
        metric = runner.val_evaluator.metrics[0]
        found = metric.detections if cfg.task == 'det' else metric.overlaps
        save_predictions(args.work_dir, found, image_names(image_paths(runner.val_dataloader.dataset)))
        save_confusion(args.work_dir, metric.confusion, metric.dataset_meta['classes'])
        write_json(args.work_dir / 'result.json', result)
        for path in [*args.work_dir.glob('epoch_*.pth'), *args.work_dir.glob('iter_*.pth')]:
            if path.name != result['checkpoint']:
                path.unlink()  # was kept for a resume only
    leave_distributed()
    return result


@contextmanager
def _readable_image_errors() -> Iterator[None]:
    """Say which image is damaged, instead of mmcv's AssertionError out of a loader worker."""
    try:
        yield
    except AssertionError as error:
        image = re.search(r'failed to load image: (.+)', str(error))
        if image is None:
            raise
        raise InputError(f'cannot read image {image[1]}; unpack it again from its archive') from error


def _localise(cfg: Config, args: argparse.Namespace, processes: int) -> None:
    """Fit a config to this run: work dir, seed, processes, exact metrics."""
    cfg.work_dir = str(args.work_dir)
    latest = latest_checkpoint(args.work_dir) if args.resume else None
    if latest is not None:
        if not latest.is_file():
            raise InputError(f'no {latest}, where {args.work_dir} had got to; delete that to run anew')
        cfg.resume, cfg.load_from = True, str(latest)
    cfg.launcher = args.launcher
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    if cfg.get('visualizer'):
        # mmengine hands out one visualizer per name and process, and with it the first run's log folder.
        cfg.visualizer.name = cfg.work_dir
    wait_less(cfg)
    _save_last(cfg)
    split_total_batch(cfg, processes)
    init_distributed(args.launcher, cfg)
    if not torch.cuda.is_available():
        plain_bn(cfg.model)
    from transfer.metrics import use_exact_metrics

    cfg.val_evaluator = use_exact_metrics(cfg.val_evaluator)
    cfg.test_evaluator = use_exact_metrics(cfg.test_evaluator)
    if cfg.task == 'det':
        from transfer.det_speed import batch_evaluation

        batch_evaluation(cfg)


def _save_last(cfg: Config) -> None:
    """Have the network that is measured at the end saved, in place, whatever the config saves."""
    hooks = cfg.default_hooks
    if hooks.get('checkpoint') is None:
        hooks.checkpoint = {'type': 'CheckpointHook', 'by_epoch': 'max_iters' not in cfg.train_cfg}
    elif not hooks.checkpoint.get('save_last', True):
        hooks.checkpoint.save_last = True


def plain_bn(part: Any) -> None:
    """Make every SyncBN of a model's config a BN, in place: on a CPU there is no other."""
    if isinstance(part, dict):
        if part.get('type') == 'SyncBN':
            part['type'] = 'BN'
        part = list(part.values())
    if isinstance(part, list | tuple):
        for value in part:
            plain_bn(value)


def _cost(processes: int) -> dict[str, Any]:
    """GPUs in use, and the highest memory on this process's (MiB)."""
    if not torch.cuda.is_available():
        return {'gpus': 0}
    return {'gpus': processes, 'memory_mib': torch.cuda.max_memory_allocated() / 2**20}


def _summary(cfg: Config, metrics: dict[str, float], evaluators: list[Any]) -> dict[str, Any]:
    """Return ``metrics`` and ``per_class`` of result.json, as fractions."""
    return {
        'metrics': {
            one.name: float(metrics[one.source]) for one in dataset_of(cfg.task, cfg.dataset).metrics
        },
        'per_class': dict(evaluators[0].per_class),
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``python -m transfer.finetune``."""
    result = finetune(parse_args(argv))
    print(json.dumps(result['metrics']))


if __name__ == '__main__':
    run_main(main)
