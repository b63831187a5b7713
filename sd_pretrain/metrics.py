"""Top-1 and top-5 accuracy of a classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS


@METRICS.register_module()
class TopKAccuracy(BaseMetric):
    """Accuracy in percent, unrounded, as ``accuracy/top1`` and ``accuracy/top5``.

    With fewer than k classes, top-k counts every image.

    Args:
        topk: the ranks k within which the true class counts as found.
        collect_device: where results of several processes are gathered.
    """

    default_prefix = 'accuracy'

    def __init__(self, topk: Sequence[int] = (1, 5), collect_device: str = 'cpu'):
        super().__init__(collect_device=collect_device)
        self.topk = tuple(topk)

    def process(self, data_batch: Any, data_samples: Sequence[dict]) -> None:
        """Note for each sample (``logits`` ``(C,)`` and ``label``) the rank of its true class."""
        logits = torch.stack([sample['logits'] for sample in data_samples])
        labels = torch.stack([sample['label'] for sample in data_samples])
        best = logits.topk(min(max(self.topk), logits.shape[1]), dim=1).indices
        hits = best == labels[:, None]
        # Results stay one an image: mmengine drops the samples that fill up the last batch by their count.
        rank = torch.where(hits.any(1), hits.int().argmax(1), max(self.topk))
        self.results.extend(rank.tolist())

    def compute_metrics(self, results: list[int]) -> dict[str, float]:
        """Turn the ranks of all images into percentages."""
        return {f'top{k}': 100 * sum(rank < k for rank in results) / len(results) for k in self.topk}
