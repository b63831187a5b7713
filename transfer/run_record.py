"""What a fine-tuning run is: its config, its identity, and what of it a work dir already holds."""

from __future__ import annotations

import hashlib
import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sd_pretrain.bfloat16 import train_in_bf16
from sd_pretrain.cli import InputError, read_config
from sd_pretrain.launch import is_main_process
from sd_pretrain.vis_backends import check_vis_backends
from sd_pretrain.work_dir import read_json
from transfer.backbone import Backbone, config_arch
from transfer.foreign_config import adopt
from transfer.image_lists import data_folder, datasets_of, image_list

SCHEMA = 1
# With any of these different it is another run; the second of each pair is what to call it in a message.
_IDENTITY = (
    ('config_sha256', 'config'),
    ('lists_sha256', 'image lists'),
    ('sha256', 'backbone'),
    ('network_sha256', 'backbone'),
    ('seed', 'seed'),
)


def load_config(
    path: str | Path, cfg_options: dict | None = None, amp: bool = False, processes: int = 1
) -> Config:
    """Read a config of a transfer task, or one of mmdet or mmseg, and apply the options.

    A config of mmdet or mmseg needs to know how many ``processes`` train.

    Raises:
        InputError: the file is missing, is no config, or is not one of a transfer task.
    """
    cfg = read_config(path, cfg_options)
    adopt(cfg, processes)
    if not {'task', 'dataset', 'model', 'train_dataloader'} <= set(cfg):
        raise InputError(f'{path} is no config of a transfer task: take one of configs/det, seg or probe')
    check_vis_backends(cfg)
    if amp and 'optim_wrapper' not in cfg:
        raise InputError(f'{path} trains no network: run without --amp')
    if amp:
        train_in_bf16(cfg)
    return cfg


def config_sha256(cfg: Config) -> str:
    """Hash what :func:`load_config` returns; the file's name and format and the data's place do not count."""

    def placeless(part: Any) -> Any:
        if isinstance(part, dict):
            return {key: placeless(value) for key, value in part.items() if key != 'data_root'}
        return [placeless(value) for value in part] if isinstance(part, list | tuple) else part

    content = json.dumps(placeless(cfg.to_dict()), sort_keys=True, default=str)
    return hashlib.sha256(content.encode()).hexdigest()


def lists_sha256(cfg: Config) -> str:
    """Hash the image lists of a config, its data root set, those to train on first: the data, wherever it is.

    Raises:
        InputError: a list is not there.
    """
    found = hashlib.sha256()
    for one in datasets_of(cfg):
        found.update(image_list(one).sha256)
    return found.hexdigest()


def describe(cfg: Config, backbone: Backbone, seed: int, pretraining: int | None = None) -> dict[str, Any]:
    """Return what identifies a run, the part of ``result.json`` that is known before it starts.

    The data root of ``cfg`` is set, and nothing else of it has been changed since it was loaded. Where
    backbones of one name are several pretrainings, ``pretraining`` counts them from 1.

    Raises:
        InputError: an image list is not there.
    """
    return {
        'schema': SCHEMA,
        'task': cfg.task,
        'dataset': cfg.dataset,
        'seed': seed,
        'config': _relative(cfg.filename),
        'config_sha256': config_sha256(cfg),
        'lists_sha256': lists_sha256(cfg),
        'images': [image_list(one).images for one in datasets_of(cfg)],
        # The emoji world says what it is, beside VOCdevkit.
        'demo': (data_folder(datasets_of(cfg)[-1]).parent.parent / 'world.json').is_file(),
        'arch': backbone.arch or config_arch(cfg),
        'backbone': _relative_backbone(backbone.path),
        'sha256': backbone.sha256,
        # The same file may be read as another network, or its images normalised otherwise.
        **({'network_sha256': backbone.network.sha256} if backbone.network else {}),
        'pretraining': pretraining,
    }


def open_run(args: Namespace, cfg: Config, backbone: Backbone) -> tuple[dict[str, Any], dict | None]:
    """Say what the run of a command line is, and its ``result.json`` if it is finished.

    Args:
        args: of :func:`transfer.finetune.parse_args`.
        cfg: see :func:`describe`.
        backbone: its backbone.

    Raises:
        InputError: the work dir holds another run, or part of this one and ``--resume`` is not given.
    """
    run = {'name': args.name or _name(args.work_dir), **describe(cfg, backbone, args.seed, args.pretraining)}
    state = check_work_dir(args.work_dir, run)
    if state == 'all':
        print(f'{args.work_dir} is finished: nothing to do')
        return run, json.loads((args.work_dir / 'result.json').read_text())
    # The other ranks may come here after the first has written run.json.
    if state == 'part' and not args.resume and is_main_process(args.launcher):
        raise InputError(f'{args.work_dir} holds a broken-off run; --resume goes on with it')
    return run, None


def _name(work_dir: Path) -> str:
    work_dir = work_dir.absolute()
    return work_dir.parent.name if work_dir.name.startswith('seed') else work_dir.name


def check_work_dir(work_dir: Path, wanted: dict[str, Any]) -> str:
    """Say what a work dir holds of the run ``wanted``: ``'nothing'``, ``'part'`` or ``'all'`` of it.

    Raises:
        InputError: it holds another run; says what differs.
    """
    for file, state in (('result.json', 'all'), ('run.json', 'part')):
        found = read_json(work_dir / file, f'delete {work_dir} to run anew')
        if found is None:
            continue
        different = [
            f'{what} was {_short(found, key, what)}, is now {_short(wanted, key, what)}'
            for key, what in _IDENTITY
            if found.get(key) != wanted.get(key)
        ]
        if different:
            raise InputError(
                f'{work_dir} holds another run: {"; ".join(different)}. '
                f'Take another --work-dir, or delete {work_dir}'
            )
        return state
    return 'nothing'


def _short(run: dict[str, Any], key: str, what: str) -> str:
    short = str(run.get(key))[:8]
    return f'{run[what]} ({short})' if what in run and what != key else short


def _relative(path: str) -> str:
    """Return a path relative to the repository, so that a result reads the same on another machine."""
    root = Path(__file__).resolve().parents[1]
    resolved = Path(path).resolve()
    return str(resolved.relative_to(root)) if resolved.is_relative_to(root) else str(resolved)


def _relative_backbone(path: str) -> str:
    if Path(path).is_absolute():
        return _relative(path)
    network, at, file = path.partition('@/')
    return f'{network}@{_relative(f"/{file}")}' if at else path
