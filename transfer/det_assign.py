"""Which prior belongs to which object, and which priors are in the loss, for all images of a batch at once.

The rules are mmdet's (``MaxIoUAssigner``, ``RandomSampler``), with the same random numbers. Overlaps are
computed where the priors are; the host reads the outcome, draws, and sends the places of those chosen.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmdet.models.task_modules import MaxIoUAssigner, RandomSampler
from mmengine.structures import InstanceData
from torch import Tensor

from transfer.det_boxes import overlaps, send

NOT_THERE = -2


class Truth:
    """The objects of a batch.

    Args:
        instances: of each image ``bboxes`` ``(n, 4)`` and ``labels`` ``(n,)``.

    Attributes:
        boxes: ``(B, G, 4)``, G at least 1; zeros where an image has fewer.
        labels: ``(B, G)``.
        counts: objects of each image.
        most: G.
        of_images: the boxes of each image.
    """

    def __init__(self, instances: Sequence[InstanceData]):
        self.of_images = [one.bboxes for one in instances]
        self.counts = [len(one) for one in self.of_images]
        self.most = max(1, *self.counts)
        shape = len(instances), self.most
        self.boxes = self.of_images[0].new_zeros(*shape, 4)
        self.labels = instances[0].labels.new_zeros(shape)
        for number, one in enumerate(instances):
            self.boxes[number, : len(one.bboxes)] = one.bboxes
            self.labels[number, : len(one.bboxes)] = one.labels


def assign(priors: Tensor, there: Tensor, truth: Truth, assigner: MaxIoUAssigner) -> Tensor:
    """Which object each prior belongs to, by the rules of ``MaxIoUAssigner.assign_wrt_overlaps``.

    Args:
        priors: anchors or proposals, ``(B, N, 4)``.
        there: ``(B, N)``, whether the image has this one.
        truth: the objects.
        assigner: thresholds.

    Returns:
        ``(B, N)``: number of the object in its image, from 1; 0 for background, -1 for neither, -2 for a
        prior that is not there.
    """
    shared = overlaps(truth.boxes, priors)
    numbers = torch.arange(1, truth.most + 1, device=shared.device)[:, None]
    (counts,) = send([np.array(truth.counts)], shared.device)
    shared.masked_fill_(~(there[:, None] & (numbers <= counts[:, None, None])), -1)
    highest, nearest = shared.max(1)
    found = torch.where(highest < assigner.neg_iou_thr, 0, -1)
    found = torch.where(highest >= assigner.pos_iou_thr, nearest + 1, found)
    if assigner.match_low_quality:
        # Each object gets the priors nearest to it, however far; the last object that wants one gets it.
        best = shared.amax(2, keepdim=True)
        wanted = (shared == best) & (best >= assigner.min_pos_iou)
        last = torch.where(wanted, numbers, 0).amax(1)
        found = torch.where(last > 0, last, found)
    return found.masked_fill_(~there, NOT_THERE)


def sample(rows: Sequence[np.ndarray], sampler: RandomSampler) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Choose priors of each image, as ``RandomSampler`` does with the same random numbers.

    Args:
        rows: for each image what :func:`assign` says of its priors, ``(N,)``.
        sampler: how many.

    Returns:
        For each image the places of the positive ones, ascending, and those of the negative ones.
    """
    positive, negative = [], []
    for row in rows:
        positive.append(_choose(np.flatnonzero(row > 0), int(sampler.num * sampler.pos_fraction)))
        negative.append(_choose(np.flatnonzero(row == 0), sampler.num - len(positive[-1])))
    return positive, negative


def _choose(gallery: np.ndarray, count: int) -> np.ndarray:
    if len(gallery) <= count:
        return gallery
    return np.sort(gallery[torch.randperm(len(gallery))[:count].numpy()])


def read(tensor: Tensor) -> np.ndarray:
    """Bring what was assigned to the host; a GPU is waited for here."""
    return tensor.cpu().numpy()
