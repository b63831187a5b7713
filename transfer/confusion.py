"""Which classes a run takes for which: pixels of masks, and boxes matched with the truth."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from transfer.image_scores import MIN_SCORE

FILE = 'confusion.npz'
NOTHING = 'nothing'
_IOU = 0.5


def pixel_confusion(
    predicted: Sequence[Tensor], truth: Sequence[Tensor], classes: int, ignore: int = 255
) -> Tensor:
    """Count the pixels of each image by class, all images in one pass on their device.

    Args:
        predicted: predicted class of each pixel, of each image; sizes may differ.
        truth: true class of each pixel, as many.
        classes: number of classes.
        ignore: label that does not count.

    Returns:
        ``(N, classes + 1, classes + 1)`` integers, truth in rows, prediction in columns; the last row is for
        labels that are neither a class nor ``ignore``, the last column for predictions that are no class.
    """
    # A row each for other labels and for ignored ones: nothing has to be cut out before the count.
    rows, columns = classes + 2, classes + 1
    place = [
        row.flatten().to(column.device, torch.int32) for row, column in zip(truth, predicted, strict=True)
    ]
    for image, (row, column) in enumerate(zip(place, predicted, strict=True)):
        ignored = row == ignore
        row.masked_fill_((row < 0) | (row >= classes), classes).masked_fill_(ignored, classes + 1)
        row.add_(image * rows).mul_(columns).add_(column.flatten().clamp(max=classes))
    counts = torch.bincount(torch.cat(place), minlength=len(place) * rows * columns)
    return counts.view(len(place), rows, columns)[:, :-1]


def box_confusion(results: Iterable[tuple[dict[str, Any], Sequence[np.ndarray]]], classes: int) -> np.ndarray:
    """Match boxes with the truth whatever their class, and count pairs of classes.

    Detections with a score of 0.3 or more, the best first, each take the free true box that they overlap
    most, if the IoU is 0.5 or more. Those that overlap an ignored ("difficult") box instead do not count.

    Args:
        results: for each image what mmdet's ``VOCMetric`` keeps: the annotation (``bboxes``, ``labels``,
            ``bboxes_ignore``), and for each class the detections ``(n, 5)``: box and score.
        classes: number of classes.

    Returns:
        ``(classes + 1, classes + 1)`` integers, truth in rows, prediction in columns; the last row is for
        boxes where there is nothing, the last column for true boxes that were not found.
    """
    from torchvision.ops import box_iou

    counts = np.zeros((classes + 1, classes + 1), np.int64)
    for annotation, found in results:
        boxes = np.concatenate([*found, np.zeros((0, 5), np.float32)])
        labels = np.repeat(np.arange(len(found)), [len(one) for one in found])
        good = np.flatnonzero(boxes[:, 4] >= MIN_SCORE)
        order = good[np.argsort(-boxes[good, 4], kind='stable')]
        ignored = np.reshape(annotation['bboxes_ignore'], (-1, 4))
        truth = np.concatenate([np.reshape(annotation['bboxes'], (-1, 4)), ignored])
        overlap = box_iou(*(torch.as_tensor(np.float32(one)) for one in (boxes[order, :4], truth))).numpy()
        free = np.ones(len(truth), bool)
        real = len(truth) - len(ignored)
        for row, label in zip(overlap, labels[order], strict=True):
            best = int(np.argmax(np.where(free, row, -1.0))) if len(row) else 0
            if not len(row) or not free[best] or row[best] < _IOU:
                counts[classes, label] += 1
            elif best < real:
                free[best] = False
                counts[annotation['labels'][best], label] += 1
        for label in annotation['labels'][free[:real]]:
            counts[label, classes] += 1
    return counts


def save_confusion(work_dir: str | Path, counts: np.ndarray, names: Sequence[str]) -> None:
    """Keep a run's counts; a class more than ``names`` is :data:`NOTHING`."""
    names = [*names, NOTHING][: len(counts)]
    np.savez_compressed(Path(work_dir) / FILE, counts=counts, names=np.array(names, dtype=str))


def load_confusion(work_dir: str | Path) -> tuple[np.ndarray, list[str]] | None:
    """Read what :func:`save_confusion` has written; ``None`` where a run has written nothing."""
    path = Path(work_dir) / FILE
    if not path.is_file():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return stored['counts'], stored['names'].tolist()


def most_confused(counts: np.ndarray, names: Sequence[str], most: int = 5) -> list[tuple[str, str, float]]:
    """The pairs of different classes that are mistaken most: truth, prediction, share of the truth's row."""
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    np.fill_diagonal(shares, 0)
    shares[-1 if names[-1] == NOTHING else len(shares) :] = 0  # that row has no truth
    order = np.argsort(-shares, axis=None, kind='stable')[:most]
    pairs = [np.unravel_index(place, shares.shape) for place in order]
    return [
        (names[row], names[column], float(shares[row, column]))
        for row, column in pairs
        if shares[row, column]
    ]
