"""3x3 convolutions on maps of a few pixels as matrix products, for CPUs.

The last stage of a ResNet has them, 2x2 pixels, where the images have 64, and so does layer4 in a C4 head on
each pooled region. oneDNN has no fast kernel for such maps: forward and backward pass of one convolution take
several times as long as the products that they are. The results are the same up to rounding.
"""

from __future__ import annotations

import itertools
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
        rows, matrix = maps.permute(0, 2, 3, 1).flatten(1), two_by_two_matrix(weight)
        ctx.save_for_backward(rows, matrix)
        return (rows @ matrix.t()).view(len(maps), 2, 2, len(weight)).permute(0, 3, 1, 2)

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
            kernel = grad.new_empty(filters, 9, channels)
            for tap, pairs in enumerate(_TAPS):
                # One product a tap, its pairs one below the other: they are added up in full precision.
                left = torch.cat([outs[:, out] for out, _ in pairs])
                right = torch.cat([sources[:, source] for _, source in pairs])
                if torch.compiler.is_compiling():  # it knows no such `out`, and does without the copy
                    kernel[:, tap] = left.t() @ right
                else:
                    torch.mm(left.t(), right, out=kernel[:, tap])
            grad_weight = kernel.view(filters, 3, 3, channels).permute(0, 3, 1, 2)
        return grad_maps, grad_weight


def two_by_two_matrix(weight: Tensor) -> Tensor:
    """What a 3x3 convolution with padding 1 does to a 2x2 map, as a matrix.

    Args:
        weight: ``(F, C, 3, 3)``.

    Returns:
        ``(4 F, 4 C)``; outputs and inputs run over pixels first, then channels.
    """
    filters, channels = weight.shape[:2]
    # Channels last, as most weights lie already: what is copied below are rows of the kernel then.
    kernel = weight.permute(0, 2, 3, 1).contiguous()
    matrix = weight.new_empty(2, 2, filters, 2, 2, channels)
    for row, column in itertools.product(range(2), range(2)):
        matrix[row, column] = kernel[:, 1 - row : 3 - row, 1 - column : 3 - column]
    return matrix.view(4 * filters, 4 * channels)


class TwoByTwoConv:
    """A frozen 3x3 convolution with padding 1 and its bias, of 2x2 maps, by :func:`two_by_two_matrix`.

    Args:
        weight: ``(F, C, 3, 3)``.
        bias: ``(F,)``.
    """

    def __init__(self, weight: Tensor, bias: Tensor):
        self._matrix, self._bias = two_by_two_matrix(weight), bias.repeat(4)

    def __call__(self, maps: Tensor) -> Tensor:
        """``(N, C, 2, 2)`` to ``(N, F, 2, 2)``, channels-last."""
        rows = torch.addmm(self._bias, maps.permute(0, 2, 3, 1).flatten(1), self._matrix.t())
        return rows.view(len(maps), 2, 2, -1).permute(0, 3, 1, 2)


class PatchConv:
    """A frozen 3x3 convolution with padding 1 and stride 2 and its bias, by one product of all patches.

    Args:
        weight: ``(F, C, 3, 3)``.
        bias: ``(F,)``.
        size: height and width of the maps.
    """

    def __init__(self, weight: Tensor, bias: Tensor, size: tuple[int, int]):
        self._kernel, self._bias = weight.permute(2, 3, 1, 0).flatten(0, 2), bias
        height, width = size
        # The pixels of each patch; what is outside is the one behind the last.
        pixels = torch.arange(height * width).view(height, width)
        patches = F.pad(pixels, (1, 1, 1, 1), value=height * width).unfold(0, 3, 2).unfold(1, 3, 2)
        self._pixels, self._out = patches.flatten(), patches.shape[:2]

    def __call__(self, maps: Tensor) -> Tensor:
        """``(N, C, *size)`` to ``(N, F, H', W')``, channels-last."""
        rows = F.pad(maps.permute(0, 2, 3, 1).flatten(1, 2), (0, 0, 0, 1))
        patches = rows.index_select(1, self._pixels).view(-1, len(self._kernel))
        out = torch.addmm(self._bias, patches, self._kernel)
        return out.view(len(maps), *self._out, -1).permute(0, 3, 1, 2)


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


def is_plain_3x3(conv: nn.Conv2d) -> bool:
    """Whether a convolution is 3x3 with padding 1, of any stride, with nothing unusual about it."""
    window = (conv.kernel_size, conv.padding, conv.dilation)
    return window == ((3, 3), (1, 1), (1, 1)) and conv.groups == 1 and conv.padding_mode == 'zeros'


def use_small_maps(module: nn.Module) -> int:
    """Let the 3x3 convolutions in a module know small maps; keys and weights stay.

    Returns:
        Number of convolutions.
    """
    found = [
        one
        for one in module.modules()
        if type(one) is nn.Conv2d
        and is_plain_3x3(one)
        and one.stride[0] == one.stride[1]
        and one.bias is None
    ]
    for one in found:
        one.__class__ = SmallMapConv2d
    return len(found)


def use_plain_convolutions(module: nn.Module) -> None:
    """Undo :func:`use_small_maps`, for whoever looks for convolutions by their type."""
    for one in module.modules():
        if type(one) is SmallMapConv2d:
            one.__class__ = nn.Conv2d
