"""Reading our own checkpoints, and checking that they fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint of ours (``epoch_N.pth`` or ``snapshot_k.pth``) on the CPU.

    Raises:
        InputError: the file is missing, or see :func:`sd_pretrain.safe_load.load_checkpoint`; or it is of
            another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f'no checkpoint {path}: give the path of an epoch_N.pth or snapshot_k.pth')
    content = load_checkpoint(path, mmap=True)
    if not isinstance(content.get('state_dict'), dict):
        raise InputError(f"{path} is no checkpoint of this project: it has no 'state_dict'")
    return content


def check_fits(model: nn.Module, content: dict[str, Any], path: str | Path) -> None:
    """Check that a checkpoint has exactly the weights of ``model``.

    Raises:
        InputError: names or shapes differ (another depth, another number of classes).
    """
    want = {key: tuple(value.shape) for key, value in model.state_dict().items()}
    have = {key: tuple(value.shape) for key, value in content['state_dict'].items()}
    wrong = sorted(key for key in want.keys() | have.keys() if want.get(key) != have.get(key))
    if wrong:
        key = wrong[0]
        raise InputError(
            f'{path} does not fit the config: {len(wrong)} weights differ, first {key}: the config has '
            f'{want.get(key, "none")}, the checkpoint {have.get(key, "none")}; '
            'use the config it was trained with'
        )


def check_optimizer(cfg: Config, content: dict[str, Any], path: str | Path) -> None:
    """Check that the config's optimizer is set as the checkpoint's, which takes its place on resume.

    Raises:
        InputError: a setting differs.
    """
    if cfg.optim_wrapper.get('paramwise_cfg') or (cfg.get('auto_scale_lr') or {}).get('enable'):
        return
    for group in content['optimizer'].get('param_groups', []):
        group = {**group, 'lr': group.get('initial_lr', group['lr'])}
        for key, value in cfg.optim_wrapper.optimizer.items():
            value = tuple(value) if isinstance(value, list) else value
            if key in group and group[key] != value:
                raise InputError(
                    f'the config has {key}={value}, {path} was trained with {group[key]}, which would win on '
                    'resume; set it back, or start anew in another --work-dir'
                )
