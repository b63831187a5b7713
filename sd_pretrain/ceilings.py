"""What a device can do at most, and what a training step asks of it: arithmetic and memory traffic."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
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


def step_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes of tensors that one call of ``step`` holds at most at a time, beyond those that are there.

    What CUDA graphs work in is there all the time: :func:`graph_memory`.
    """
    if device.type == 'cuda':
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    # It would report, on standard error, that there is no GPU.
    os.environ.setdefault('KINETO_LOG_LEVEL', '5')
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as profiler:
        step()
    # The summaries leave allocations within operations out; the raw events have all.
    events = [one for one in profiler.profiler.kineto_results.events() if one.name() == '[memory]']
    events.sort(key=lambda event: event.start_ns())
    return max(itertools.accumulate((event.nbytes() for event in events), initial=0))


def graph_memory(step: Callable[[], object], device: torch.device) -> int:
    """Bytes that the CUDA graphs recorded in one call of ``step``, its first, keep for what they compute."""
    if device.type != 'cuda':
        return 0
    before = _graph_pools()
    step()
    torch.cuda.synchronize(device)
    return _graph_pools() - before


def _graph_pools() -> int:
    segments = torch.cuda.memory_snapshot()
    return sum(one['total_size'] for one in segments if tuple(one['segment_pool_id']) != (0, 0))


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
