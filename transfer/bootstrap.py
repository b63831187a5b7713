"""The test images as a sample: paired bootstrap of mAP and mIoU from what was stored of each image.

A resample draws as many images as there are, with replacement; an image drawn twice counts twice. Both
backbones see the same resamples, so what makes an image hard for both does not count as a difference.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_matrix

RESAMPLES = 1000
_THRESHOLDS = np.arange(0, 1 + 1e-3, 0.1)


@dataclass(frozen=True)
class Detections:
    """What one run has detected on the test images, matched with the truth.

    Within a class by falling score; equal scores in the order in which the evaluation had them.

    Args:
        image: ``(D,)`` index of the image of each detection.
        label: ``(D,)`` its class.
        score: ``(D,)`` its score.
        hit: ``(D,)`` whether it is a true positive; those that match an ignored box are left out.
        boxes: ``(N, C)`` number of ground-truth boxes of each class in each image.
    """

    image: np.ndarray
    label: np.ndarray
    score: np.ndarray
    hit: np.ndarray
    boxes: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Whether each image has something of each class: ``(N, C)``."""
        return self.boxes > 0


@dataclass(frozen=True)
class Overlaps:
    """Pixels of each class in each test image: ``(N, C)`` of prediction and truth both, and of either."""

    intersect: np.ndarray
    union: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Whether prediction or truth of each image has each class: ``(N, C)``."""
        return self.union > 0


def draw(images: int, resamples: int = RESAMPLES, seed: int = 0) -> np.ndarray:
    """How often each resample draws each image: ``(R, N)``, whole numbers in float32."""
    rng = np.random.default_rng(seed)
    return rng.multinomial(images, np.full(images, 1 / images), resamples).astype(np.float32)


def resampled_ap(run: Detections, counts: np.ndarray, mode: str) -> np.ndarray:
    """AP of every class in every resample.

    Equal to evaluating the resampled list of images with mmdet's ``eval_map``: only the places of true
    positives matter, and an image drawn twice puts two of them in the same place.

    Args:
        run: the run's detections.
        counts: ``(R, N)``, see :func:`draw`; all ones is the test set itself.
        mode: ``'11points'`` or ``'area'``.

    Returns:
        ``(R, C)``, NaN where a resample has no box of the class.
    """
    found = np.full((len(counts), run.boxes.shape[1]), np.nan)
    truth = counts @ run.boxes.astype(np.float32)
    for label in range(run.boxes.shape[1]):
        mine = np.flatnonzero(run.label == label)
        hit, image = run.hit[mine], run.image[mine]
        true = np.cumsum(counts[:, image[hit]], axis=1, dtype=np.float32)
        false = np.cumsum(_between(image, hit, counts), axis=1, dtype=np.float32)
        here = truth[:, label] > 0
        if not here.any():
            continue
        true, false = true[here], false[here]
        # In float64 as mmdet's: in float32 a recall of 3/10 would reach the threshold of 0.1 * 3.
        recall = true / truth[here, label, None].astype(np.float64)
        precision = true / np.maximum(true + false, np.finfo(np.float32).eps)
        # The best precision at this recall or a higher one; none beyond the last hit.
        best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
        found[here, label] = (_eleven_points if mode == '11points' else _area)(recall, best)
    return found


def resampled_iou(run: Overlaps, counts: np.ndarray) -> np.ndarray:
    """IoU of every class in every resample: ``(R, C)``, NaN where neither prediction nor truth has it."""
    counts = counts.astype(np.float64)
    intersect, union = counts @ run.intersect, counts @ run.union
    return np.divide(intersect, union, out=np.full_like(union, np.nan), where=union > 0)


def image_errors(
    ours: np.ndarray, baseline: np.ndarray, paired: bool = False, images: float = np.inf
) -> tuple[float, float]:
    """Standard errors of the difference of two means over seeds that come from the choice of test images.

    What is one run's luck with single images varies from run to run, so that the spread over seeds has it
    already; with several runs it is taken apart here (as a variance component). A single run shows it nowhere
    else, so there it stays with the rest.

    Args:
        ours: for each run the metric in every resample: ``(runs, R)``.
        baseline: the same of the baseline, in the same resamples.
        paired: whether the runs belong together in this order.
        images: number of test images that have what the metric is about, at least 2: the variance among that
            many, which resamples show, is too small by one of them.

    Returns:
        What all runs share, and their luck; squared they add up to the variance over the resamples.
    """
    ours, baseline = np.asarray(ours), np.asarray(baseline)
    whole = np.var(ours.mean(0) - baseline.mean(0), ddof=1) / (1 - 1 / images)
    if min(len(ours), len(baseline)) < 2:
        return float(np.sqrt(whole)), 0.0
    parts = [ours - baseline] if paired else [ours, baseline]
    luck = sum(
        np.var(part - part.mean(0), axis=1, ddof=1).sum() / (len(part) - 1) / len(part) for part in parts
    )
    luck = min(whole, luck / (1 - 1 / images))
    return float(np.sqrt(whole - luck)), float(np.sqrt(luck))


def _between(image: np.ndarray, hit: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """False positives of each resample between one true positive and the next: ``(R, hits)``."""
    place = np.cumsum(hit)[~hit]
    hits = int(hit.sum())
    # Those after the last hit change nothing.
    early = place < hits
    rows, columns = image[~hit][early], place[early]
    shape = (counts.shape[1], hits)
    wrong = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
    return (wrong.T @ counts.T).T


def _eleven_points(recall: np.ndarray, best: np.ndarray) -> np.ndarray:
    padded = np.pad(best, ((0, 0), (0, 1)))
    total = np.zeros(len(recall))
    for threshold in _THRESHOLDS:
        first = (recall < threshold).sum(axis=1)
        total += padded[np.arange(len(recall)), first]
    return total / 11


def _area(recall: np.ndarray, best: np.ndarray) -> np.ndarray:
    steps = np.diff(recall, axis=1, prepend=np.float32(0))
    return (steps * best).sum(axis=1)
