"""How well a run has done on each single test image, and on which images two backbones differ most."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from transfer.bootstrap import Detections, Overlaps
from transfer.predictions import load_predictions

MIN_SCORE = 0.3
# What the score of an image is called.
NAMES = {'det': 'F1', 'seg': 'IoU'}


@dataclass(frozen=True)
class ImageDifference:
    """A test image, and for each backbone its score (0 to 1), the mean over the seeds."""

    image: str
    scores: dict[str, float]


def image_scores(found: Detections | Overlaps) -> np.ndarray:
    """Score of each test image: ``(N,)``, 1 is perfect.

    Detection: F1 of the boxes with a score of 0.3 or more, ``2 TP / (2 TP + FP + FN)`` over all classes; 1
    where there is nothing to find and nothing was found. Segmentation: mean IoU of the classes in the image's
    prediction or truth.
    """
    if isinstance(found, Overlaps):
        there = found.union > 0
        iou = np.divide(found.intersect, found.union, out=np.zeros(there.shape), where=there)
        return iou.sum(1) / np.maximum(there.sum(1), 1)
    images = len(found.boxes)
    shown = found.score >= MIN_SCORE
    image = found.image[shown].astype(int)
    hits = np.bincount(image[found.hit[shown]], minlength=images)
    boxes, said = found.boxes.sum(1), np.bincount(image, minlength=images)
    # 2 TP + FP + FN = (TP + FP) + (TP + FN).
    return np.divide(2.0 * hits, boxes + said, out=np.ones(images), where=boxes + said > 0)


def most_different(results: Sequence[Mapping[str, Any]], count: int = 10) -> list[ImageDifference]:
    """The images on which a backbone's score is farthest from the baseline's, the farthest first.

    Args:
        results: contents of ``result.json`` files of one task and dataset with their ``work_dir``, the
            baseline's first.
        count: at most so many; images with equal scores are never among them.

    Returns:
        Nothing where a run has stored no predictions, or there is one backbone only.
    """
    scores: dict[str, list[np.ndarray]] = {}
    images: tuple[str, ...] = ()
    for one in results:
        stored = load_predictions(one['work_dir'], one['task'])
        if stored is None:
            return []
        scores.setdefault(one['name'], []).append(image_scores(stored[0]))
        images = stored[1]
    if len(scores) < 2:
        return []
    means = {name: np.mean(some, axis=0) for name, some in scores.items()}
    baseline, *others = means.values()
    gap = np.max([np.abs(one - baseline) for one in others], axis=0)
    order = np.argsort(-gap, kind='stable')[:count]
    return [
        ImageDifference(images[at], {name: float(mean[at]) for name, mean in means.items()})
        for at in order
        if gap[at] > 0
    ]


def precision_recall(found: Detections, label: int, points: int = 101) -> np.ndarray | None:
    """Interpolated precision of a class at evenly spaced recalls: ``(points,)``; ``None`` without a box.

    As in VOC's AP: at each recall the best precision at that recall or a higher one, 0 where it is not
    reached.
    """
    boxes = int(found.boxes[:, label].sum())
    if not boxes:
        return None
    hit = found.hit[found.label == label]
    true = np.cumsum(hit)
    precision = true / np.maximum(np.arange(1, len(hit) + 1), 1)
    best = np.append(np.maximum.accumulate(precision[::-1])[::-1], 0.0)
    return best[np.searchsorted(true / boxes, np.linspace(0, 1, points) - 1e-9)]
