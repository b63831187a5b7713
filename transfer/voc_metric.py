"""mmdet's VOC metric, with what a comparison needs: both kinds of AP, unrounded, and one per class.

Import :mod:`transfer.mmcv_ops` and install it first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from mmdet.evaluation.functional.mean_ap import print_map_summary
from mmdet.evaluation.metrics import VOCMetric
from mmengine.logging import MMLogger
from mmengine.registry import METRICS

from transfer import voc_map
from transfer.bootstrap import Detections
from transfer.confusion import box_confusion


@METRICS.register_module()
class ExactVOCMetric(VOCMetric):
    """``VOCMetric`` for mAP at one IoU, equal to the bit, without its process pools.

    After an evaluation (rank 0) ``per_class`` holds the AP of each class with a ground-truth box, and
    ``detections`` what was found in each image, for the bootstrap, ``confusion`` which class was taken for
    which.

    Args:
        also: further kinds of AP from the same matching: prefix to ``eval_mode``.
        kwargs: those of ``VOCMetric``.
    """

    # Where each image that is processed belongs, if they do not come in the order of the dataset.
    order: Sequence[int] | None = None
    per_class: dict[str, float] = {}
    detections: Detections | None = None
    confusion: np.ndarray | None = None

    def __init__(self, also: Mapping[str, str] | None = None, **kwargs: Any):
        super().__init__(**kwargs)
        self.also = dict(also or {})

    def process(self, data_batch: dict, data_samples: Sequence[dict]) -> None:
        """Keep what the stock metric keeps of a batch, without its copy of all else."""
        classes = len(self.dataset_meta['classes'])
        for sample in data_samples:
            truth, ignored, found = (
                {key: value.cpu().numpy() for key, value in sample[part].items() if torch.is_tensor(value)}
                for part in ('gt_instances', 'ignored_instances', 'pred_instances')
            )
            annotation = {key: truth[key] for key in ('labels', 'bboxes')}
            annotation |= {f'{key}_ignore': ignored[key] for key in ('bboxes', 'labels')}
            boxes = np.hstack([found['bboxes'], found['scores'].reshape(-1, 1)])
            order = np.argsort(found['labels'], kind='stable')
            ends = np.searchsorted(found['labels'][order], np.arange(classes + 1))
            by_class = [boxes[order[begin:end]] for begin, end in pairwise(ends)]
            self.results.append((annotation, by_class))

    def evaluate(self, size: int) -> dict[str, float]:
        """Evaluate all that was processed; each kind of AP has its own prefix."""
        if self.order is not None:
            results = dict(zip(self.order, self.results, strict=True))
            self.results = [results[place] for place in sorted(results)]
        metrics = super().evaluate(size)
        nested = {f'{self.prefix}/{other}/': f'{other}/' for other in self.also}
        for key in list(metrics):
            for long, short in nested.items():
                if key.startswith(long):
                    metrics[short + key.removeprefix(long)] = metrics.pop(key)
        return metrics

    def compute_metrics(self, results: list) -> dict[str, float]:
        """Compute ``mAP`` (unrounded) and ``AP50`` from one ``(annotations, detections)`` pair per image."""
        if self.metric != 'mAP' or len(self.iou_thrs) != 1 or self.scale_ranges is not None:
            return super().compute_metrics(results)
        classes = self.dataset_meta['classes']
        per_class = voc_map.evaluate(results, len(classes), self.iou_thrs[0])
        self.detections = _detections(results, per_class)
        self.confusion = box_confusion(results, len(classes))
        metrics = OrderedDict()
        for prefix, mode in {'': self.eval_mode, **self.also}.items():
            metrics |= {f'{prefix}/{key}'.lstrip('/'): value for key, value in self._mean(per_class, mode)}
        self.per_class = {
            name: float(one['ap'][self.eval_mode])
            for name, one in zip(classes, per_class, strict=True)
            if one['num_gts']
        }
        return metrics

    def _mean(self, per_class: list[dict[str, Any]], mode: str) -> Iterable[tuple[str, float]]:
        """Print the table of one kind of AP; its ``mAP`` and rounded ``AP50``."""
        aps = [one['ap'][mode] for one in per_class if one['num_gts']]
        mean = np.array(aps).mean().item() if aps else 0.0
        logger = MMLogger.get_current_instance()
        logger.info(f'VOC AP at IoU {self.iou_thrs[0]}, {mode}:')
        table = [{**one, 'ap': one['ap'][mode]} for one in per_class]
        print_map_summary(mean, table, dataset=list(self.dataset_meta['classes']), logger=logger)
        return (('mAP', mean), (f'AP{int(self.iou_thrs[0] * 100):02d}', round(mean, 3)))


def _detections(results: list, per_class: list[dict[str, Any]]) -> Detections:
    boxes = [np.bincount(annotation['labels'], minlength=len(per_class)) for annotation, _ in results]
    columns = {key: np.concatenate([one[key] for one in per_class]) for key in ('image', 'score', 'hit')}
    label = np.repeat(np.arange(len(per_class)), [len(one['hit']) for one in per_class])
    return Detections(**columns, label=label, boxes=np.array(boxes).reshape(-1, len(per_class)))
