"""Augmentation of a whole batch at once, with parameters of its own for each image."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def jitter(images: Tensor, strength: float, generator: torch.Generator | None = None) -> Tensor:
    """Scale brightness, contrast and saturation of each image by factors in ``1 - strength .. 1 + strength``.

    Args:
        images: ``(N, 3, H, W)`` float, RGB in 0 to 255.
        strength: largest relative change.
        generator: source of the random factors, on the images' device.

    Returns:
        New images, clipped to 0 to 255.
    """
    factors = torch.empty(3, len(images), 1, 1, 1, device=images.device)
    brightness, contrast, saturation = factors.uniform_(1 - strength, 1 + strength, generator=generator)
    images = (images * brightness).clamp_(0, 255)
    # Numbers, not a tensor of weights: that would be copied to the device in each call, and waited for.
    grey = 0.299 * images[:, :1] + 0.587 * images[:, 1:2] + 0.114 * images[:, 2:]
    # One blend for both: towards the mean grey level (contrast), then towards each pixel's own grey
    # (saturation).
    mean = grey.mean((2, 3), keepdim=True)
    images = torch.lerp(mean, images, contrast)
    grey = torch.lerp(mean, grey, contrast)
    return torch.lerp(grey, images, saturation).clamp_(0, 255)


def rotate(images: Tensor, degrees: float, generator: torch.Generator | None = None) -> Tensor:
    """Rotate each image about its centre by an angle in ``-degrees .. degrees``; corners reflect.

    Args:
        images: ``(N, 3, H, W)`` float.
        degrees: largest angle.
        generator: source of the random angles, on the images' device.

    Returns:
        New images; computed in float32 also under autocast.
    """
    n, _, height, width = images.shape
    angle = torch.empty(n, device=images.device).uniform_(-degrees, degrees, generator=generator) * (
        math.pi / 180
    )
    sin, cos, zero = angle.sin(), angle.cos(), torch.zeros_like(angle)
    ratio = height / width
    theta = torch.stack([cos, -sin * ratio, zero, sin / ratio, cos, zero], 1).view(n, 2, 3)
    # Autocast runs the matrix product in affine_grid in bfloat16: coordinates half a pixel off.
    with torch.autocast(images.device.type, enabled=False):
        grid = F.affine_grid(theta, [n, 3, height, width], align_corners=False)
        return F.grid_sample(images, grid, mode='bilinear', padding_mode='reflection', align_corners=False)
