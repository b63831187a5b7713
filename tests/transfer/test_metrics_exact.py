"""The exact metrics: the stock values to the bit, per class, without rounding."""

import numpy as np
import pytest
import torch

from transfer import mmcv_ops

mmcv_ops.install()

from mmdet.evaluation.metrics import VOCMetric  # noqa: E402
from mmseg.evaluation.metrics import IoUMetric  # noqa: E402

from transfer import voc_map  # noqa: E402
from transfer.iou_metric import ExactIoUMetric  # noqa: E402
from transfer.logs import _evaluators  # noqa: E402
from transfer.metrics import use_exact_metrics  # noqa: E402
from transfer.voc_metric import ExactVOCMetric  # noqa: E402

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


def image(truth=(), ignored=(), found=((), (), ())):
    """One image of the annotation and detections ``(left, right[, score])``, 10 high, truth of class 0."""

    def boxes(some):
        return np.array([[one[0], 0, one[1], 9, *one[2:]] for one in some], np.float32)

    annotation = {
        'bboxes': boxes(truth).reshape(-1, 4),
        'labels': np.zeros(len(truth), int),
        'bboxes_ignore': boxes(ignored).reshape(-1, 4),
        'labels_ignore': np.zeros(len(ignored), int),
    }
    return annotation, [boxes(one).reshape(-1, 5) for one in found]


# A box is 10 wide: two detections of equal score on one box; one that overlaps two boxes alike; a class with
# ignored boxes alone, which also win a tie of the overlaps only when they come first; ten boxes of which
# three are found: 3/10 is below the third threshold, 0.1 * 3 in double precision.
EDGES = {
    'nothing detected': [image([(0, 9)]), image()],
    'no boxes': [image(found=([(0, 9, 0.5)], [(0, 9, 0.5)], ()))],
    'ignored alone': [image(ignored=[(0, 9)], found=([(0, 9, 0.9), (0, 9, 0.8), (50, 59, 0.7)], (), ()))],
    'equal scores': [image([(0, 9)], found=([(1, 10, 0.5), (0, 9, 0.5), (30, 39, 0.5)], (), ()))] * 3,
    'equal overlaps': [
        image([(0, 9), (10, 19)], [(20, 29)], ([(0, 19, 0.9), (10, 29, 0.8), (10, 29, 0.7)], (), ()))
    ],
    'recall at a threshold': [image([(0, 9)], found=([(0, 9, 0.9)], (), ()))] * 3 + [image([(0, 9)])] * 7,
}


@pytest.mark.parametrize('results', [*EDGES.values(), *map(random_results, range(4))], ids=[*EDGES, *'0123'])
def test_both_kinds_of_average_precision_of_every_class_equal_mmdets_to_the_bit(results):
    from mmdet.evaluation.functional import eval_map

    ours = voc_map.evaluate(results, 3)
    annotations, found = zip(*results, strict=True)
    for mode in ('11points', 'area'):
        _, theirs = eval_map(found, annotations, eval_mode=mode, use_legacy_coordinate=True, logger='silent')
        assert [one['ap'][mode] for one in ours] == [one['ap'] for one in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert (one['num_gts'], one['num_dets']) == (other['num_gts'], other['num_dets'])
        for curve in ('recall', 'precision'):
            assert np.array_equal(one[curve], other[curve])


def test_two_voc_metrics_become_one_with_the_values_of_both():
    stock = [
        {'type': 'VOCMetric', 'metric': 'mAP', 'eval_mode': mode, 'prefix': prefix}
        for prefix, mode in (('11point', '11points'), ('area', 'area'))
    ]
    (config,) = use_exact_metrics(stock)
    assert _evaluators([config]) == _evaluators(stock), 'compared runs count as tested alike'
    samples = [
        {
            'gt_instances': {part: torch.tensor(annotation[part]) for part in ('labels', 'bboxes')},
            'ignored_instances': {
                part: torch.tensor(annotation[f'{part}_ignore']) for part in ('labels', 'bboxes')
            },
            'pred_instances': {
                'bboxes': torch.tensor(np.concatenate(found)[:, :4]),
                'scores': torch.tensor(np.concatenate(found)[:, 4]),
                'labels': torch.arange(3).repeat_interleave(torch.tensor([len(one) for one in found])),
            },
        }
        for annotation, found in random_results(seed=5)
    ]
    found = []
    for kind, configs in ((ExactVOCMetric, [config]), (VOCMetric, stock)):
        metrics = {}
        for one in configs:
            metric = kind(**{key: value for key, value in one.items() if key != 'type'})
            metric.dataset_meta = {'classes': CLASSES}
            metric.process({}, samples)
            metrics |= metric.evaluate(len(samples))
        found.append(metrics)
    assert found[0] == found[1]
    assert set(found[0]) == {'11point/mAP', '11point/AP50', 'area/mAP', 'area/AP50'}


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


@pytest.mark.parametrize('device', ['cpu', pytest.param('cuda', marks=pytest.mark.cuda)])
def test_pixels_of_a_batch_are_counted_as_the_stock_metric_counts_them(device):
    """Images of two sizes; what is beyond the classes counts against the other side, 255 does not."""
    generator = torch.Generator().manual_seed(0)
    samples = []
    for size in ((6, 8), (6, 8), (9, 5)):
        truth = torch.randint(0, 5, (1, *size), generator=generator)
        truth[truth == 3] = 255
        predicted = torch.randint(0, 5, (1, *size), generator=generator)
        samples.append(
            {'pred_sem_seg': {'data': predicted.to(device)}, 'gt_sem_seg': {'data': truth.to(device)}}
        )
    metrics = [ExactIoUMetric(), IoUMetric()]
    for metric in metrics:
        metric.dataset_meta = {'classes': CLASSES}
        metric.process({}, samples)
    for ours, theirs in zip(*(metric.results for metric in metrics), strict=True):
        assert [one.tolist() for one in ours[:4]] == [one.tolist() for one in theirs]
    ours, theirs = (metric.evaluate(3) for metric in metrics)
    assert {key: ours[key] for key in theirs} == pytest.approx(theirs, abs=1e-4) and ours['mIoU_exact'] > 0
    both = [torch.stack([part['data'] for part in one.values()]).amax(0) for one in samples]
    assert metrics[0].confusion.sum() == sum((one < 3).sum().item() for one in both)


def test_only_the_voc_metrics_are_replaced():
    assert use_exact_metrics([{'type': 'VOCMetric', 'prefix': 'area'}, {'type': 'CocoMetric'}]) == [
        {'type': 'ExactVOCMetric', 'prefix': 'area'},
        {'type': 'CocoMetric'},
    ]
