"""3x3 convolutions on maps of a few pixels as matrix products, for CPUs.

A C4 head runs layer4 on each pooled region, in the demo from 4x4 to 2x2 pixels. oneDNN has no fast kernel for
such maps: the backward pass of one convolution takes several times as long as the product that it is. The
results are the same up to rounding.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Where the padding is a large part of the map; beyond that oneDNN is as fast.
_MOST_PIXELS = 4
# Of a 2x2 map that keeps its size: the pairs (output, input) of pixels that each tap of the kernel connects.
_TAPS = [
    [
        (out, source)
        for out in range(4)
        for source in range(4)
        if 3 * (source // 2 - out // 2 + 1) + source % 2 - out % 2 + 1 == tap
    ]
    for tap in range(9)
]


class _TwoByTwo(torch.autograd.Function):
    """3x3 convolution with padding 1 of 2x2 maps: every output sees every input, so one matrix does it."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor) -> Tensor:
        count, channels, filters = len(maps), maps.shape[1], len(weight)
        matrix = weight.new_empty(4, filters, 4, channels)
        # Taps first, once: to pick them out one by one would walk the whole kernel each time.
        taps = weight.reshape(-1, 9).t().reshape(9, filters, channels)
        for tap, pairs in zip(taps, _TAPS, strict=True):
            for out, source in pairs:
                matrix[out, :, source] = tap
        matrix = matrix.view(4 * filters, 4 * channels)
        rows = maps.permute(0, 2, 3, 1).reshape(count, 4 * channels)
        ctx.save_for_backward(rows, matrix)
        return (rows @ matrix.t()).view(count, 2, 2, filters).permute(0, 3, 1, 2)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        rows, matrix = ctx.saved_tensors
        count, filters, channels = len(rows), grad.shape[1], rows.shape[1] // 4
        grad_rows = grad.permute(0, 2, 3, 1).reshape(count, 4 * filters)
        grad_maps = grad_weight = None
        if ctx.needs_input_grad[0]:
            grad_maps = (grad_rows @ matrix).view(count, 2, 2, channels).permute(0, 3, 1, 2)
        if ctx.needs_input_grad[1]:
            outs, sources = grad_rows.view(count, 4, filters), rows.view(count, 4, channels)
            taps = grad.new_empty(9, filters, channels)
            for tap, pairs in zip(taps, _TAPS, strict=True):
                # One product a tap, its pairs one below the other: they are added up in full precision.
                left = torch.cat([outs[:, out] for out, _ in pairs])
                right = torch.cat([sources[:, source] for _, source in pairs])
                torch.mm(left.t(), right, out=tap)
            grad_weight = taps.view(9, -1).t().reshape(filters, channels, 3, 3)
        return grad_maps, grad_weight


def small_map_conv(maps: Tensor, weight: Tensor, stride: int = 1) -> Tensor:
    """3x3 convolution with padding 1, without bias, by matrix products.

    Args:
        maps: ``(N, C, H, W)``.
        weight: ``(F, C, 3, 3)``.
        stride: in both directions.

    Returns:
        ``(N, F, ceil(H / stride), ceil(W / stride))``.
    """
    height, width = ((size + stride - 1) // stride for size in maps.shape[2:])
    device = maps.device.type
    if torch.is_autocast_enabled(device):
        maps, weight = (one.to(torch.get_autocast_dtype(device)) for one in (maps, weight))
    with torch.autocast(device, enabled=False):
        if maps.shape[2:] == (2, 2) and stride == 1:
            return _TwoByTwo.apply(maps, weight)
        patches = F.unfold(maps, 3, padding=1, stride=stride).transpose(1, 2).flatten(0, 1)
        found = patches @ weight.flatten(1).t()
        return found.view(len(maps), height * width, -1).transpose(1, 2).unflatten(2, (height, width))


class SmallMapConv2d(nn.Conv2d):
    """A convolution that takes :func:`small_map_conv` where its output is of at most 4 pixels."""

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        height, width = ((size - 1) // self.stride[0] + 1 for size in input.shape[2:])
        if not input.is_cpu or height * width > _MOST_PIXELS:
            return super()._conv_forward(input, weight, bias)
        return small_map_conv(input, weight, self.stride[0])


def use_small_maps(model: nn.Module) -> int:
    """Let the 3x3 convolutions in a model's shared RoI head know small maps; keys and weights stay.

    Returns:
        Number of convolutions.
    """
    head = getattr(getattr(model, 'roi_head', None), 'shared_head', None)
    found = [
        one
        for one in (head.modules() if head is not None else ())
        if type(one) is nn.Conv2d
        and (one.kernel_size, one.padding, one.dilation) == ((3, 3), (1, 1), (1, 1))
        and one.stride[0] == one.stride[1]
        and (one.groups, one.bias, one.padding_mode) == (1, None, 'zeros')
    ]
    for one in found:
        one.__class__ = SmallMapConv2d
    return len(found)
