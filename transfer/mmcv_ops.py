"""The compiled ops that Faster R-CNN and DeepLab need of mmcv, supplied by torchvision: nothing is compiled.

mmcv looks its C++ ops up in a module ``mmcv._ext``. Where no compiled one can be imported, :func:`install`
registers a module of that name whose functions take mmcv's arguments, write into mmcv's preallocated tensors,
and compute with ``torch.ops.torchvision`` (CPU and CUDA) or plain torch. Only ops whose results equal mmcv's
are offered; ``roi_pool``, for one, rounds its bins differently in the two libraries and is therefore missing.

Call :func:`install` before the first ``import mmdet`` or ``import mmcv.ops``.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType

import torch
import torch.nn.functional as F
import torchvision  # noqa: F401  (registers torch.ops.torchvision)
from torch import Tensor

from sd_pretrain.cli import InputError

_NAME = 'mmcv._ext'
# Without --no-cache-dir pip would take the wheel without ops that it built and cached during the set-up.
_BUILD = 'pip install --no-build-isolation --no-cache-dir --force-reinstall --no-deps onedl-mmcv'
_HELP = 'https://github.com/VBTI-development/onedl-mmcv'


def install() -> str:
    """Make ``mmcv.ops`` importable: a compiled mmcv is left alone, otherwise torchvision's ops stand in.

    Calling it again changes nothing.

    Returns:
        ``'compiled'`` or ``'torchvision'``, the provider now in use.

    Raises:
        InputError: mmcv is not installed at all.
    """
    present = sys.modules.get(_NAME)
    if present is None and not _compiled_loads():
        spec = ModuleSpec(_NAME, _Loader(), origin='transfer.mmcv_ops (torchvision)')
        sys.modules[_NAME] = present = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(present)
    return 'torchvision' if getattr(present, 'provided_by', None) == __name__ else 'compiled'


def _compiled_loads() -> bool:
    package = importlib.util.find_spec('mmcv')
    if package is None or package.submodule_search_locations is None:
        raise InputError('mmcv is not installed in this environment; run `bash tools/setup.sh`')
    # Not find_spec('mmcv._ext'): that would import all of mmcv only to learn that there is nothing.
    found = PathFinder.find_spec(_NAME, package.submodule_search_locations)
    if found is None:
        return False
    try:
        importlib.import_module(_NAME)
    except (ImportError, OSError) as error:
        warnings.warn(
            f'the compiled mmcv ops in {found.origin} do not load with torch {torch.__version__} ({error}); '
            "using torchvision's instead",
            stacklevel=3,
        )
        return False
    return True


class _Loader:
    """Fills the stand-in module; a real loader, since mmcv and mmengine look at its ``__spec__``."""

    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        module.__doc__ = __doc__
        module.provided_by = __name__
        for function in _OPS:
            setattr(module, function.__name__, function)
        module.__getattr__ = _missing_op


def _missing_op(name: str) -> Callable:
    """Module ``__getattr__``: mmcv asks for all ops at import, so a missing one complains when called."""
    if name.startswith('_'):
        raise AttributeError(name)

    def missing(*args, **kwargs):
        raise InputError(
            f"the mmcv op '{name}' is not offered by torchvision and needs an mmcv with compiled ops; with a "
            f'C++ compiler and the CUDA toolkit, `{_BUILD}` builds one in some 20 minutes, and from then on '
            f'it is used (see {_HELP})'
        )

    missing.__name__ = missing.__qualname__ = name
    return missing


def _computing(*tensors: Tensor) -> list[Tensor]:
    """Bring tensors to one dtype that the kernels have, float32 or float64; under AMP they come mixed."""
    dtype = torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32
    return [t.to(dtype).contiguous() for t in tensors]


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes ``(N, 4)`` that survive, best score first; a box is dropped at IoU > threshold.

    Args:
        boxes: x1, y1, x2, y2 in pixels.
        scores: shape ``(N,)``.
        iou_threshold: in [0, 1].
        offset: 1 counts a box from pixel x1 to pixel x2 inclusively (width x2 - x1 + 1), 0 does not.
    """
    boxes, scores = _computing(boxes, scores)
    if offset:
        boxes = boxes + boxes.new_tensor([0, 0, offset, offset])
    # mmcv compares in float32; with 0.3 as a double, an IoU of exactly 3/10 would count as larger.
    threshold = torch.tensor(iou_threshold, dtype=boxes.dtype).item()
    with torch.autocast(boxes.device.type, enabled=False):
        return torch.ops.torchvision.nms(boxes, scores, threshold)


def _require_average(pool_mode: int) -> None:
    if pool_mode != 1:
        raise InputError(
            "mmcv's roi_align with pool_mode='max' is not offered by torchvision; use pool_mode='avg', the "
            f'default, or build an mmcv with compiled ops: `{_BUILD}`'
        )


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """RoIAlign of ``input`` ``(N, C, H, W)`` over ``rois`` ``(R, 5)``: image index, x1, y1, x2, y2.

    Written into ``output`` ``(R, C, aligned_height, aligned_width)``; the argmax tensors stay untouched.
    """
    _require_average(pool_mode)
    features, boxes = _computing(input, rois)
    with torch.autocast(features.device.type, enabled=False):
        pooled = torch.ops.torchvision.roi_align(
            features, boxes, spatial_scale, aligned_height, aligned_width, sampling_ratio, aligned
        )
    output.copy_(pooled)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of :func:`roi_align_forward` with respect to its input, written to ``grad_input``."""
    _require_average(pool_mode)
    grad, boxes = _computing(grad_output, rois)
    grad_input.copy_(
        torch.ops.torchvision._roi_align_backward(
            grad,
            boxes,
            spatial_scale,
            aligned_height,
            aligned_width,
            *grad_input.shape,
            sampling_ratio,
            aligned,
        )
    )


def _sigmoid_focal_loss(logits: Tensor, target: Tensor, weight: Tensor, gamma: float, alpha: float) -> Tensor:
    """Focal loss (Lin et al. 2017, Eq. 5) of each logit ``(N, C)``; the target C means background."""
    classes = logits.shape[1]
    positive = F.one_hot(target, classes + 1)[:, :classes].to(logits.dtype)
    log_p, log_not_p = F.logsigmoid(logits), F.logsigmoid(-logits)
    loss = -alpha * positive * log_not_p.exp() ** gamma * log_p
    loss = loss - (1 - alpha) * (1 - positive) * log_p.exp() ** gamma * log_not_p
    if weight.numel():
        # One weight a class; mmcv would read past the end for background, which is given 1 here.
        loss = loss * torch.cat([weight, weight.new_ones(1)])[target][:, None]
    return loss


def sigmoid_focal_loss_forward(
    input: Tensor, target: Tensor, weight: Tensor, output: Tensor, gamma: float, alpha: float
) -> None:
    """Sigmoid focal loss of logits ``(N, C)`` and labels ``(N,)`` in [0, C], C being background."""
    logits, weights = _computing(input, weight)
    output.copy_(_sigmoid_focal_loss(logits, target, weights, gamma, alpha))


def sigmoid_focal_loss_backward(
    input: Tensor, target: Tensor, weight: Tensor, grad_input: Tensor, gamma: float, alpha: float
) -> None:
    """Derivative of each element of :func:`sigmoid_focal_loss_forward` by its logit, into ``grad_input``."""
    logits, weights = _computing(input, weight)
    with torch.enable_grad():
        logits = logits.detach().requires_grad_()
        loss = _sigmoid_focal_loss(logits, target, weights, gamma, alpha).sum()
    grad_input.copy_(torch.autograd.grad(loss, logits)[0])


def get_compiler_version() -> str:
    """What mmcv's environment report prints as its compiler."""
    return 'none (ops from torchvision)'


def get_compiling_cuda_version() -> str:
    """What mmcv's environment report prints as its CUDA compiler."""
    return 'none (ops from torchvision)'


_OPS = (
    nms,
    roi_align_forward,
    roi_align_backward,
    sigmoid_focal_loss_forward,
    sigmoid_focal_loss_backward,
    get_compiler_version,
    get_compiling_cuda_version,
)
