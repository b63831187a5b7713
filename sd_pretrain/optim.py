"""Mixed precision for ``--amp``: bfloat16 autocast, on CUDA and CPU alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn

from sd_pretrain.bfloat16 import require_gpu_bf16


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Run forward and loss under bfloat16 autocast.

    bfloat16 has the range of float32, so the gradient scaler that mmengine's ``AmpOptimWrapper`` always runs,
    and its wait for the GPU in every iteration, are not needed; and that wrapper refuses to work on a CPU.

    Raises:
        InputError: the GPU has no bfloat16 of its own (before Ampere).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.param_groups[0]['params'][0].is_cuda:
            require_gpu_bf16()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to bfloat16 on the device of ``model``."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
