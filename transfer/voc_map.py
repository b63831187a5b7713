"""VOC average precision of all images and classes at once: flat arrays instead of a loop over images.

Equal to mmdet's ``eval_map`` with its legacy (+1) box sizes to the bit, ties included: IoU and precision are
in float32, recall in float64, and where mmdet sorts, the same sort is called on the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

_EPS = np.finfo(np.float32).eps
_LEAST_UNION = np.float32(1e-6)
_RECALLS = np.arange(0, 1 + 1e-3, 0.1)

Results = Sequence[tuple[dict[str, np.ndarray], Sequence[np.ndarray]]]


class Boxes(NamedTuple):
    """Detections or true boxes of all images, by image, within it by group.

    Args:
        box: ``(N, 4)`` x1, y1, x2, y2 in pixels, float32.
        group: ``(N,)`` image x classes + class.
        extra: ``(N,)`` the score of a detection; whether a true box is ignored ("difficult").
    """

    box: np.ndarray
    group: np.ndarray
    extra: np.ndarray


def flatten(results: Results, classes: int) -> tuple[Boxes, Boxes]:
    """Detections and true boxes as flat arrays.

    Args:
        results: for each image the annotation (``bboxes``, ``labels``, ``bboxes_ignore``, ``labels_ignore``),
            and for each class the detections ``(n, 5)``: box and score.
        classes: number of classes.

    Returns:
        Detections in the order of the input, true boxes with those that count before the ignored ones in each
        image and class.
    """
    found = np.concatenate([np.zeros((0, 5), np.float32), *(one for _, image in results for one in image)])
    sizes = np.fromiter((len(one) for _, image in results for one in image), np.int64)
    detections = Boxes(found[:, :4], np.repeat(np.arange(len(sizes)), sizes), found[:, 4])
    boxes, groups, counts = [np.zeros((0, 4), np.float32)], [], []
    for ignored, key in enumerate(('', '_ignore')):
        every = [annotation[f'labels{key}'] for annotation, _ in results]
        sizes = np.fromiter(map(len, every), np.int64, len(every))
        groups.append(np.repeat(np.arange(len(every)), sizes) * classes + np.concatenate([*every, []]))
        counts.append(np.full(len(groups[-1]), bool(ignored)))
        boxes += [np.reshape(annotation[f'bboxes{key}'], (-1, 4)) for annotation, _ in results]
    box, group, ignored = (
        np.concatenate(boxes),
        np.concatenate(groups).astype(np.int64),
        np.concatenate(counts),
    )
    order = np.argsort(group, kind='stable')
    return detections, Boxes(box[order], group[order], ignored[order])


def match(found: Boxes, truth: Boxes, threshold: float) -> tuple[np.ndarray, np.ndarray]:
    """Say which detections hit, as VOC's development kit does.

    Each detection goes to the box of its image and class that it overlaps most. If the IoU is at least
    ``threshold``, the detection with the highest score of a box is a true positive and the others false ones;
    those of an ignored box are neither.

    Args:
        found: detections; those of a group stand together.
        truth: true boxes, sorted by group.
        threshold: least IoU.

    Returns:
        ``(N,)`` and ``(N,)``, whether a detection is a true, and whether it is a false positive.
    """
    # The pairs (detection, true box of its group), flat.
    groups = 1 + max(found.group.max(initial=-1), truth.group.max(initial=-1))
    count = np.bincount(truth.group, minlength=groups)
    first, pairs = (np.cumsum(count) - count)[found.group], count[found.group]
    some = np.flatnonzero(pairs)
    size, begin = pairs[some], np.cumsum(pairs[some]) - pairs[some]
    hit, ignored = np.zeros(len(found.box), bool), np.zeros(len(found.box), bool)
    if not len(some):
        return hit, ~hit
    partner = np.arange(size.sum()) + np.repeat(first[some] - begin, size)
    overlap = _iou(found.box[np.repeat(some, size)], truth.box[partner])
    best = np.maximum.reduceat(overlap, begin)
    # Written from the last to the first: the first of equal overlaps stays.
    equal = np.flatnonzero(overlap == np.repeat(best, size))[::-1]
    owner = np.full(len(some), -1)
    owner[np.repeat(np.arange(len(some)), size)[equal]] = partner[equal]
    near = best >= np.asarray(threshold, best.dtype)
    some, owner = some[near], owner[near]
    ignored[some] = truth.extra[owner]
    some, owner = some[~ignored[some]], owner[~ignored[some]]
    hit[_winners(some, owner, found)] = True
    return hit, ~(hit | ignored)


def _winners(some: np.ndarray, owner: np.ndarray, found: Boxes) -> np.ndarray:
    """Of the detections ``some`` of each true box ``owner`` the one with the highest score."""
    some = some[order := np.lexsort((-found.extra[some], owner))]
    leads = np.flatnonzero(np.diff(owner[order], prepend=-1))
    ends = np.append(leads[1:], len(some))
    winners, score = some[leads], found.extra[some]
    # Rare: equal scores on one box. Which comes first is left to the sort, so it has to be the same sort.
    several = np.flatnonzero(ends - leads > 1)
    for place in several[score[leads[several]] == score[leads[several] + 1]]:
        mine = slice(leads[place], ends[place])
        tied = some[mine][score[mine] == score[leads[place]]]
        begin, end = np.searchsorted(found.group, found.group[tied[0]] + np.arange(2))
        ranked = begin + np.argsort(-found.extra[begin:end])
        winners[place] = ranked[np.isin(ranked, tied)][0]
    return winners


def _iou(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """IoU of boxes in pairs, a box from pixel x1 to pixel x2 being x2 - x1 + 1 wide; float32."""
    one, other = (part.astype(np.float32, copy=False) for part in (one, other))
    extent = np.minimum(one[:, 2:], other[:, 2:]) - np.maximum(one[:, :2], other[:, :2]) + np.float32(1)
    overlap = np.maximum(extent[:, 0], 0) * np.maximum(extent[:, 1], 0)
    size, other_size = (part[:, 2:] - part[:, :2] + np.float32(1) for part in (one, other))
    union = size[:, 0] * size[:, 1] + other_size[:, 0] * other_size[:, 1] - overlap
    return overlap / np.maximum(union, _LEAST_UNION)


def average_precisions(recall: np.ndarray, precision: np.ndarray) -> dict[str, np.float32]:
    """Both kinds of AP of one class, ``'11points'`` (VOC2007) and ``'area'``.

    Args:
        recall: ``(N,)`` after each detection, by falling score.
        precision: ``(N,)`` after each detection.
    """
    best = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(recall, _RECALLS)
    points = np.float32(0)
    for value in np.append(best, np.float32(0))[np.minimum(at, len(best))]:
        points += value
    levels = np.concatenate([[0.0], recall, [1.0]])
    steps = np.flatnonzero(levels[1:] != levels[:-1])
    heights = np.append(best, 0.0).astype(levels.dtype)
    area = np.sum((levels[steps + 1] - levels[steps]) * heights[steps])
    return {'11points': np.float32(points / np.float32(11)), 'area': np.float32(area)}


def evaluate(results: Results, classes: int, threshold: float = 0.5) -> list[dict[str, Any]]:
    """Match all detections and say of each class how good they are.

    Args:
        results: see :func:`flatten`.
        classes: number of classes.
        threshold: least IoU.

    Returns:
        For each class ``num_gts``, ``num_dets``; ``recall`` and ``precision`` after each detection, by
        falling score; ``ap`` by kind; and of each detection that does not match an ignored box, in the same
        order, ``image``, ``score`` and ``hit``.
    """
    found, truth = flatten(results, classes)
    hit, wrong = match(found, truth, threshold)
    boxes = np.bincount(truth.group[~truth.extra] % classes, minlength=classes)
    label = found.group % classes
    by_class = np.split(
        np.argsort(label, kind='stable'), np.cumsum(np.bincount(label, minlength=classes))[:-1]
    )
    return [
        _class(found, hit, wrong, one, int(count), classes)
        for one, count in zip(by_class, boxes, strict=True)
    ]


def _class(
    found: Boxes, hit: np.ndarray, wrong: np.ndarray, members: np.ndarray, boxes: int, classes: int
) -> dict[str, Any]:
    score = found.extra[members]
    ranked = members[np.argsort(-score)]
    right, false = np.cumsum(hit[ranked], dtype=np.float32), np.cumsum(wrong[ranked], dtype=np.float32)
    recall = right / np.array([max(boxes, _EPS)], np.float64)
    precision = right / np.maximum(right + false, _EPS)
    kept = ranked[hit[ranked] | wrong[ranked]]
    return dict(
        num_gts=boxes,
        num_dets=len(members),
        recall=recall,
        precision=precision,
        ap=average_precisions(recall, precision),
        image=found.group[kept] // classes,
        score=found.extra[kept],
        hit=hit[kept],
    )
