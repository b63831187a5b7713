"""Random resized crops: where, and the crop as an image of the size that is trained on."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import interpolate

_TRIES = 10
DRAWS = 2 * _TRIES + 2


def crop_box(
    draws: Sequence[float],
    width: int,
    height: int,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> tuple[int, int, int, int]:
    """A crop of random size, shape and place, distributed as torchvision's ``RandomResizedCrop``.

    Area uniform in ``scale``, aspect ratio log-uniform in ``ratio``; the first of ten tries that fits into
    the image, else its centre.

    Args:
        draws: :data:`DRAWS` numbers, uniform in [0, 1).
        width: of the image, in pixels.
        height: of the image, in pixels.
        scale: range of the crop's share of the image's area.
        ratio: range of width over height.

    Returns:
        Left, top, width and height, in pixels.
    """
    least, most = math.log(ratio[0]), math.log(ratio[1])
    for at in range(0, 2 * _TRIES, 2):
        area = width * height * (scale[0] + draws[at] * (scale[1] - scale[0]))
        aspect = math.exp(least + draws[at + 1] * (most - least))
        wide, high = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < wide <= width and 0 < high <= height:
            left, top = int(draws[-2] * (width - wide + 1)), int(draws[-1] * (height - high + 1))
            return left, top, wide, high
    wide, high = width, height
    if width / height < ratio[0]:
        high = round(width / ratio[0])
    elif width / height > ratio[1]:
        wide = round(height * ratio[1])
    return (width - wide) // 2, (height - high) // 2, wide, high


def resize(image: Tensor, size: int) -> Tensor:
    """Resize bilinearly with antialiasing, within one level of what PIL computes.

    Args:
        image: uint8 ``(3, H, W)``, of any strides.
        size: side of the result.

    Returns:
        uint8 ``(3, size, size)``, in the memory order of ``(size, size, 3)``, for which PyTorch is fastest.
    """
    image = image[None].contiguous(memory_format=torch.channels_last)
    return interpolate(image, size=(size, size), mode='bilinear', antialias=True)[0]
