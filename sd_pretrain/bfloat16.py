"""Where bfloat16 is computed by instructions of its own, and where it is not to be had."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from mmengine.config import Config

from sd_pretrain.cli import InputError


def cpu_has_bf16(capabilities: Mapping[str, Any] | None = None) -> bool:
    """Whether this machine's CPU computes in bfloat16, instead of imitating it.

    Args:
        capabilities: flags of the CPU; default: those of this one.
    """
    if capabilities is None:
        # Older PyTorch cannot tell; then it is float32.
        capabilities = getattr(torch.cpu, 'get_capabilities', dict)()
    return any(capabilities.get(name) for name in ('amx_bf16', 'avx512_bf16', 'bf16'))


def gpu_has_bf16() -> bool:
    """Whether the GPU in use computes in bfloat16 (Ampere and later)."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def require_gpu_bf16() -> None:
    """Check that the GPU in use can train in bfloat16.

    Raises:
        InputError: it cannot.
    """
    if not gpu_has_bf16():
        raise InputError(
            f'--amp is bfloat16, which {torch.cuda.get_device_name()} lacks; run without --amp, or with '
            '--cfg-options optim_wrapper.type=AmpOptimWrapper (float16) instead'
        )


def train_in_bf16(cfg: Config) -> None:
    """Make a config train under bfloat16 autocast (``--amp``), in place, whatever it said of precision."""
    for key in ('loss_scale', 'dtype', 'use_fp16'):
        cfg.optim_wrapper.pop(key, None)
    cfg.optim_wrapper.type = 'Bf16OptimWrapper'
