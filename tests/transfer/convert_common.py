"""Random checkpoints in every layout the conversion reads."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torchvision
from safetensors.torch import save_file
from torch import Tensor

CLASSES = 7


def random_weights(arch: str, num_classes: int = CLASSES) -> dict[str, Tensor]:
    """A torchvision state_dict in which no two batch norms are alike."""
    with torch.device('meta'):
        network = getattr(torchvision.models, arch)(num_classes=num_classes)
    generator = torch.Generator().manual_seed(0)
    weights = {}
    for name, value in network.state_dict().items():
        if not value.is_floating_point():
            weights[name] = torch.tensor(1000)
            continue
        scale = (2 / max(value[0].numel(), 1)) ** 0.5 if value.ndim > 1 else 0.1
        weights[name] = scale * torch.randn(value.shape, generator=generator)
        if name.endswith(('running_var', 'bn1.weight', 'bn2.weight', 'bn3.weight', 'downsample.1.weight')):
            weights[name] += 0.7
        if name.endswith('running_var'):
            weights[name].abs_().add_(0.3)
    return weights


def prefixed(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {prefix + name: value for name, value in weights.items()}


def _message_hub() -> dict:
    from mmengine.logging import MessageHub

    hub = MessageHub('convert')
    for step in range(3):
        hub.update_scalar('train/loss', float(step))
        hub.update_info('best_score', np.float64(0.5))
    return hub.state_dict()


def ours(weights: dict[str, Tensor], path: Path) -> None:
    momentum = {0: {'momentum_buffer': torch.zeros(3)}}
    torch.save(
        {
            'meta': {'epoch': 2, 'dataset_meta': {'classes': ('a', 'b')}},
            'state_dict': prefixed(weights, 'network.'),
            'message_hub': _message_hub(),
            'optimizer': {'state': momentum, 'param_groups': []},
            'snapshot_distillation': {'teacher': weights},
        },
        path,
    )


def torchvision_file(weights: dict[str, Tensor], path: Path) -> None:
    """As torchvision published its first weights: PyTorch's old format, without batch counters."""
    old = {name: value for name, value in weights.items() if not name.endswith('num_batches_tracked')}
    torch.save(old, path, _use_new_zipfile_serialization=False)


def torchvision_run(weights: dict[str, Tensor], path: Path) -> None:
    """As torchvision's training reference saves."""
    args = argparse.Namespace(data_path=Path('data'), lr=0.1)
    torch.save({'model': prefixed(weights, '_orig_mod.'), 'epoch': 3, 'args': args}, path)


def timm_run(weights: dict[str, Tensor], path: Path) -> None:
    """As timm's train.py saves from DDP; the averaged weights beside are others."""
    averaged = {name: torch.zeros_like(value) for name, value in weights.items()}
    torch.save({'arch': 'x', 'state_dict': prefixed(weights, 'module.'), 'state_dict_ema': averaged}, path)


def timm_safetensors(weights: dict[str, Tensor], path: Path) -> None:
    save_file(weights, path)


def mmpretrain(weights: dict[str, Tensor], path: Path) -> None:
    state_dict = {
        ('head.' if name.startswith('fc.') else 'backbone.') + name: value for name, value in weights.items()
    }
    torch.save({'meta': {'mmpretrain_version': '1.2.0'}, 'state_dict': state_dict}, path)


FORMATS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    'ours.pth': ours,
    'torchvision.pth': torchvision_file,
    'torchvision-run.pt': torchvision_run,
    'timm-run.pth.tar': timm_run,
    'timm.safetensors': timm_safetensors,
    'mmpretrain.pth': mmpretrain,
}
