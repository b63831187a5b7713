"""Fine-tune a backbone on VOC with mmdet or mmseg: ``python -m transfer.finetune CONFIG --backbone FILE``.

The configs are ordinary ones. What this adds to the training scripts of mmdet and mmseg: the proof that the
backbone was loaded, unrounded metrics, and a ``result.json`` that says what was run.
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
# With any of these different it is another run; the second of each pair is what to call it in a message.
_IDENTITY = (('config_sha256', 'config'), ('sha256', 'backbone'), ('seed', 'seed'))


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
    except Exception as error:  # A config is a program: it can fail in any way.
        raise InputError(
            f'{path} does not read as a config, with its options: {type(error).__name__}: {error}'
        ) from error
    if not {'task', 'dataset', 'model', 'train_dataloader'} <= set(cfg):
        raise InputError(f'{path} is no config of a transfer task: take one of configs/det or configs/seg')
    if amp:
        cfg.optim_wrapper.update(type='AmpOptimWrapper', loss_scale='dynamic')
    return cfg


def config_sha256(cfg: Config) -> str:
    """Hash what :func:`load_config` returns; the file's name and format do not count."""
    content = json.dumps(cfg.to_dict(), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


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
    """Say what a work dir holds of the run ``wanted``: ``'nothing'``, ``'part'`` or ``'all'`` of it.

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
            f'{what} was {_short(found, key, what)}, is now {_short(wanted, key, what)}'
            for key, what in _IDENTITY
            if found.get(key) != wanted[key]
        ]
        if different:
            raise InputError(
                f'{work_dir} holds another run: {"; ".join(different)}. '
                f'Take another --work-dir, or delete {work_dir}'
            )
        return state
    return 'nothing'


def _short(run: dict[str, Any], key: str, what: str) -> str:
    return f'{run.get(what)} ({str(run.get(key))[:8]})' if key != what else str(run.get(key))


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
    rank = _rank_and_world(args.launcher)[0]
    if args.amp and not torch.cuda.is_available():
        raise InputError('--amp needs a GPU, and PyTorch sees none here; run without --amp')
    backbone = read_backbone(args.backbone)
    run = {'name': args.name or _name(args.work_dir), **describe(cfg, backbone, args.seed)}
    state = check_work_dir(args.work_dir, run)
    if state == 'all':
        print(f'{args.work_dir} is finished: nothing to do')
        return json.loads((args.work_dir / 'result.json').read_text())
    # The other ranks may come here after the first has written run.json.
    if state == 'part' and not args.resume and rank == 0:
        raise InputError(f'{args.work_dir} holds a broken-off run; --resume goes on with it')
    put_into(cfg, backbone)
    _localise(cfg, args)
    if rank == 0:
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
    if rank == 0:
        _write_json(args.work_dir / 'result.json', result)
    return result


def _localise(cfg: Config, args: argparse.Namespace) -> None:
    """Fit a config to this run: data root, work dir, seed, processes, exact metrics."""
    if args.data_root:
        # Config is not a dict, its content is.
        set_data_root(cfg._cfg_dict, args.data_root)
    _check_lists(cfg)
    cfg.work_dir = str(args.work_dir)
    cfg.resume = args.resume
    cfg.launcher = args.launcher
    cfg.randomness = {**cfg.get('randomness', {}), 'seed': args.seed}
    split_total_batch(cfg, _rank_and_world(args.launcher)[1])
    if args.launcher == 'pytorch' and not torch.cuda.is_available():
        _join_cpu_group(cfg)
    from transfer.metrics import use_exact_metrics

    cfg.val_evaluator = use_exact_metrics(cfg.val_evaluator)
    cfg.test_evaluator = use_exact_metrics(cfg.test_evaluator)


def _rank_and_world(launcher: str) -> tuple[int, int]:
    names = {'pytorch': ('RANK', 'WORLD_SIZE'), 'slurm': ('SLURM_PROCID', 'SLURM_NTASKS')}.get(launcher)
    if names is None:
        return 0, 1
    if not all(name in os.environ for name in names):
        raise InputError(f'--launcher {launcher}, but {" and ".join(names)} are not set: start through it')
    return int(os.environ[names[0]]), int(os.environ[names[1]])


def _join_cpu_group(cfg: Config) -> None:
    """Join a gloo group: mmengine would select a GPU, hand its id to DDP, and SyncBN exists on GPUs only."""
    torch.distributed.init_process_group('gloo')
    cfg.model_wrapper_cfg = {'type': 'MMDistributedDataParallel', 'broadcast_buffers': False}

    def plain_bn(part: Any) -> None:
        if isinstance(part, dict):
            if part.get('type') == 'SyncBN':
                part['type'] = 'BN'
            part = list(part.values())
        if isinstance(part, list | tuple):
            for value in part:
                plain_bn(value)

    plain_bn(cfg.model)


def voc_datasets(cfg: Config) -> list[dict]:
    """Return the VOC datasets of a config, those to train on first; wrappers are opened."""
    found, waiting = [], [cfg.train_dataloader.dataset, cfg.val_dataloader.dataset]
    while waiting:
        one = waiting.pop(0)
        inner = [*one.get('datasets', []), *([one.dataset] if 'dataset' in one else [])]
        waiting = [*inner, *waiting]
        if not inner:
            found.append(one)
    return found


def _check_lists(cfg: Config) -> None:
    for dataset in voc_datasets(cfg):
        path = Path(dataset.data_root) / dataset.ann_file
        if not path.is_file():
            raise InputError(f'no {path}: put the data there, or say with --data-root where "data" is')


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
