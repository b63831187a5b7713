"""Mixed precision for ``--amp``: bfloat16 autocast, on CUDA and CPU alike."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS
from torch import nn


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Run forward and loss under bfloat16 autocast.

    bfloat16 has the range of float32, so the gradient scaler that mmengine's ``AmpOptimWrapper`` always runs,
    and its wait for the GPU in every iteration, are not needed; and that wrapper refuses to work on a CPU.
    """

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to bfloat16 on the device of ``model``."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield
