"""Networks that are no plain ResNet: any of timm's."""

from __future__ import annotations

import hashlib
import json
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from sd_pretrain.cli import InputError
from transfer.architecture import ARCHS, choose_prefix, recorded_args, recorded_name, select_tensors
from transfer.sources import known_network


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

    @property
    def sha256(self) -> str:
        """Hash of all that it is."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def build(self, classes: int = 0) -> nn.Module:
        """Make the network: logits of images ``(N, 3, H, W)``; for 0 classes pooled features ``(N, D)``."""
        import timm

        return timm.create_model(self.name, num_classes=classes, **self.args)

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

    def read_weights(self, checkpoint: Mapping[str, Any], where: str, classes: int = 0) -> dict[str, Tensor]:
        """Find its tensors in a loaded checkpoint, and strip the prefix of their names.

        For 0 ``classes`` without classifier. Tables of positions of other images than the network's are
        resized.

        Raises:
            InputError: some are missing or of another shape, or its blocks have more there; or the checkpoint
                has several such networks.
        """
        tensors = select_tensors(checkpoint, where)
        with torch.device('meta'):
            network = self.build(classes)
        wanted = network.state_dict()
        first = next(iter(wanted))
        prefixes = sorted((name.removesuffix(first) for name in tensors if name.endswith(first)), key=len)
        whole = [prefix for prefix in prefixes if all(f'{prefix}{name}' in tensors for name in wanted)]
        prefix = choose_prefix(whole or prefixes[:1], where, f'networks like {self.name}') or ''
        given = {
            name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)
        }
        wrong = unlike(given, wanted)
        found = _as_timm_names(given, network) if wrong or _more(given, network) else given
        # timm resizes more than positions, and makes patches of 16 pixels of those of 32.
        other = [name for name in wrong if name.endswith('patch_embed.proj.weight') and name in given]
        other = [name for name in other if given[name].numel() != wanted[name].numel()]
        if other or unlike(found, wanted):
            wrong = other or wrong
            raise InputError(
                f'of the {len(wanted)} tensors of a {self.name}, {len(wrong)} are missing in {where} or '
                f'of another shape there, first {wrong[0]}'
            )
        more = _more(found, network)
        if more:
            raise InputError(
                f'{where} is of another network than a {self.name}, whose blocks have no {more[0]}'
                f'{f" and {len(more) - 1} more" if more[1:] else ""}'
            )
        return {name: found[name] for name in wanted}


def unlike(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    """Names of tensors that are missing, or of another shape."""
    return [name for name, value in wanted.items() if name not in found or found[name].shape != value.shape]


def _more(found: Mapping[str, Tensor], network: nn.Module) -> list[str]:
    """Names of tensors in numbered parts of a network, such as its blocks, that it has not."""
    known = {*network.state_dict(), *(name for name, _ in network.named_buffers())}
    parts = {name.partition('.')[0] for name in known} - {'head'}  # which may have a classifier there
    return [
        name
        for name in found
        if name not in known and name.partition('.')[0] in parts and re.search(r'\.\d+\.', name)
    ]


def _as_timm_names(tensors: dict[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The tensors of a network's original authors, as timm has them; as they were where it cannot tell."""
    rename = getattr(sys.modules[type(network).__module__], 'checkpoint_filter_fn', None)
    try:
        return rename(dict(tensors), network) if rename else tensors
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
        return tensors


def named_network(name: str) -> TimmNetwork | None:
    """The network by its name, without weights; ``None`` if that is a plain ResNet's.

    Raises:
        InputError: timm has none of that name.
    """
    known_network(name)
    return None if name in ARCHS else TimmNetwork(name)


def recorded_network(checkpoint: Mapping[str, Any], said: str = '') -> TimmNetwork | None:
    """The network of timm's that a checkpoint is of; ``None`` if nothing says which, or it is a plain ResNet.

    Args:
        checkpoint: as :func:`sd_pretrain.safe_load.load_checkpoint` returns it: of a pretraining of this
            project, of timm's training script, or any other that ``said`` names.
        said: the network of :class:`transfer.sources.Source`. Images are then normalised as the pretraining
            of its tag had them.

    Raises:
        InputError: timm has no such pretraining, or it had a ResNet on images normalised otherwise.
    """
    import timm
    from timm.data import IMAGENET_DEFAULT_MEAN

    full_name = said or recorded_name(checkpoint)
    name, tagged, _ = full_name.partition('.')
    if not timm.is_model(name):
        return None
    if name in ARCHS:
        if tagged and said and known_network(said).mean != IMAGENET_DEFAULT_MEAN:
            raise InputError(
                f'{said} was pretrained on images with mean {known_network(said).mean}, and those of ResNets '
                'are normalised as ImageNet usually is: take weights with another tag'
            )
        return None
    pretrained = known_network(full_name)
    # Networks of this project for CIFAR's images have no such entry, nor a form without classifier.
    if pretrained is None:
        return None
    if isinstance(checkpoint.get('meta'), dict) and recorded_name(checkpoint) == full_name:
        return TimmNetwork(name, recorded_args(checkpoint))
    if said and not tagged:
        return TimmNetwork(name)
    mean, std = (tuple(255 * value for value in values) for values in (pretrained.mean, pretrained.std))
    return TimmNetwork(name, mean=mean, std=std)
