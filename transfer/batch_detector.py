"""Which parts of an mmdet detector may work on whole batches (:mod:`transfer.det_batched`)."""

from __future__ import annotations

from typing import Any

from mmdet.models.data_preprocessors import DetDataPreprocessor
from mmdet.models.dense_heads import RPNHead
from mmdet.models.roi_heads import StandardRoIHead
from mmdet.models.roi_heads.bbox_heads import BBoxHead
from mmdet.models.task_modules import DeltaXYWHBBoxCoder, MaxIoUAssigner, RandomSampler
from mmdet.models.task_modules.assigners import BboxOverlaps2D
from torch import nn

from transfer.det_batched import BatchedDetDataPreprocessor, BatchedRoIHead, BatchedRPNHead


def batch_detector(model: nn.Module) -> list[str]:
    """Let the parts of a built detector work on whole batches, where their settings are known; keys stay.

    Returns:
        Names of the parts changed.
    """
    changed = []
    for name, kind, batched, known in (
        ('data_preprocessor', DetDataPreprocessor, BatchedDetDataPreprocessor, _known_preprocessor),
        ('rpn_head', RPNHead, BatchedRPNHead, _known_rpn),
        ('roi_head', StandardRoIHead, BatchedRoIHead, _known_roi_head),
    ):
        part = getattr(model, name, None)
        if type(part) is kind and known(part):
            part.__class__ = batched
            changed.append(name)
    return changed


def _known_preprocessor(part: DetDataPreprocessor) -> bool:
    return part._enable_normalize and len(part.mean) == 3 and part.pad_value == 0


def _known_rpn(head: RPNHead) -> bool:
    sampler = getattr(head, 'sampler', None)
    return (
        bool(head.train_cfg)
        and head.cls_out_channels == 1
        and not head.reg_decoded_bbox
        and _known_coder(head.bbox_coder)
        and _known_assigner(head.assigner)
        and _known_sampler(sampler)
        and not sampler.add_gt_as_proposals
    )


def _known_roi_head(head: StandardRoIHead) -> bool:
    return (
        bool(head.train_cfg)
        and head.with_bbox
        and not head.with_mask
        and type(head.bbox_head).get_targets is BBoxHead.get_targets
        and not head.bbox_head.reg_decoded_bbox
        and _known_coder(head.bbox_head.bbox_coder)
        and _known_assigner(head.bbox_assigner)
        and _known_sampler(head.bbox_sampler)
    )


def _known_coder(coder: Any) -> bool:
    return type(coder) is DeltaXYWHBBoxCoder and not (coder.use_box_type or coder.add_ctr_clamp)


def _known_assigner(assigner: Any) -> bool:
    return (
        type(assigner) is MaxIoUAssigner
        and type(assigner.iou_calculator) is BboxOverlaps2D
        and assigner.iou_calculator.dtype is None
        and isinstance(assigner.neg_iou_thr, float)
        and assigner.ignore_iof_thr <= 0
        and assigner.gpu_assign_thr <= 0
        and assigner.perm_repeat_gt_cfg is None
        and (not assigner.match_low_quality or (assigner.gt_max_assign_all and assigner.min_pos_iou >= 0))
    )


def _known_sampler(sampler: Any) -> bool:
    return type(sampler) is RandomSampler and sampler.neg_pos_ub < 0
