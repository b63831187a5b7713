"""What makes the training of mmdet's and mmseg's stock models fast, and does not change what is computed."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from sd_pretrain.bfloat16 import cpu_has_bf16, require_gpu_bf16
from sd_pretrain.cli import InputError
from sd_pretrain.small_maps import use_small_maps

_HEADS = ('rpn_head', 'bbox_head', 'mask_head', 'decode_head', 'auxiliary_head')


def check_amp(amp: bool) -> None:
    """Check that this machine can train in bfloat16; warn where that is no gain.

    Raises:
        InputError: its GPU has none.
    """
    if not amp:
        return
    if torch.cuda.is_available():
        require_gpu_bf16()
    elif not cpu_has_bf16():
        warnings.warn(
            'this CPU has no bfloat16 instructions: --amp works, but slower than without', stacklevel=2
        )


def check_float16(cfg: Config) -> None:
    """Check that a config is not one for float16 where there is no GPU.

    Raises:
        InputError: it is.
    """
    if cfg.get('optim_wrapper', {}).get('type') == 'AmpOptimWrapper' and not torch.cuda.is_available():
        raise InputError(
            f'{Path(cfg.filename).name} trains in float16 (optim_wrapper.type=AmpOptimWrapper), which needs '
            'a GPU: add --amp, which is bfloat16 instead'
        )


def val_batch() -> int:
    """Test images of a batch where a config has them one by one: on a CPU large ones are slower together."""
    return 8 if torch.cuda.is_available() else 1


def prepare_model(model: nn.Module, bfloat16: bool = False) -> nn.Module:
    """Make a built detector or segmentor ready for a GPU or CPU, before DDP wraps it; keys stay.

    Losses, box coding and NMS get float32 from the heads, and RoI layers work in float32, whatever autocast
    does: bfloat16 has 8 bits, too few for coordinates and for means over many pixels.

    Args:
        model: changed in place.
        bfloat16: whether it is trained in that; on a CPU its layout depends on it.
    """
    for name, module in model.named_modules():
        # Cascades have several: bbox_head.0.
        if name.rstrip('.0123456789').rsplit('.', 1)[-1] in _HEADS and not isinstance(module, nn.ModuleList):
            # mmseg's heads are not called but by their forward method; their last layer is.
            last = getattr(module, 'conv_seg', module)
            last.register_forward_hook(_to_float32)
        if hasattr(module, 'roi_layers'):
            # An extractor of mmdet rounds the RoIs to the type of its features.
            module.register_forward_pre_hook(_float32_features, with_kwargs=True)
    on_gpu = torch.cuda.is_available()
    if on_gpu and hasattr(model, 'data_preprocessor'):
        model.data_preprocessor._non_blocking = True  # mmseg's has no argument for it
    head = getattr(getattr(model, 'roi_head', None), 'shared_head', None)
    if head is not None and not on_gpu:
        use_small_maps(head)
    # Channels-last is the fastest, but for float32 on a CPU, where now one is and now the other.
    return model.to(memory_format=torch.channels_last) if on_gpu or bfloat16 else model


def wait_less(cfg: Config) -> None:
    """Let the host run ahead of the device, in place: logs, losses and everything else stay the same.

    Logged values are fetched at the log interval, not in every iteration
    (:class:`sd_pretrain.device_log.DeviceLogHook`). For a GPU, batches are copied from pinned memory while it
    still works on the last one: images, and boxes and masks of the data samples, which get a ``pin_memory``.
    """
    hooks = cfg.default_hooks
    if hooks.get('timer', {}).get('type') == 'IterTimerHook' and 'runtime_info' not in hooks:
        hooks.timer.type = 'EvaluationTimerHook'
        hooks.runtime_info = dict(type='DeviceLogHook')
    if torch.cuda.is_available():
        cfg.train_dataloader.setdefault('pin_memory', True)
        # A loader of PyTorch pins what has such a method.
        BaseDataElement.pin_memory = _pinned


def right_fused(optim_wrapper: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a config's ``optim_wrapper`` whose ``SGD(fused=True)`` or ``AdamW(fused=True)`` is ours.

    PyTorch's own take the wrong numbers together where weight, gradient and momentum lie differently in
    memory, as they do when a GPU's run, which is channels-last, is resumed on a CPU
    (:mod:`sd_pretrain.optim`).
    """
    changed = copy.deepcopy(dict(optim_wrapper))
    optimizer = changed.get('optimizer', {})
    known = optimizer.get('type') in ('SGD', 'AdamW') and not optimizer.get('amsgrad')
    if known and optimizer.pop('fused', False):
        optimizer['type'] = f'Fused{optimizer["type"]}'
    return changed


def _pinned(sample: BaseDataElement) -> BaseDataElement:
    """A copy of a data sample whose tensors, however deep, lie in pinned memory; as ``sample.to``."""
    copied = sample.new()
    for key, value in sample.items():
        if isinstance(value, Tensor | BaseDataElement):
            copied.set_data({key: value.pin_memory()})
        elif isinstance(getattr(value, 'tensor', None), Tensor):  # mmdet's boxes
            copied.set_data({key: type(value)(value.tensor.pin_memory(), clone=False)})
    return copied


def _float32_features(
    module: nn.Module, inputs: tuple, named: dict[str, Any]
) -> tuple[tuple, dict[str, Any]]:
    if inputs:
        return (_to_float32(module, (), inputs[0]), *inputs[1:]), named
    return inputs, {**named, 'feats': _to_float32(module, (), named['feats'])}


def _to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    if isinstance(output, Tensor):
        return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output
    if isinstance(output, list | tuple):
        return type(output)(_to_float32(module, inputs, one) for one in output)
    return output
