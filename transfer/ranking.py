"""Classification by scores: average precision, top-1 accuracy, and their bootstrap over the test images."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from transfer.bootstrap import Detections, resampled_ap


@dataclass(frozen=True)
class Scores:
    """What the probes of one run say of the test images.

    Args:
        probe: ``(P,)`` names; several of one kind are called ``<kind>_<number>``.
        score: ``(P, N, C)``, the larger the likelier that the image shows the class.
        label: ``(N, C)`` 1 if it does, -1 if not, 0 if it counts neither way.
    """

    probe: np.ndarray
    score: np.ndarray
    label: np.ndarray

    @property
    def shown(self) -> np.ndarray:
        """Whether each image shows each class: ``(N, C)``."""
        return self.label > 0

    @property
    def one_class_each(self) -> bool:
        """Whether each image shows one class: top-1 accuracy has a meaning."""
        return bool((self.shown.sum(1) == 1).all() and self.label.all())

    def of_kind(self, kind: str) -> list[int]:
        """Places of the probes of one kind, such as ``'linear'`` or ``'low_shot'``."""
        return [place for place, name in enumerate(self.probe) if re.fullmatch(rf'{kind}(_\d+)?', name)]


def _order(score: np.ndarray, label: np.ndarray) -> np.ndarray:
    """Images that count by falling score; within a tie the positives last.

    There the best precision at their recall or a higher one is that of the whole tie, as if all its images
    were found at once, whatever order they lie in on disk.
    """
    order = np.lexsort((label > 0, -score))
    return order[label[order] != 0]


def average_precision(score: np.ndarray, label: np.ndarray) -> float:
    """Area under the precision-recall curve, precision made to fall: VOC's AP from 2010 on.

    The self-supervised field's classification mAP on VOC2007 is this one (Goyal et al. 2019, public code),
    not the 11-point AP of the challenge of 2007. Images of equal score are found at once.

    Args:
        score: ``(N,)``.
        label: ``(N,)``, 1, -1, or 0 for images that do not count.

    Returns:
        A fraction; NaN without a positive.
    """
    hit = label[_order(score, label)] > 0
    if not hit.any():
        return float('nan')
    precision = np.cumsum(hit)[hit] / (np.flatnonzero(hit) + 1)
    return float(np.maximum.accumulate(precision[::-1]).mean())


def class_aps(run: Scores, kind: str) -> np.ndarray:
    """AP of each class, ``(C,)``, the mean over the probes of one kind; NaN without a positive."""
    classes = range(run.label.shape[1])
    aps = [
        [average_precision(run.score[place, :, one], run.label[:, one]) for one in classes]
        for place in run.of_kind(kind)
    ]
    return np.mean(aps, axis=0)


def top1(run: Scores, kind: str) -> float:
    """Share of the images whose class has the highest score, the mean over the probes of one kind."""
    return float(resampled_scores(run, np.ones((1, len(run.label))), kind, 'top1').mean())


def resampled_scores(run: Scores, counts: np.ndarray, kind: str, measure: str = 'ap') -> np.ndarray:
    """:func:`class_aps` or :func:`top1` in every resample of the test images.

    Args:
        run: the run's scores.
        counts: ``(R, N)``, see :func:`transfer.bootstrap.draw`.
        kind: kind of probe.
        measure: ``'ap'`` or ``'top1'``.

    Returns:
        ``(R, C)``, NaN where a resample has no positive of the class; of top-1 ``(R, 1)``.
    """
    places = run.of_kind(kind)
    if measure == 'top1':
        right = run.score[places].argmax(2) == run.label.argmax(1)
        return (counts @ right.mean(0) / counts.sum(1))[:, None]
    return np.mean([resampled_ap(_detections(run, place), counts, 'area') for place in places], axis=0)


def _detections(run: Scores, place: int) -> Detections:
    """The images of each class as if they were detections: one on each image, a hit where it is positive."""
    score = run.score[place]
    orders = [_order(*columns) for columns in zip(score.T, run.label.T, strict=True)]
    image = np.concatenate(orders)
    label = np.repeat(np.arange(score.shape[1]), [len(order) for order in orders])
    positive = run.label > 0
    return Detections(image, label, score[image, label], positive[image, label], positive.astype(int))
