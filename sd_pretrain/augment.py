"""Augmentation of a whole batch at once, with parameters of its own for each image.

What is drawn is apart from what is done with it: the latter is a function of tensors alone, which compiles.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F


class Draws(NamedTuple):
    """What chance says about the images of a batch; ``None`` for what is not to be done.

    Args:
        mirror: ``(N,)`` bool, swap left and right.
        angle: ``(N,)`` in radians, turn by it.
        factors: ``(3, N, 1, 1, 1)``, of brightness, contrast and saturation.
    """

    mirror: Tensor | None
    angle: Tensor | None
    factors: Tensor | None


def draw(
    count: int,
    device: torch.device,
    mirror: float = 0.0,
    rotation: float = 0.0,
    jitter: float = 0.0,
    generator: torch.Generator | None = None,
) -> Draws:
    """Draw the augmentation of ``count`` images.

    Args:
        count: number of images.
        device: where they are.
        mirror: probability of a mirror image.
        rotation: largest angle in degrees; angles are uniform in ``-rotation .. rotation``.
        jitter: largest relative change; factors are uniform in ``1 - jitter .. 1 + jitter``.
        generator: source of the random numbers, on that device.
    """
    factors = angle = mirrored = None
    if jitter:
        factors = torch.empty(3, count, 1, 1, 1, device=device)
        factors.uniform_(1 - jitter, 1 + jitter, generator=generator)
    if rotation:
        largest = math.radians(rotation)
        angle = torch.empty(count, device=device).uniform_(-largest, largest, generator=generator)
    if mirror:
        mirrored = torch.rand(count, device=device, generator=generator) < mirror
    return Draws(mirrored, angle, factors)


def augment(images: Tensor, draws: Draws) -> Tensor:
    """Jitter, mirror and turn images ``(N, 3, H, W)``, RGB in 0 to 255, as ``draws`` say; in float32."""
    images = images.float()
    if draws.factors is not None:
        images = jitter(images, draws.factors)
    if draws.angle is not None:
        return rotate(images, draws.angle, draws.mirror)
    if draws.mirror is not None:
        images = torch.where(draws.mirror.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def jitter(images: Tensor, factors: Tensor) -> Tensor:
    """Scale brightness, contrast and saturation of each image.

    Args:
        images: ``(N, 3, H, W)`` float, RGB in 0 to 255.
        factors: ``(3, N, 1, 1, 1)``, of brightness, contrast and saturation.

    Returns:
        New images, clipped to 0 to 255.
    """
    brightness, contrast, saturation = factors
    images = (images * brightness).clamp_(0, 255)
    # Numbers, not a tensor of weights: that would be copied to the device in each call, and waited for.
    grey = 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
    # One blend for both: towards the mean grey level (contrast), then towards each pixel's own grey
    # (saturation).
    mean = grey.mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast)
    grey = torch.lerp(mean, grey, contrast)
    return torch.lerp(grey, images, saturation).clamp_(0, 255)


def rotate(images: Tensor, angle: Tensor, mirror: Tensor | None = None) -> Tensor:
    """Turn each image about its centre; corners reflect.

    Args:
        images: ``(N, 3, H, W)`` float.
        angle: ``(N,)`` in radians.
        mirror: ``(N,)`` bool, images whose left and right are swapped first; that costs nothing here.

    Returns:
        New images; computed in float32 also under autocast.
    """
    n, _, height, width = images.shape
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    ratio = height / width
    sign = torch.ones_like(angle) if mirror is None else 1 - 2 * mirror.to(angle)
    theta = torch.stack([sign * cos, -sign * sin * ratio, zero, sin / ratio, cos, zero], 1).view(n, 2, 3)
    # Autocast runs the matrix product in affine_grid in bfloat16: coordinates half a pixel off.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
        return F.grid_sample(images, grid, mode='bilinear', padding_mode='reflection', align_corners=False)
