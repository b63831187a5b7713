"""The exact metrics: the stock values to the bit, per class, without rounding."""

import numpy as np
import pytest
import torch

from transfer import mmcv_ops

mmcv_ops.install()

from transfer.metrics import ExactIoUMetric, ExactVOCMetric, use_exact_metrics  # noqa: E402

CLASSES = ('cat', 'dog', 'cow')


def random_results(seed, images=12):
    """Boxes of two classes (none of the third), some ignored; detections near them, with tied scores."""
    rng = np.random.default_rng(seed)

    def boxes(count):
        corner = rng.uniform(0, 60, (count, 2))
        return np.hstack([corner, corner + rng.uniform(5, 40, (count, 2))]).astype(np.float32)

    results = []
    for _ in range(images):
        truth, ignored = boxes(rng.integers(0, 5)), boxes(rng.integers(0, 2))
        annotation = {
            'bboxes': truth,
            'labels': rng.integers(0, 2, len(truth)),
            'bboxes_ignore': ignored,
            'labels_ignore': rng.integers(0, 2, len(ignored)),
        }
        found = []
        for label in range(3):
            near = np.vstack([truth[annotation['labels'] == label], ignored, boxes(rng.integers(0, 3))])
            near = near + rng.normal(0, 2, near.shape).astype(np.float32)
            scores = rng.integers(0, 6, (len(near), 1)).astype(np.float32) / 6
            found.append(np.hstack([near, scores]))
        results.append((annotation, found))
    return results


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_average_precision_equals_mmdets_to_the_bit(mode):
    from mmdet.evaluation.functional import eval_map

    results = random_results(seed=3)
    metric = ExactVOCMetric(eval_mode=mode, prefix='x')
    metric.dataset_meta = {'classes': CLASSES}
    ours = metric.compute_metrics(results)
    annotations, found = zip(*results, strict=True)
    mean, per_class = eval_map(
        found, annotations, iou_thr=0.5, eval_mode=mode, use_legacy_coordinate=True, logger='silent'
    )
    assert ours['mAP'] == mean and 0.05 < mean < 0.95
    assert metric.per_class == {'cat': float(per_class[0]['ap']), 'dog': float(per_class[1]['ap'])}


def test_average_precision_of_one_class_by_hand():
    """Two boxes; hits at ranks 1 and 3: precision 1 up to recall 1/2, 2/3 up to recall 1."""
    boxes = np.array([[0, 0, 9, 9], [20, 20, 29, 29], [50, 50, 59, 59]], np.float32)
    annotation = {
        'bboxes': boxes[:2],
        'labels': np.zeros(2, int),
        'bboxes_ignore': np.zeros((0, 4), np.float32),
        'labels_ignore': np.zeros(0, int),
    }
    ranked = np.hstack([boxes[[0, 2, 1]], np.array([[0.9], [0.8], [0.7]], np.float32)])
    for mode, wanted in (('area', (1 + 2 / 3) / 2), ('11points', (6 * 1 + 5 * 2 / 3) / 11)):
        metric = ExactVOCMetric(eval_mode=mode)
        metric.dataset_meta = {'classes': ('cat',)}
        assert metric.compute_metrics([(annotation, [ranked])])['mAP'] == pytest.approx(wanted, abs=1e-6)


def counts(intersect, union, predicted, labelled):
    return tuple(
        torch.tensor(values, dtype=torch.float32) for values in (intersect, union, predicted, labelled)
    )


def test_miou_is_an_unrounded_fraction_over_the_classes_that_occur():
    metric = ExactIoUMetric()
    metric.dataset_meta = {'classes': CLASSES}
    # cat 1/3, dog 2/7 over both images; no cow anywhere.
    ours = metric.compute_metrics(
        [
            counts([1, 1, 0], [2, 3, 0], [2, 2, 0], [1, 2, 0]),
            counts([0, 1, 0], [1, 4, 0], [1, 4, 0], [0, 1, 0]),
        ]
    )
    assert ours['mIoU_exact'] == pytest.approx((1 / 3 + 2 / 7) / 2, abs=1e-12)
    assert ours['mIoU'] == 30.95
    assert metric.per_class == {'cat': pytest.approx(1 / 3), 'dog': pytest.approx(2 / 7)}


def test_pixels_are_counted_beyond_2_to_the_24():
    metric = ExactIoUMetric()
    metric.dataset_meta = {'classes': ('cat', 'dog')}
    full = 2.0**24
    images = [counts([full, 1], [full, 2], [full, 1], [full, 2])] + [
        counts([1, 0], [1, 0], [1, 0], [1, 0])
    ] * 3
    ours = metric.compute_metrics([*images, counts([0, 0], [full, 0], [full, 0], [0, 0])])
    assert metric.per_class['cat'] == (full + 3) / (2 * full + 3)
    assert ours['mIoU_exact'] == ((full + 3) / (2 * full + 3) + 0.5) / 2


def test_only_the_voc_metrics_are_replaced():
    assert use_exact_metrics([{'type': 'VOCMetric', 'prefix': 'area'}, {'type': 'CocoMetric'}]) == [
        {'type': 'ExactVOCMetric', 'prefix': 'area'},
        {'type': 'CocoMetric'},
    ]
