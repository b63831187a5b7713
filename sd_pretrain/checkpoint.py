"""Reading our own checkpoints, and checking that they fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import Tensor, nn

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
    wrong = misfits(model, content['state_dict'])
    if wrong:
        key, want, have = wrong[0]
        raise InputError(
            f'{path} does not fit the config: {len(wrong)} weights differ, first {key}: the config has '
            f'{want}, the checkpoint {have}; use the config it was trained with'
        )


def misfits(model: nn.Module, weights: Mapping[str, Tensor]) -> list[tuple[str, tuple | str, tuple | str]]:
    """Where names or shapes differ: name, shape in the model and in the weights, ``'none'`` for none."""
    want, have = (
        {key: tuple(value.shape) for key, value in one.items()} for one in (model.state_dict(), weights)
    )
    names = sorted(want.keys() | have.keys())
    found = [(key, want.get(key, 'none'), have.get(key, 'none')) for key in names]
    return [one for one in found if one[1] != one[2]]


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
