"""Fine-tune a backbone on VOC with mmdet or mmseg: ``python -m transfer.finetune CONFIG --backbone FILE ...``.

The configs are ordinary ones; what this adds to ``mmdet``'s own training script is the proof that the backbone was loaded,
unrounded metrics, and a ``result.json`` that says what was run.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config, DictAction
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner

from sd_pretrain.cli import InputError, run_main, set_data_root, split_total_batch
from transfer import mmcv_ops
from transfer.backbone import Backbone, config_arch, prove_loaded, put_into, read_backbone

SCHEMA = 1
# Identity of a run: with any of these different it is another run.
_IDENTITY = ('config', 'config_sha256', 'sha256', 'seed')


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    """Parse the command line of ``python -m transfer.finetune``."""
    parser = argparse.ArgumentParser(prog='python -m transfer.finetune', description=__doc__.splitlines()[0])
    parser.add_argument('config', help='a config of configs/det, configs/seg or configs/demo')
    parser.add_argument(
        '--backbone', required=True, help='backbone file of tools/convert_checkpoint.py, or "none"'
    )
    parser.add_argument('--work-dir', required=True, type=Path)
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--name', help='name of the backbone in result.json; default: from the work dir')
    parser.add_argument('--data-root', help='replaces the leading "data" of the data roots in the config')
    parser.add_argument('--amp', action='store_true', help='mixed precision (GPU only)')
    parser.add_argument('--resume', action='store_true', help='go on with a broken-off run in the work dir')
    parser.add_argument('--cfg-options', nargs='+', action=DictAction, metavar='KEY=VALUE')
    parser.add_argument('--launcher', choices=['none', 'pytorch', 'slurm'], default='none')
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


def load_config(path: str | Path, cfg_options: dict | None = None, amp: bool = False) -> Config:
    """Read a det or seg config and apply the options.

    Raises:
        InputError: the file is missing, is no config, or is not one of a transfer task.
    """
    if not Path(path).is_file():
        raise InputError(f'no config {path}; see configs/README.md for those there are')
    try:
        cfg = Config.fromfile(path)
        if cfg_options:
            cfg.merge_from_dict(cfg_options)
    except (SyntaxError, KeyError, TypeError, AssertionError, OSError, IndexError) as error:
        raise InputError(f'{path} does not parse as a config (with its options): {error}') from error
    if not {'task', 'dataset', 'model', 'train_dataloader'} <= set(cfg):
        raise InputError(
            f'{path} is no config of a transfer task (task, dataset, model): take one of configs/det or configs/seg'
        )
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    return cfg


def config_sha256(cfg: Config) -> str:
    """Hash a config's content: independent of file name, formatting, data root, work dir and number of processes."""
    content = cfg.to_dict()
    set_data_root(content, 'data')
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def describe(cfg: Config, backbone: Backbone, seed: int) -> dict[str, Any]:
    """Return what identifies a run, the part of ``result.json`` that is known before it starts."""
    return {
        'schema': SCHEMA,
        'task': cfg.task,
        'dataset': cfg.dataset,
        'seed': seed,
        'config': _relative(cfg.filename),
        'config_sha256': config_sha256(cfg),
        'arch': config_arch(cfg),
        'backbone': backbone.path,
        'sha256': backbone.sha256,
    }


def check_work_dir(work_dir: Path, wanted: dict[str, Any]) -> str:
    """Say what a work dir holds of the run described by ``wanted``: ``'nothing'``, ``'part'`` or ``'all'`` of it.

    Raises:
        InputError: it holds another run; says what differs.
    """
    for file, state in (('result.json', 'all'), ('run.json', 'part')):
        if not (work_dir / file).exists():
            continue
        try:
            found = json.loads((work_dir / file).read_text())
        except json.JSONDecodeError as error:
            raise InputError(
                f'{work_dir / file} does not parse ({error}); delete {work_dir} to run anew'
            ) from error
        different = [
            f'{key} {found.get(key)} (now {wanted[key]})'
            for key in _IDENTITY
            if found.get(key) != wanted[key]
        ]
        if different:
            raise InputError(
                f'{work_dir} holds another run: {"; ".join(different)}. Choose another --work-dir, or delete that one'
            )
        return state
    return 'nothing'


class _ProvingRunner(Runner):
    """A runner that, once the weights are initialised, compares the model with the backbone file."""

    backbone: Backbone

    def _init_model_weights(self) -> None:
        super()._init_model_weights()
        if self.backbone.tensors:
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

    def after_train_epoch(self, runner: Runner) -> None:
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
    mmcv_ops.install()
    cfg = load_config(args.config, args.cfg_options, args.amp)
    if args.amp and not torch.cuda.is_available():
        raise InputError('--amp needs a GPU, and PyTorch sees none here; run without --amp')
    backbone = read_backbone(args.backbone)
    run = {'name': args.name or _name(args.work_dir), **describe(cfg, backbone, args.seed)}
    state = check_work_dir(args.work_dir, run)
    if state == 'all':
        print(f'{args.work_dir} is finished: nothing to do')
        return json.loads((args.work_dir / 'result.json').read_text())
    if state == 'part' and not args.resume:
        raise InputError(f'{args.work_dir} holds a broken-off run; --resume goes on with it')
    put_into(cfg, backbone)
    _localise(cfg, args)
    if int(os.environ.get('RANK', 0)) == 0:
        _write_json(args.work_dir / 'run.json', run)

    runner = _ProvingRunner.from_cfg(cfg)
    runner.backbone = backbone
    hook = _ResultHook()
    runner.register_hook(hook)
    runner.train()
    metrics = hook.metrics if hook.metrics is not None else runner.val()
    result = {
        **run,
        **_summary(cfg.task, metrics, runner.val_evaluator.metrics),
        'checkpoint': f'epoch_{runner.max_epochs}.pth',
        'seconds': hook.seconds,
    }
    if runner.rank == 0:
        _write_json(args.work_dir / 'result.json', result)
    return result


def _localise(cfg: Config, args: argparse.Namespace) -> None:
    """Fit a config to this run: data root, work dir, seed, processes, exact metrics."""
    if args.data_root:
        set_data_root(cfg._cfg_dict, args.data_root)
    cfg.work_dir = str(args.work_dir)
    cfg.resume = args.resume
    cfg.launcher = args.launcher
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    world_size = int(os.environ.get('WORLD_SIZE' if args.launcher != 'slurm' else 'SLURM_NTASKS', 1))
    split_total_batch(cfg, world_size if args.launcher != 'none' else 1)
    from transfer.metrics import use_exact_metrics

    cfg.val_evaluator = use_exact_metrics(cfg.val_evaluator)
    cfg.test_evaluator = use_exact_metrics(cfg.test_evaluator)


def _summary(task: str, metrics: dict[str, float], evaluators: list[Any]) -> dict[str, Any]:
    """Return ``metrics`` and ``per_class`` of result.json, as fractions."""
    if task == 'det':
        values = {'mAP_11point': metrics['11point/mAP'], 'mAP_area': metrics['area/mAP']}
    else:
        values = {'mIoU': metrics['mIoU_exact']}
    return {
        'metrics': {key: float(value) for key, value in values.items()},
        'per_class': dict(evaluators[0].per_class),
    }


def _name(work_dir: Path) -> str:
    work_dir = work_dir.absolute()
    return work_dir.parent.name if work_dir.name.startswith('seed') else work_dir.name


def _relative(path: str) -> str:
    """Return a path relative to the repository, so that a result reads the same on another machine."""
    root = Path(__file__).resolve().parents[1]
    resolved = Path(path).resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else str(resolved)


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix('.json.part')
    partial.write_text(json.dumps(content, indent=2) + '\n')
    partial.replace(path)


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``python -m transfer.finetune``."""
    result = finetune(parse_args(argv))
    print(json.dumps(result['metrics']))


if __name__ == '__main__':
    run_main(main)
