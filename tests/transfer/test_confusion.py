"""Confusion of classes, scores of single images, precision over recall: against counts made by hand."""

import numpy as np
import pytest
import torch
from sklearn.metrics import confusion_matrix

from transfer.bootstrap import Detections, Overlaps
from transfer.confusion import (
    NOTHING,
    box_confusion,
    load_confusion,
    most_confused,
    pixel_confusion,
    save_confusion,
)
from transfer.image_scores import image_scores, most_different, precision_recall
from transfer.predictions import save_predictions


def test_pixels_as_scikit_learn_counts_them():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(0, 4, (20, 30), generator=generator)
    predicted = torch.randint(0, 4, (20, 30), generator=generator)
    truth[:5] = 255
    counted = truth != 255
    wanted = confusion_matrix(truth[counted], predicted[counted], labels=range(4))
    assert pixel_confusion([predicted], [truth], 4)[0, :4, :4].numpy().tolist() == wanted.tolist()


def found(*boxes, classes=3):
    """Detections ``(label, left, right, score)`` of one image, all 10 high."""
    by_class = [[] for _ in range(classes)]
    for label, left, right, score in boxes:
        by_class[label].append([left, 0, right, 10, score])
    return [np.array(one, np.float32).reshape(-1, 5) for one in by_class]


def annotation(boxes, ignored=()):
    return {
        'bboxes': np.array([[left, 0, right, 10] for _, left, right in boxes], np.float32).reshape(-1, 4),
        'labels': np.array([label for label, _, _ in boxes], int),
        'bboxes_ignore': np.array([[left, 0, right, 10] for left, right in ignored], np.float32).reshape(
            -1, 4
        ),
        'labels_ignore': np.zeros(len(ignored), int),
    }


def test_boxes_are_matched_whatever_their_class():
    image = annotation([(0, 0, 10), (1, 20, 30), (2, 40, 50)], ignored=[(60, 70)])
    boxes = found(
        (0, 0, 10, 0.9),  # right
        (1, 1, 10, 0.8),  # the same object again: nothing is left there
        (2, 20, 29, 0.7),  # class 1 taken for 2
        (0, 40, 44, 0.6),  # too small an overlap
        (0, 60, 70, 0.5),  # difficult: does not count
        (1, 40, 50, 0.2),  # below the score
    )
    counts = box_confusion([(image, boxes)], 3)
    assert counts.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 1, 0, 0]]
    assert box_confusion([(annotation([]), found())], 3).sum() == 0
    assert most_confused(counts, ['a', 'b', 'c', NOTHING]) == [('b', 'c', 1.0), ('c', NOTHING, 1.0)]


def test_counts_are_kept(tmp_path):
    assert load_confusion(tmp_path) is None
    save_confusion(tmp_path, np.eye(3, dtype=int), ['a', 'b'])
    counts, names = load_confusion(tmp_path)
    assert counts.tolist() == np.eye(3).tolist() and names == ['a', 'b', NOTHING]


def detections(*rows, boxes):
    image, label, score, hit = zip(*rows, strict=True)
    return Detections(
        np.array(image), np.array(label), np.array(score, np.float32), np.array(hit, bool), np.array(boxes)
    )


def test_scores_of_images():
    run = detections(
        (0, 0, 0.9, True),
        (0, 0, 0.8, False),
        (1, 1, 0.4, True),
        (1, 0, 0.2, False),
        boxes=[[2, 0], [0, 1], [0, 0]],
    )
    # 2 TP / (2 TP + FP + FN): 2 / (2 + 1 + 1), all found, nothing there and nothing said.
    assert image_scores(run).tolist() == [0.5, 1.0, 1.0]
    masks = Overlaps(np.array([[8, 0, 0], [3, 1, 0]]), np.array([[10, 0, 0], [6, 4, 0]]))
    assert image_scores(masks) == pytest.approx([0.8, (0.5 + 0.25) / 2])


def test_the_images_that_differ_most_come_first(tmp_path):
    results = []
    for name, seed, intersect in (
        ('A', 0, [5, 5, 5]),
        ('A', 1, [5, 7, 5]),
        ('B', 0, [5, 5, 9]),
        ('B', 1, [5, 5, 9]),
        ('C', 0, [5, 6, 8]),
    ):
        work_dir = tmp_path / name / f'seed{seed}'
        work_dir.mkdir(parents=True)
        run = Overlaps(np.array(intersect)[:, None], np.full((3, 1), 10))
        save_predictions(work_dir, run, ['x', 'y', 'z'])
        results.append({'name': name, 'task': 'seg', 'seed': seed, 'work_dir': str(work_dir)})
    different = most_different(results)
    assert [one.image for one in different] == ['z', 'y'], 'x is the same for all'
    assert different[0].scores == pytest.approx({'A': 0.5, 'B': 0.9, 'C': 0.8})
    assert [one.image for one in most_different(results, count=1)] == ['z']
    assert most_different(results[:2]) == []
    (tmp_path / 'C/seed0/predictions.npz').unlink()
    assert most_different(results) == []


def test_precision_at_recalls():
    run = detections(
        (0, 0, 0.9, True), (0, 0, 0.8, False), (1, 0, 0.7, True), (1, 0, 0.6, False), boxes=[[2, 0], [2, 0]]
    )
    # Precision 1 up to recall 1/4, 2/3 up to 1/2, nothing beyond.
    assert precision_recall(run, 0, points=5) == pytest.approx([1, 1, 2 / 3, 0, 0])
    assert precision_recall(run, 1) is None
