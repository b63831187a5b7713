"""Detection's part of what makes fine-tuning fast: evaluation in batches of images of one size."""

from __future__ import annotations

from collections.abc import Iterator

from mmengine.config import Config
from mmengine.registry import DATA_SAMPLERS
from mmengine.runner import BaseLoop
from torch.utils.data import Sampler

from transfer.speed import val_batch

# Images of one size are of one size after these.
_PIPELINE = {'LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs'}


@DATA_SAMPLERS.register_module()
class SameSizeBatchSampler(Sampler):
    """Batches of images of one size, by their annotations: none is padded for the sake of another.

    A detector sees padding, so in batches of mixed sizes it would find other things than in each image alone.

    Args:
        sampler: a sampler of an mmdet dataset, always in the same order.
        batch_size: most images of a batch; what is left of a size at the end makes a smaller one.
    """

    def __init__(self, sampler: Sampler, batch_size: int):
        self._batches: list[list[tuple[int, int]]] = []
        waiting: dict[tuple[int, int], list[tuple[int, int]]] = {}
        for place, index in enumerate(sampler):
            info = sampler.dataset.get_data_info(index)
            size = info['height'], info['width']
            batch = waiting.setdefault(size, [])
            batch.append((place, index))
            if len(batch) == batch_size:
                self._batches.append(waiting.pop(size))
        self._batches += waiting.values()

    def __len__(self) -> int:
        return len(self._batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self._batches:
            yield [index for _, index in batch]

    @property
    def order(self) -> list[int]:
        """Of each image, in the order in which they come, its place in the sampler's order."""
        return [place for batch in self._batches for place, _ in batch]


def batch_evaluation(cfg: Config) -> None:
    """Let a detector be evaluated in batches, if its config evaluates image by image and sizes are known.

    What is predicted is the same up to rounding.

    Args:
        cfg: its validation loader is changed in place; its metrics are ours (:mod:`transfer.metrics`).
    """
    loader, evaluator = cfg.val_dataloader, cfg.val_evaluator
    metrics = evaluator if isinstance(evaluator, list | tuple) else [evaluator]
    if (
        loader.batch_size == 1
        and 'batch_sampler' not in loader
        and not loader.get('drop_last')
        and loader.dataset.type == 'VOCDataset'
        and {one['type'] for one in loader.dataset.get('pipeline', [])} <= _PIPELINE
        and all(metric['type'] == 'ExactVOCMetric' for metric in metrics)
    ):
        loader.batch_size = val_batch()
        loader.batch_sampler = dict(type='SameSizeBatchSampler')


def keep_order(loop: BaseLoop) -> None:
    """Let the metrics of a built validation loop put results back into the order of its dataset."""
    sampler = loop.dataloader.batch_sampler
    if isinstance(sampler, SameSizeBatchSampler):
        for metric in loop.evaluator.metrics:
            metric.order = sampler.order
