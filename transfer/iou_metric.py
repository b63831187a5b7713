"""mmseg's IoU metric, with what a comparison needs: unrounded values, and one per class.

Import :mod:`transfer.mmcv_ops` and install it first.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from mmengine.registry import METRICS
from mmseg.evaluation.metrics import IoUMetric

from transfer.bootstrap import Overlaps, resampled_iou
from transfer.confusion import pixel_confusion


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
        """Count the pixels of a batch by pairs of classes; the stock metric's counts follow from that."""
        if self.output_dir is not None:
            # Its files are wanted, its counts are made below.
            before = len(self.results)
            super().process(data_batch, data_samples)
            del self.results[before:]
        if self.format_only or not data_samples:
            return
        predicted, truth = (
            [sample[part]['data'].squeeze() for sample in data_samples]
            for part in ('pred_sem_seg', 'gt_sem_seg')
        )
        classes = len(self.dataset_meta['classes'])
        for pairs in pixel_confusion(predicted, truth, classes, self.ignore_index).cpu():
            intersect, columns, rows = pairs.diagonal()[:-1], pairs.sum(0)[:-1], pairs.sum(1)[:-1]
            self.results.append((intersect, columns + rows - intersect, columns, rows, pairs[:-1, :-1]))

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
