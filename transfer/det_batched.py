"""What mmdet does in a detection step with one image after the other, for the whole batch at once.

Between backbone and loss, mmdet's RPN and RoI head launch some hundred tiny kernels for each image, and a GPU
idles while the host reads what came out. Here most of it is done once for a batch. The host waits for what a
head has assigned, once a batch, for whether proposals are too small, and in NMS and the loss of the RoIs,
which stay mmdet's; it waits for no copy to the GPU. The results are mmdet's, random choices included, up to
rounding and to the order of equal scores.

What has settings that are not known here stays mmdet's (:mod:`transfer.batch_detector`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmcv.ops import batched_nms
from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.utils import unpack_gt_instances
from mmengine.model import ImgDataPreprocessor
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from transfer.det_assign import NOT_THERE, Truth, assign, read, sample
from transfer.det_boxes import decode, encode, send

# Overlaps computed at a time, in some six copies; beyond that a head works image by image as mmdet does.
_MOST_OVERLAPS = 2**25


class _BatchedNormalisation(ImgDataPreprocessor):
    """Stands between mmdet's preprocessor and mmengine's, whose part it does."""

    def forward(self, data: dict, training: bool = False) -> dict:
        """Normalise and pad images of 3 channels and any size to one batch, padded with zeros."""
        images = data['inputs']
        if isinstance(images, Tensor):
            return super().forward(data, training)
        data = self.cast_data(data)
        images, divisor = data['inputs'], self.pad_size_divisor
        height, width = (
            math.ceil(max(one.shape[axis] for one in images) / divisor) * divisor for axis in (1, 2)
        )
        # What is padded holds the mean, and is 0 afterwards.
        batch = self.mean.expand(len(images), 3, height, width)
        batch = batch.contiguous(
            memory_format=torch.channels_last if batch.is_cuda else torch.contiguous_format
        )
        for place, image in zip(batch, images, strict=True):
            place[:, : image.shape[1], : image.shape[2]] = (
                image.flip(0) if self._channel_conversion else image
            )
        data['inputs'] = batch.sub_(self.mean).div_(self.std)
        data.setdefault('data_samples', None)
        return data


class BatchedDetDataPreprocessor(DetDataPreprocessor, _BatchedNormalisation):
    """``DetDataPreprocessor`` that normalises all images of a batch at once."""


class BatchedRPNHead(RPNHead):
    """``RPNHead`` that finds targets and proposals of all images of a batch at once."""

    def get_anchors(
        self, featmap_sizes: list[tuple], batch_img_metas: list[dict], device: torch.device | str = 'cuda'
    ) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """Anchors of each image and level, and which of them are on the image; equal ones are shared."""
        anchors = self._grid_priors(featmap_sizes, device=device)
        shapes = [tuple(meta['pad_shape'][:2]) for meta in batch_img_metas]
        flags = {one: self.prior_generator.valid_flags(featmap_sizes, one, device) for one in set(shapes)}
        return [anchors] * len(shapes), [flags[one] for one in shapes]

    def _grid_priors(
        self, featmap_sizes: list[tuple], device: torch.device | str, **more: Any
    ) -> list[Tensor]:
        # Else they would be copied to the device each time.
        maker = self.prior_generator
        maker.base_anchors = [one.to(device) for one in maker.base_anchors]
        return maker.grid_priors(featmap_sizes, device=device, **more)

    def get_targets(
        self,
        anchor_list: list[list[Tensor]],
        valid_flag_list: list[list[Tensor]],
        batch_gt_instances: list[InstanceData],
        batch_img_metas: list[dict],
        batch_gt_instances_ignore: Any = None,
        **more: Any,
    ) -> tuple:
        """For each level labels ``(B, A)``, their weights, box targets ``(B, A, 4)`` and their weights.

        Last comes the number of anchors in the loss. See ``AnchorHead.get_targets``.
        """
        sizes = [len(level) for level in anchor_list[0]]
        images, anchors = len(anchor_list), torch.cat(anchor_list[0])
        truth = Truth(batch_gt_instances)
        if more or images * truth.most * len(anchors) > _MOST_OVERLAPS:
            return super().get_targets(
                anchor_list,
                valid_flag_list,
                batch_gt_instances,
                batch_img_metas,
                batch_gt_instances_ignore,
                **more,
            )
        there = torch.stack([torch.cat(flags) for flags in valid_flag_list])
        border = self.train_cfg['allowed_border']
        if border >= 0:
            shapes = [meta['img_shape'][:2] for meta in batch_img_metas]
            heights, widths = send(np.array(shapes).T + border, anchors.device)
            there &= (anchors[:, :2] >= -border).all(1)
            there &= (anchors[:, 2] < widths[:, None]) & (anchors[:, 3] < heights[:, None])
        found = assign(anchors.expand(images, -1, 4), there, truth, self.assigner)
        rows = read(found)
        if (rows == NOT_THERE).all(1).any():
            raise ValueError(
                'an image has no anchor inside its borders: check its size and those of the anchors, or set '
                'train_cfg.rpn.allowed_border to -1'
            )
        positive, negative = sample(rows, self.sampler)
        number = sum(max(len(one), 1) for one in (*positive, *negative))
        flat = [
            np.concatenate([image * len(anchors) + one for image, one in enumerate(some)])
            for some in (positive, negative)
        ]
        places, others = send(flat, anchors.device)
        image, anchor = places // len(anchors), anchors[places % len(anchors)]
        which = found.flatten()[places] - 1

        label_weights = anchors.new_zeros(images * len(anchors))
        label_weights.index_fill_(0, others, 1.0)
        targets = _targets(
            self,
            label_weights,
            self.train_cfg['pos_weight'],
            places,
            anchor,
            truth.boxes[image, which],
            truth.labels[image, which],
        )
        return *(list(one.unflatten(0, (images, -1)).split(sizes, 1)) for one in targets), number

    def predict_by_feat(
        self,
        cls_scores: list[Tensor],
        bbox_preds: list[Tensor],
        score_factors: Any = None,
        batch_img_metas: list[dict] | None = None,
        cfg: Any = None,
        rescale: bool = False,
        with_nms: bool = True,
    ) -> list[InstanceData]:
        """For each image its proposals, best first: ``bboxes`` ``(n, 4)``, ``scores``, ``labels`` (all 0)."""
        if rescale or not with_nms or score_factors is not None:
            return super().predict_by_feat(
                cls_scores, bbox_preds, score_factors, batch_img_metas, cfg, rescale, with_nms
            )
        cfg = self.test_cfg if cfg is None else cfg
        images, most = len(batch_img_metas), cfg.get('nms_pre', -1)
        priors = self._grid_priors(
            [one.shape[-2:] for one in cls_scores], dtype=cls_scores[0].dtype, device=cls_scores[0].device
        )
        kept = []
        for level, (scores, deltas, anchors) in enumerate(zip(cls_scores, bbox_preds, priors, strict=True)):
            scores = scores.detach().permute(0, 2, 3, 1).flatten(1).sigmoid()
            deltas = deltas.detach().permute(0, 2, 3, 1).reshape(images, -1, 4)
            anchors = anchors.expand_as(deltas)
            if 0 < most < scores.shape[1]:
                scores, order = scores.sort(dim=1, descending=True)
                scores, order = scores[:, :most], order[:, :most, None].expand(-1, -1, 4)
                deltas, anchors = deltas.gather(1, order), anchors.gather(1, order)
            kept.append((scores, deltas, anchors, torch.full_like(scores[0], level, dtype=torch.long)))
        scores, deltas, anchors = (torch.cat(one, 1) for one in list(zip(*kept, strict=True))[:3])
        levels = torch.cat([one[3] for one in kept])
        boxes = decode(self.bbox_coder, anchors.flatten(0, 1), deltas.flatten(0, 1)).view_as(deltas)
        if self.bbox_coder.clip_border:
            shapes = np.array([meta['img_shape'][:2] for meta in batch_img_metas], np.float32)
            (limits,) = send([shapes[:, ::-1].copy()], boxes.device)
            boxes = boxes.clamp(min=0).minimum(limits.repeat(1, 2)[:, None])
        return self._without_overlaps(boxes, scores, levels, cfg)

    def _without_overlaps(
        self, boxes: Tensor, scores: Tensor, levels: Tensor, cfg: Any
    ) -> list[InstanceData]:
        chosen = None
        if cfg.get('min_bbox_size', -1) >= 0:
            large = ((boxes[..., 2:] - boxes[..., :2]) > cfg.min_bbox_size).all(2)
            chosen = None if large.all() else large
        results = []
        for image, (box, score) in enumerate(zip(boxes, scores, strict=True)):
            level = levels
            if chosen is not None:
                box, score, level = (one[chosen[image]] for one in (box, score, level))
            if len(box):
                found, _ = batched_nms(box, score, level, cfg.nms)
                box, score = found[: cfg.max_per_img].split((4, 1), 1)
                score = score.squeeze(1)
            result = InstanceData(bboxes=box, scores=score)
            result.labels = torch.zeros_like(score, dtype=torch.long)
            results.append(result)
        return results


class BatchedRoIHead(StandardRoIHead):
    """``StandardRoIHead`` that assigns and samples the proposals of all images of a batch at once."""

    def loss(
        self, x: tuple[Tensor, ...], rpn_results_list: list[InstanceData], batch_data_samples: list
    ) -> dict[str, Tensor]:
        """Losses of the sampled proposals; see ``StandardRoIHead.loss``."""
        instances = unpack_gt_instances(batch_data_samples)[0]
        truth, proposals = Truth(instances), [one.bboxes for one in rpn_results_list]
        if len(proposals) * max(map(len, proposals)) * truth.most > _MOST_OVERLAPS:
            return super().loss(x, rpn_results_list, batch_data_samples)
        padded = pad_sequence(proposals, batch_first=True)
        counts = [len(one) for one in proposals]
        (there,) = send([np.arange(padded.shape[1]) < np.array(counts)[:, None]], padded.device)
        found = read(assign(padded, there, truth, self.bbox_assigner))
        rows = [row[:count] for row, count in zip(found, counts, strict=True)]
        if self.bbox_sampler.add_gt_as_proposals:
            proposals = [one for pair in zip(truth.of_images, proposals, strict=True) for one in pair]
            rows = [
                np.concatenate([np.arange(1, count + 1), row])
                for count, row in zip(truth.counts, rows, strict=True)
            ]
        rois, targets = self._rois(torch.cat(proposals), rows, truth)
        found = self._bbox_forward(x, rois)
        return self.bbox_head.loss(found['cls_score'], found['bbox_pred'], rois, *targets)

    def _rois(
        self, proposals: Tensor, rows: Sequence[np.ndarray], truth: Truth
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """The sampled RoIs ``(R, 5)``, of each image the positive ones first, and their targets.

        Args:
            proposals: of all images, ``(P, 4)``.
            rows: of each image, which object its proposals belong to (:func:`assign`).
            truth: the objects.
        """
        first, chosen, image, positive, objects, sampled = 0, [], [], [], [], 0
        for number, (row, *some) in enumerate(zip(rows, *sample(rows, self.bbox_sampler), strict=True)):
            chosen += [first + one for one in some]
            image.append(np.full(len(some[0]) + len(some[1]), number))
            positive.append(sampled + np.arange(len(some[0])))
            objects.append(number * truth.most + row[some[0]] - 1)
            first, sampled = first + len(row), sampled + len(image[-1])
        parts = [np.concatenate(one) for one in (chosen, image, positive, objects)]
        chosen, image, positive, objects = send(parts, proposals.device)
        boxes = proposals[chosen]

        targets = _targets(
            self.bbox_head,
            boxes.new_ones(sampled),
            self.train_cfg.pos_weight,
            positive,
            boxes[positive],
            truth.boxes.flatten(0, 1)[objects],
            truth.labels.flatten()[objects],
        )
        rois = torch.cat([image[:, None].to(boxes), boxes], 1)
        return rois, targets


def _targets(
    head: nn.Module,
    label_weights: Tensor,
    positive_weight: float,
    positive: Tensor,
    priors: Tensor,
    boxes: Tensor,
    labels: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """What the loss of a head wants of all priors: labels, their weights, box targets, their weights.

    Args:
        head: RPN or box head.
        label_weights: ``(N,)``, those of the positive ones still to be set.
        positive_weight: of the positive ones; 1 where it is 0 or less.
        positive: places of the positive ones, ``(P,)``.
        priors: the positive ones, ``(P, 4)``.
        boxes: of their objects, ``(P, 4)``.
        labels: of their objects, ``(P,)``.
    """
    all_labels = torch.full_like(label_weights, head.num_classes, dtype=torch.long)
    all_labels[positive] = labels
    label_weights.index_fill_(0, positive, positive_weight if positive_weight > 0 else 1.0)
    targets, weights = label_weights.new_zeros(2, len(label_weights), 4)
    targets[positive] = encode(head.bbox_coder, priors, boxes)
    weights.index_fill_(0, positive, 1.0)
    return all_labels, label_weights, targets, weights
