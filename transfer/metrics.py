"""mmdet's and mmseg's VOC metrics, with what a comparison needs: unrounded values, and one per class.

The configs name the stock metrics, so that mmdet and mmseg alone run them; fine-tuning swaps these in
(:func:`use_exact_metrics`). Import :mod:`transfer.mmcv_ops` and install it first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from mmdet.evaluation.functional.mean_ap import average_precision, print_map_summary, tpfp_default
from mmdet.evaluation.metrics import VOCMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric

from transfer.bootstrap import Detections, Overlaps, resampled_iou
from transfer.confusion import box_confusion, pixel_confusion

_EXACT = {'VOCMetric': 'ExactVOCMetric', 'IoUMetric': 'ExactIoUMetric'}


def use_exact_metrics(evaluator: dict | list) -> dict | list:
    """Return an evaluator config with the stock VOC metrics replaced by those of this module."""
    if isinstance(evaluator, list | tuple):
        return [use_exact_metrics(one) for one in evaluator]
    return {**evaluator, 'type': _EXACT.get(evaluator['type'], evaluator['type'])}


@METRICS.register_module()
class ExactVOCMetric(VOCMetric):
    """``VOCMetric`` for mAP at one IoU, equal to the bit, without its process pools.

    After an evaluation (rank 0) ``per_class`` holds the AP of each class with a ground-truth box, and
    ``detections`` what was found in each image, for the bootstrap, ``confusion`` which class was taken for
    which.
    """

    per_class: dict[str, float] = {}
    detections: Detections | None = None
    confusion: np.ndarray | None = None

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute ``mAP`` (unrounded) and ``AP50`` from one ``(annotations, detections)`` pair per image."""
        if self.metric != 'mAP' or len(self.iou_thrs) != 1 or self.scale_ranges is not None:
            return super().compute_metrics(results)
        classes = self.dataset_meta['classes']
        per_class = [self._average_precision(results, label) for label in range(len(classes))]
        self.per_class = {
            name: float(one['ap']) for name, one in zip(classes, per_class, strict=True) if one['num_gts']
        }
        self.detections = _detections(results, per_class)
        self.confusion = box_confusion(results, len(classes))
        aps = [one['ap'] for one in per_class if one['num_gts']]
        mean = np.array(aps).mean().item() if aps else 0.0
        logger = MMLogger.get_current_instance()
        logger.info(f'VOC AP at IoU {self.iou_thrs[0]}, {self.eval_mode}:')
        print_map_summary(mean, per_class, dataset=list(classes), logger=logger)
        return OrderedDict(mAP=mean, **{f'AP{int(self.iou_thrs[0] * 100):02d}': round(mean, 3)})

    def _average_precision(self, results: list, label: int) -> dict[str, Any]:
        """AP of one class over all images, with mmdet's own matching and its legacy (+1) box sizes."""
        detections, tps, fps, images, boxes = [np.zeros((0, 5), np.float32)], [], [], [], 0
        for image, (annotation, found) in enumerate(results):
            truth = annotation['bboxes'][annotation['labels'] == label]
            boxes += len(truth)
            if len(found[label]) == 0:
                continue
            ignored = annotation['bboxes_ignore'][annotation['labels_ignore'] == label]
            tp, fp = tpfp_default(
                found[label], truth, ignored, self.iou_thrs[0], None, use_legacy_coordinate=True
            )
            detections.append(found[label])
            tps.append(tp[0])
            fps.append(fp[0])
            images.append(np.full(len(fp[0]), image))
        scores = np.vstack(detections)[:, -1]
        order = np.argsort(-scores)
        hit = np.concatenate([*tps, []], dtype=np.float32)[order]
        wrong = np.concatenate([*fps, []], dtype=np.float32)[order]
        tp, fp = np.cumsum(hit), np.cumsum(wrong)
        eps = np.finfo(np.float32).eps
        recall, precision = tp / max(boxes, eps), tp / np.maximum(tp + fp, eps)
        ap = average_precision(recall, precision, self.eval_mode)
        kept = (hit + wrong) > 0  # the others match an ignored box
        return dict(
            num_gts=boxes,
            num_dets=len(scores),
            recall=recall,
            precision=precision,
            ap=ap,
            image=np.concatenate([*images, []]).astype(int)[order][kept],
            score=scores[order][kept],
            hit=hit[kept] > 0,
        )


def _detections(results: list, per_class: list[dict[str, Any]]) -> Detections:
    boxes = [np.bincount(annotation['labels'], minlength=len(per_class)) for annotation, _ in results]
    columns = {key: np.concatenate([one[key] for one in per_class]) for key in ('image', 'score', 'hit')}
    label = np.repeat(np.arange(len(per_class)), [len(one['hit']) for one in per_class])
    return Detections(**columns, label=label, boxes=np.array(boxes).reshape(-1, len(per_class)))


@METRICS.register_module()
class ExactIoUMetric(IoUMetric):
    """``IoUMetric`` that adds ``mIoU_exact``, a fraction, to the stock ``mIoU``, a percentage of 2 decimals.

    After an evaluation (rank 0) ``per_class`` holds the IoU of each class that occurs in prediction or truth
    (fractions), ``overlaps`` the pixels of each image, for the bootstrap, and ``confusion`` which class was
    taken for which.
    """

    per_class: dict[str, float] = {}
    overlaps: Overlaps | None = None
    confusion: np.ndarray | None = None

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Count the pixels of a batch, as the stock metric does and by pairs of classes."""
        before = len(self.results)
        super().process(data_batch, data_samples)
        classes = len(self.dataset_meta['classes'])
        for place, sample in enumerate(data_samples[: len(self.results) - before], before):
            predicted = sample['pred_sem_seg']['data'].squeeze()
            truth = sample['gt_sem_seg']['data'].squeeze().to(predicted)
            pairs = pixel_confusion(predicted, truth, classes, self.ignore_index).cpu()
            self.results[place] = (*self.results[place], pairs)

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute the stock metrics and ``mIoU_exact`` from the four pixel counts of each image."""
        if results:
            self.confusion = sum(pairs for *_, pairs in results).numpy()
        # float64: the counts of 1,449 images exceed 2^24, from where on float32 cannot count.
        results = [tuple(counts.double() for counts in image[:4]) for image in results]
        metrics = super().compute_metrics(results)
        if not results:
            return metrics
        counts = [torch.stack(part).cpu().numpy() for part in list(zip(*results, strict=True))[:2]]
        self.overlaps = Overlaps(*counts)
        iou = resampled_iou(self.overlaps, np.ones((1, len(results))))[0]
        classes = self.dataset_meta['classes']
        self.per_class = {
            name: float(value) for name, value in zip(classes, iou, strict=True) if not np.isnan(value)
        }
        metrics['mIoU_exact'] = float(np.nanmean(iou))
        return metrics
