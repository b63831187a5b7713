"""What a device can do at most, and what a training step asks of it: arithmetic and memory traffic."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from sd_pretrain.benchmark import synchronize


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product, the best of some."""
    size = 8192 if device.type == 'cuda' else 2048
    left, right = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return 2 * size**3 / _best(lambda: left @ right, device)


def copy_rate(device: torch.device) -> float:
    """Bytes/s of a large copy, read and written, the best of some."""
    source = torch.empty(2**28 if device.type == 'cuda' else 2**26, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / _best(lambda: target.copy_(source), device)


def step_flops(step: Callable[[], object]) -> int:
    """Floating-point operations of convolutions and matrix products in one call of ``step``."""
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops()


def step_bytes(step: Callable[[], object]) -> int:
    """Bytes that the operations of one call of ``step`` read and write, each as if nothing were cached."""
    with _Traffic() as traffic:
        step()
    return traffic.bytes


class _Traffic(TorchDispatchMode):
    """Add up the sizes of what goes into and comes out of each operation; views move nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [one for one in tree_leaves((args, kwargs, found)) if isinstance(one, Tensor)]
            self.bytes += sum(one.nbytes for one in tensors)
        return found


def _best(function: Callable[[], object], device: torch.device, calls: int = 6) -> float:
    function()
    seconds = []
    for _ in range(calls):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds)
