"""Networks that are no plain ResNet: any of timm's."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sd_pretrain.cli import InputError
from transfer.architecture import ARCHS, recorded_args, recorded_name, select_tensors


@dataclass(frozen=True)
class TimmNetwork:
    """A network of timm's.

    Args:
        name: for ``timm.create_model``.
        args: further arguments of it, such as ``img_size``.
        mean: of each channel (RGB, 0 to 255) with which its images are normalised; ``None``: as the probe
            does.
        std: the same.
    """

    name: str
    args: dict[str, Any] = field(default_factory=dict)
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def build(self) -> nn.Module:
        """Make the network without its classifier: pooled features ``(N, D)`` of images ``(N, 3, H, W)``."""
        import timm

        return timm.create_model(self.name, num_classes=0, **self.args)

    def check_size(self, size: int) -> None:
        """Check that it has features of images of ``size`` times ``size`` pixels.

        Raises:
            InputError: it has not.
        """
        try:
            with torch.device('meta'):
                features = self.build().eval()(torch.empty(1, 3, size, size))
            if features.ndim != 2:
                raise ValueError(f'features of shape {tuple(features.shape)}')
        except (AssertionError, RuntimeError, ValueError) as error:
            raise InputError(
                f'a {self.name} has no features of images of {size} px ({error}): '
                'set --cfg-options view.resize=... view.crop=...'
            ) from None

    def read_weights(self, checkpoint: Mapping[str, Any], where: str) -> dict[str, Tensor]:
        """Find its tensors in a loaded checkpoint, and strip the prefix of their names.

        Raises:
            InputError: some are missing or of another shape.
        """
        tensors = select_tensors(checkpoint, where)
        with torch.device('meta'):
            wanted = self.build().state_dict()
        first = next(iter(wanted))
        prefix = min(
            (name.removesuffix(first) for name in tensors if name.endswith(first)), key=len, default=''
        )
        found = {name: tensors.get(prefix + name) for name in wanted}
        wrong = [name for name, value in found.items() if value is None or value.shape != wanted[name].shape]
        if wrong:
            raise InputError(
                f'{where} says that it is a {self.name}, of whose {len(wanted)} tensors {len(wrong)} are '
                f'missing or of another shape, first {wrong[0]}'
            )
        return found


def named_network(name: str) -> TimmNetwork | None:
    """The network by its name, without weights; ``None`` if that is a plain ResNet's.

    Raises:
        InputError: timm has none of that name.
    """
    import timm

    if not timm.is_model(name):
        near = difflib.get_close_matches(name, timm.list_models(), n=4, cutoff=0.4)
        raise InputError(f'timm has no network {name!r}{"; near: " if near else ""}{", ".join(near)}')
    return None if name in ARCHS else TimmNetwork(name)


def recorded_network(checkpoint: Mapping[str, Any], label: str) -> TimmNetwork | None:
    """The network of timm's that a checkpoint says it is of; ``None`` if it says nothing, or a plain ResNet.

    Args:
        checkpoint: as :func:`sd_pretrain.safe_load.load_checkpoint` returns it: of a pretraining of this
            project, or of timm's training script.
        label: of :func:`transfer.sources.resolve`; that of ``timm:NAME`` says it.
    """
    library, _, fetched = label.partition(':')
    full_name = fetched if library == 'timm' else recorded_name(checkpoint)
    name = full_name.partition('.')[0]
    if not name or name in ARCHS:
        return None
    import timm

    pretrained = timm.get_pretrained_cfg(full_name)
    # Networks of this project for CIFAR's images have no such entry, nor a form without classifier.
    if pretrained is None:
        return None
    if isinstance(checkpoint.get('meta'), dict):
        return TimmNetwork(name, recorded_args(checkpoint))
    mean, std = (tuple(255 * value for value in values) for values in (pretrained.mean, pretrained.std))
    return TimmNetwork(name, mean=mean, std=std)
