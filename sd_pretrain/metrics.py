"""Top-1 and top-5 accuracy of a classifier, and its accuracy while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.evaluator import BaseMetric
from mmengine.hooks import Hook
from mmengine.registry import HOOKS, METRICS
from mmengine.runner import Runner

from sd_pretrain.launch import unwrap


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


@HOOKS.register_module()
class TrainAccuracyHook(Hook):
    """Log the top-1 accuracy of an epoch's training batches, in percent, as ``train/top1`` (Figure 1).

    It is what the network in training says of the augmented images, over all processes. The model counts
    on the device (:class:`sd_pretrain.classifier.TimmClassifier`), and the count is fetched once an epoch.
    A model that does not count is left alone.
    """

    priority = 'NORMAL'

    def before_train_epoch(self, runner: Runner) -> None:
        """Begin to count anew, also after a resume."""
        model = unwrap(runner.model)
        model.train_hits, model.train_seen = None, 0

    def after_train_epoch(self, runner: Runner) -> None:
        """Log the epoch's accuracy beside that of the validation which follows."""
        model = unwrap(runner.model)
        if model.train_hits is None:
            return
        counts = torch.stack([model.train_hits, torch.full_like(model.train_hits, model.train_seen)])
        all_reduce(counts)
        hits, seen = counts.tolist()
        accuracy = 100 * hits / seen
        epoch = runner.epoch + 1
        runner.logger.info(f'Epoch(train) [{epoch}]  train/top1: {accuracy:.4f}')
        runner.visualizer.add_scalars({'train/top1': accuracy}, step=epoch)
