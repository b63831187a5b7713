"""Feature maps of four strides from any network of timm's; configs name this in their ``custom_imports``."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from mmengine.model import BaseModule
from mmengine.registry import MODELS
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from sd_pretrain.cli import InputError
from transfer.timm_network import TimmNetwork

STRIDES = (4, 8, 16, 32)
# With which a network is tried; not square, and of no network's own size.
_HEIGHT, _WIDTH = 128, 192
# As it is; as those networks with a table of positions want it, to take any size of image.
_ARGUMENTS: tuple[dict[str, Any], ...] = ({}, {'dynamic_img_size': True})
# Patches of 14 pixels divide no image whose sides are multiples of 32, and do so after this.
_SCALES = (1.0, 14 / 16)
# Of networks that have no intermediate maps, or not of such an image.
_ERRORS = (AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


@MODELS.register_module()
class TimmPyramid(BaseModule):
    """The feature maps of a network of timm's, as a feature pyramid (FPN) takes them: strides 4, 8, 16, 32.

    A level is the last map of its stride. Where a network has none of a stride, it is made of the nearest by
    bilinear interpolation; levels that share a stride have maps from the network's depth in even steps: of
    the 12 blocks of a ViT, all of stride 16, those of 3, 6, 9 and 12 (as mmseg's ViTs have it). Every map is
    normalised over its channels, without weights, so that networks whose features are of other magnitudes
    all learn at one rate. Nothing here has weights but the network.

    Args:
        name: for ``timm.create_model``.
        args: further arguments of it.
        checkpoint: its weights, as :func:`transfer.backbone.read_backbone` takes them; default: at random.
        norm_eval: freeze its batch normalisation, statistics and affine; other norms are trained. Without a
            checkpoint the affine is trained: timm draws ResNets with factors of 0 at the end of their blocks,
            and with those frozen no block would learn anything.

    Raises:
        InputError: it has no such maps, or takes images of its own size alone.
    """

    def __init__(
        self,
        name: str,
        args: dict[str, Any] | None = None,
        checkpoint: str | None = None,
        norm_eval: bool = True,
    ):
        super().__init__()
        plan = plan_pyramid(name, args)
        self.network = TimmNetwork(name, plan.args).build()
        places = sorted(set(plan.places))
        # Without what comes after the last map, which would be trained by nothing.
        self.network.prune_intermediate_layers(places, prune_norm=True, prune_head=True)
        self.places = places
        self.order = [places.index(one) for one in plan.places]
        self.channels = plan.channels
        self.scale = plan.scale
        self.checkpoint = checkpoint
        self.norm_eval = norm_eval
        if norm_eval and checkpoint is not None:
            for norm in self._batch_norms():
                norm.requires_grad_(False)
        self.train()

    def init_weights(self) -> None:
        """Load the weights of ``checkpoint``; without one they stay as timm draws them."""
        if self.checkpoint is not None:
            from transfer.backbone import read_backbone

            self.network.load_state_dict(read_backbone(self.checkpoint).tensors, strict=False)

    def train(self, mode: bool = True) -> TimmPyramid:
        """As of any module, but that frozen batch normalisation stays in test mode."""
        super().train(mode)
        if self.norm_eval:
            for norm in self._batch_norms():
                norm.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Compute maps ``(N, C_i, H / s_i, W / s_i)`` of images ``(N, 3, H, W)``, H and W multiples of 32."""
        height, width = images.shape[-2:]
        if self.scale != 1:
            images = _resize(images, round(height * self.scale), round(width * self.scale))
        maps = self.network.forward_intermediates(
            images, indices=self.places, intermediates_only=True, output_fmt='NCHW'
        )
        return tuple(
            _resize(_normalise(maps[place]), height // stride, width // stride)
            for place, stride in zip(self.order, STRIDES, strict=True)
        )

    def _batch_norms(self) -> Iterator[nn.Module]:
        return (module for module in self.network.modules() if isinstance(module, _BatchNorm))


@dataclass(frozen=True)
class PyramidPlan:
    """How a network gives maps of all :data:`STRIDES`.

    Args:
        args: for ``timm.create_model``, so that it takes images of any size.
        scale: of the images it gets.
        places: which of its intermediate maps makes each level.
        channels: of each level.
    """

    args: dict[str, Any]
    scale: float
    places: list[int]
    channels: list[int]


def plan_pyramid(name: str, args: dict[str, Any] | None = None) -> PyramidPlan:
    """Find the maps of a network for a pyramid; nothing is computed.

    Args:
        name: for ``timm.create_model``.
        args: further arguments of it.

    Raises:
        InputError: it has none, or takes images of its own size alone.
    """
    said = ''
    for scale in _SCALES:
        for more in _ARGUMENTS:
            known = {**(args or {}), **more}
            try:
                sizes = _map_sizes(name, known, scale)
            except _ERRORS as error:
                # The first is of the network as it is.
                said = said or (str(error) or type(error).__name__).splitlines()[0]
                continue
            strides = [_HEIGHT / height for _, height, _ in sizes]
            if any(_WIDTH / width != stride for (*_, width), stride in zip(sizes, strides, strict=True)):
                said = said or f'its maps are {", ".join(f"{height}x{width}" for _, height, width in sizes)}'
                continue
            places = _levels(strides)
            return PyramidPlan(known, scale, places, [sizes[place][0] for place in places])
    raise InputError(
        f'a {name} has no maps of images of any size, which detection and segmentation need ({said}); '
        '"probe voc07" takes it'
    )


def _map_sizes(name: str, args: dict[str, Any], scale: float) -> list[tuple[int, int, int]]:
    """Channels, height and width of all its intermediate maps of an image."""
    with torch.device('meta'):
        network = TimmNetwork(name, args).build().eval()
        images = torch.empty(1, 3, round(_HEIGHT * scale), round(_WIDTH * scale))
        maps = network.forward_intermediates(images, intermediates_only=True, output_fmt='NCHW')
    return [tuple(one.shape[1:]) for one in maps]


def _levels(strides: Sequence[float]) -> list[int]:
    """The place of the map of each level: of its stride, or the nearest; several share a stride evenly."""
    nearest = [min(strides, key=lambda one, to=to: abs(math.log2(one / to))) for to in STRIDES]
    places = []
    for level, stride in enumerate(nearest):
        there = [place for place, one in enumerate(strides) if one == stride]
        before, sharing = nearest[:level].count(stride), nearest.count(stride)
        places.append(there[math.ceil(len(there) * (before + 1) / sharing) - 1])
    return places


def _normalise(features: Tensor) -> Tensor:
    """Normalise each position of ``(N, C, H, W)`` over its channels."""
    return functional.layer_norm(features.movedim(1, -1), features.shape[1:2]).movedim(-1, 1)


def _resize(images: Tensor, height: int, width: int) -> Tensor:
    if images.shape[-2:] == (height, width):
        return images
    return functional.interpolate(images, (height, width), mode='bilinear', align_corners=False)
