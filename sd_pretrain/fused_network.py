"""A network for looking only: batch normalisation folded away, ReLU and residual sum done by the convolution.

The mathematics is that of the network in evaluation mode, up to rounding. A frozen teacher needs nothing
else, and a third of the time goes to the operations that disappear here: each of them reads and writes every
activation once more.
"""

from __future__ import annotations

import copy
import functools
import operator
from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional as F

from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.minimal_filtering import MinimalFilter
from sd_pretrain.small_maps import PatchConv, TwoByTwoConv, is_plain_3x3, use_plain_convolutions

_SUMS = (operator.add, operator.iadd, torch.add)
_RELUS = (F.relu, F.relu_, torch.relu, torch.relu_)
# What gives a tensor of its own, which the convolution that adds to it may overwrite.
_FRESH_MODULES = (nn.Conv2d, nn.BatchNorm2d, nn.MaxPool2d, nn.AvgPool2d, nn.ReLU)
_FRESH_FUNCTIONS = (*_SUMS, *_RELUS, F.pad, F.avg_pool2d, F.max_pool2d)
# What keeps its numbers in float32.
_FLOAT32 = (nn.Linear, nn.BatchNorm2d)


def fused_network(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """A copy of ``network`` in evaluation mode, fused, in ``dtype`` and channels-last.

    Batch normalisation is folded in float32 (:func:`torch.fx.experimental.optimization.fuse`), then the
    weights are cast, once. Linear layers stay in float32: they are small, and logits rounded to bfloat16 have
    ties that those of the network have not. So does batch normalisation that nothing comes before that it
    could be folded into: float16 ends at 65504, where a variance may not.

    Args:
        network: float32; it is copied and left as it is.
        dtype: of convolutions and activations: float32, float16 or bfloat16.

    Returns:
        A module that takes images ``(N, 3, H, W)`` of ``dtype``, channels-last, and gives float32 logits.

    Raises:
        ValueError: the network cannot be traced, or calls one convolution more than once.
    """
    plain = copy.deepcopy(network).eval()
    use_plain_convolutions(plain)
    for one in plain.modules():
        if type(one) is nn.SyncBatchNorm:  # the same in evaluation mode
            one.__class__ = nn.BatchNorm2d
    try:
        graph = fuse(plain, inplace=True)
    except Exception as error:  # whatever the network's forward does when it is given no tensor
        raise ValueError(f'it cannot be traced: {error}') from error
    graph.requires_grad_(False).to(memory_format=torch.channels_last)
    for one in graph.modules():
        kind = torch.float32 if type(one) in _FLOAT32 else dtype
        for tensor in (*one.parameters(recurse=False), *one.buffers(recurse=False)):
            if tensor.is_floating_point():
                tensor.data = tensor.data.to(kind)
    _drop_identities(graph)
    calls = Counter(node.target for node in graph.graph.nodes if node.op == 'call_module')
    for node in list(graph.graph.nodes):
        module = _module(graph, node)
        if isinstance(module, nn.Conv2d):
            if calls[node.target] > 1:
                raise ValueError(f'{node.target} is called {calls[node.target]} times')
            _fuse_followers(graph, node, module)
        elif type(module) is nn.Linear:
            graph.set_submodule(node.target, _Float32Linear(module))
    graph.delete_all_unused_submodules()
    graph.graph.lint()
    graph.recompile()
    return graph


class FusedConv2d(nn.Module):
    """A convolution that adds its bias and another tensor, if one is given, and applies ReLU if it is to.

    Args:
        conv: the convolution.
        relu: whether ReLU follows.
    """

    def __init__(self, conv: nn.Conv2d, relu: bool):
        super().__init__()
        self.relu = relu
        self.stride, self.padding = list(conv.stride), list(conv.padding)
        self.dilation, self.groups = list(conv.dilation), conv.groups
        weight = conv.weight.detach()
        self.bias = None if conv.bias is None else nn.Buffer(conv.bias.detach())
        self._run = self._plain
        # On a CPU: whether there is another way for maps of a few pixels; the size it is for, and what it is.
        self._plain_3x3 = is_plain_3x3(conv) and self.bias is not None
        self._small: tuple[torch.Size, Callable[[Tensor], Tensor]] | None = None
        if weight.device.type == 'cpu' and _onednn(weight.dtype):
            self._run = self._pack
        elif weight.is_cuda and relu and self.bias is not None and _cudnn_fuses(weight.device, weight.dtype):
            self._run = self._cudnn
        # Once packed, it is opaque: it must not be among the buffers, which ``module.to`` converts.
        self.weight = weight

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """``(N, C, H, W)`` to ``(N, D, H', W')``, the shape of ``other``, which may be overwritten."""
        return self._run(x, other)

    def _where(self) -> tuple:
        return self.stride, self.padding, self.dilation, self.groups

    def _plain(self, x: Tensor, other: Tensor | None) -> Tensor:
        out = F.conv2d(x, self.weight, self.bias, *self._where())
        if other is not None:
            out += other
        return out.relu_() if self.relu else out

    def _pack(self, x: Tensor, other: Tensor | None) -> Tensor:
        """Lay the weights out for maps as the first ones, then run."""
        small = self._for_small_maps(x.shape[2:]) if self._plain_3x3 else None
        self._small = None if small is None else (x.shape[2:], small)
        where = self.padding, self.stride, self.dilation, self.groups
        self.weight = torch.ops.mkldnn._reorder_convolution_weight(self.weight, *where, list(x.shape))
        self._run = self._onednn
        return self._onednn(x, other)

    def _for_small_maps(self, size: torch.Size) -> Callable[[Tensor], Tensor] | None:
        """What is faster than oneDNN's kernel on maps of this size, if anything is."""
        height, width = size
        single = self.weight.dtype == torch.float32
        if self.stride == [1, 1] and height == width:
            if single and height in MinimalFilter.sizes:
                return MinimalFilter(self.weight, self.bias, height)
            if height == 2:
                return TwoByTwoConv(self.weight, self.bias)
        if self.stride == [2, 2] and single and max(size) <= 4:
            return PatchConv(self.weight, self.bias, (height, width))
        return None

    def _onednn(self, x: Tensor, other: Tensor | None) -> Tensor:
        if self._small is not None and x.shape[2:] == self._small[0]:
            out = self._small[1](x)
            if other is not None:
                out += other
            return out.relu_() if self.relu else out
        where = self.padding, self.stride, self.dilation, self.groups
        if other is None:
            relu = 'relu' if self.relu else 'none'
            return torch.ops.mkldnn._convolution_pointwise(x, self.weight, self.bias, *where, relu, [], '')
        relu = 'relu' if self.relu else None
        return torch.ops.mkldnn._convolution_pointwise_(
            other, x, self.weight, self.bias, *where, 'add', 1.0, relu, [], ''
        )

    def _cudnn(self, x: Tensor, other: Tensor | None) -> Tensor:
        try:
            if other is None:
                return torch.cudnn_convolution_relu(x, self.weight, self.bias, *self._where())
            return torch.cudnn_convolution_add_relu(x, self.weight, other, 1.0, self.bias, *self._where())
        except RuntimeError:  # not every cuDNN has it for every shape
            self._run = self._plain
            return self._plain(x, other)


class _Float32Linear(nn.Module):
    """A linear layer in float32, whatever comes in."""

    def __init__(self, linear: nn.Linear):
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.float())


def _module(graph: fx.GraphModule, node: fx.Node) -> nn.Module | None:
    return graph.get_submodule(node.target) if node.op == 'call_module' else None


def _drop_identities(graph: fx.GraphModule) -> None:
    """Take out what does nothing in evaluation mode and stands between a convolution and what follows it."""
    for node in list(graph.graph.nodes):
        if isinstance(_module(graph, node), nn.Identity | nn.Dropout):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)


def _fuse_followers(graph: fx.GraphModule, node: fx.Node, conv: nn.Conv2d) -> None:
    """Replace a convolution, and the sum and ReLU that follow it, by one :class:`FusedConv2d`."""
    if conv.padding_mode != 'zeros' or isinstance(conv.padding, str):
        return
    following, other = _only_user(node), None
    if following is not None and following.target in _SUMS and not following.kwargs:
        summand = next((one for one in following.args if one is not node), None)
        relu = _only_user(following)
        if _is_relu(graph, relu) and _can_be_overwritten(graph, summand, relu, following):
            # It moves behind the other summand: whatever overwrites its input must not come first.
            other = summand if _only_user(node.args[0]) is node else None
        following = relu if other is not None else None
    relu = following if _is_relu(graph, following) else None
    graph.set_submodule(node.target, FusedConv2d(conv, relu=relu is not None))
    if relu is not None:
        with graph.graph.inserting_before(relu) if other is not None else graph.graph.inserting_after(node):
            fused = graph.graph.call_module(node.target, (node.args[0], other))
        relu.replace_all_uses_with(fused)
        graph.graph.erase_node(relu)
        graph.graph.eliminate_dead_code()


def _can_be_overwritten(graph: fx.GraphModule, summand: object, place: fx.Node, user: fx.Node) -> bool:
    """Whether a tensor is of its own, and nobody but ``user`` wants it from ``place`` on."""
    if not isinstance(summand, fx.Node):
        return False
    # A ReLU may have worked in place: then its input is the same tensor.
    if _is_relu(graph, summand) and _only_user(summand.args[0]) is None:
        return False
    module = _module(graph, summand)
    fresh = isinstance(module, (*_FRESH_MODULES, FusedConv2d)) or summand.target in _FRESH_FUNCTIONS
    places = {one: index for index, one in enumerate(graph.graph.nodes)}
    return fresh and all(places[one] < places[place] for one in summand.users if one is not user)


def _only_user(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _is_relu(graph: fx.GraphModule, node: fx.Node | None) -> bool:
    if node is None:
        return False
    return type(_module(graph, node)) is nn.ReLU or (node.op == 'call_function' and node.target in _RELUS)


def _onednn(dtype: torch.dtype) -> bool:
    """Whether PyTorch's oneDNN has convolutions with pointwise operations for this type on this CPU."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, '_convolution_pointwise')
    return there and (dtype == torch.float32 or (dtype == torch.bfloat16 and cpu_has_bf16()))


@functools.cache
def _cudnn_fuses(device: torch.device, dtype: torch.dtype) -> bool:
    """Try cuDNN's convolution with sum and ReLU: not every version has it for every type and layout."""
    x = torch.linspace(-1, 1, 16 * 64, device=device).view(1, 64, 4, 4)
    weight = torch.linspace(1, -1, 64 * 64, device=device).view(64, 64, 1, 1)
    x, weight = (one.to(dtype, memory_format=torch.channels_last) for one in (x, weight))
    bias = torch.linspace(-1, 1, 64, device=device).to(dtype)
    where = [1, 1], [0, 0], [1, 1], 1
    try:
        found = torch.cudnn_convolution_add_relu(x, weight, x, 1.0, bias, *where)
        alone = torch.cudnn_convolution_relu(x, weight, bias, *where)
    except RuntimeError:
        return False
    plain = F.conv2d(x.float(), weight.float(), bias.float())
    close = functools.partial(torch.allclose, rtol=2e-2, atol=2e-1)
    return close(found.float(), (plain + x.float()).relu()) and close(alone.float(), plain.relu())
