"""Overlaps and deltas of boxes, to the bit those of mmdet.

mmdet copies its constants to the device in each call, and a GPU's host waits for every one of these copies.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.task_modules import DeltaXYWHBBoxCoder
from torch import Tensor

_SMALLEST_UNION = 1e-6
_MOST_STRETCH = abs(math.log(16 / 1000))


def send(arrays: Sequence[np.ndarray], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of one type, as one copy to the device that the host does not wait for."""
    flat = torch.from_numpy(np.concatenate([one.reshape(-1) for one in arrays]))
    parts = flat.to(device, non_blocking=True).split([one.size for one in arrays])
    return tuple(part.view(one.shape) for part, one in zip(parts, arrays, strict=True))


def overlaps(boxes: Tensor, others: Tensor) -> Tensor:
    """Intersection over union ``(B, M, N)`` of ``(B, M, 4)`` and ``(B, N, 4)``: mmdet's ``bbox_overlaps``."""
    area, other_area = ((one[..., 2] - one[..., 0]) * (one[..., 3] - one[..., 1]) for one in (boxes, others))
    boxes, others = boxes[..., :, None, :], others[..., None, :, :]
    sides = boxes[..., 2:].minimum(others[..., 2:]) - boxes[..., :2].maximum(others[..., :2])
    sides = sides.clamp(min=0)
    common = sides[..., 0] * sides[..., 1]
    union = area[..., :, None] + other_area[..., None, :] - common
    return common / union.clamp(min=_SMALLEST_UNION)


def encode(coder: DeltaXYWHBBoxCoder, priors: Tensor, boxes: Tensor) -> Tensor:
    """Deltas ``(N, 4)`` from priors to boxes: ``DeltaXYWHBBoxCoder.encode``."""
    means, stds = send(_scale(coder), boxes.device)
    (centre, size), (box_centre, box_size) = _centre_and_size(priors), _centre_and_size(boxes)
    deltas = torch.cat([(box_centre - centre) / size, (box_size / size).log()], 1)
    return deltas.sub_(means).div_(stds)


def decode(coder: DeltaXYWHBBoxCoder, priors: Tensor, deltas: Tensor) -> Tensor:
    """Boxes ``(N, 4)``, not clipped, that lie at deltas from priors: ``DeltaXYWHBBoxCoder.decode``."""
    means, stds = send(_scale(coder), deltas.device)
    deltas = deltas * stds + means
    centre, size = _centre_and_size(priors)
    centre = centre + size * deltas[:, :2]
    half = size * deltas[:, 2:].clamp(-_MOST_STRETCH, _MOST_STRETCH).exp() * 0.5
    return torch.cat([centre - half, centre + half], 1)


def _scale(coder: DeltaXYWHBBoxCoder) -> np.ndarray:
    return np.array([coder.means, coder.stds], np.float32)


def _centre_and_size(boxes: Tensor) -> tuple[Tensor, Tensor]:
    return (boxes[:, :2] + boxes[:, 2:]) * 0.5, boxes[:, 2:] - boxes[:, :2]
