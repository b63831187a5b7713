"""The bootstrap over test images: equal to evaluating each resampled list of images."""

import numpy as np
import pytest

from transfer import mmcv_ops

mmcv_ops.install()

from test_metrics_exact import CLASSES, random_results  # noqa: E402

from transfer.bootstrap import (  # noqa: E402
    Detections,
    Overlaps,
    draw,
    image_errors,
    resampled_ap,
    resampled_iou,
)
from transfer.voc_metric import ExactVOCMetric  # noqa: E402


def evaluated(results, mode):
    metric = ExactVOCMetric(eval_mode=mode, prefix='x')
    metric.dataset_meta = {'classes': CLASSES}
    return metric.compute_metrics(results)['mAP'], metric


@pytest.mark.parametrize('mode', ['11points', 'area'])
@pytest.mark.parametrize('seed', range(4))
def test_a_resample_equals_evaluating_its_list_of_images(mode, seed):
    results = random_results(seed, images=15)
    # Without ties between images: what their order is, evaluation leaves to chance.
    rng = np.random.default_rng(seed)
    for _, found in results:
        for boxes in found:
            boxes[:, 4] += rng.uniform(0, 0.01, len(boxes))
    _, metric = evaluated(results, mode)
    counts = draw(15, resamples=20, seed=seed)
    found = np.nanmean(resampled_ap(metric.detections, counts, mode), axis=1)
    for row, value in zip(counts, found, strict=True):
        listed = [results[image] for image in np.repeat(np.arange(15), row.astype(int))]
        assert value == pytest.approx(evaluated(listed, mode)[0], abs=1e-6)


@pytest.mark.parametrize('mode', ['11points', 'area'])
def test_the_test_set_itself_gives_the_metric_and_each_class(mode):
    results = random_results(seed=3, images=40)
    mean, metric = evaluated(results, mode)
    once = np.ones((1, 40), np.float32)
    by_class = resampled_ap(metric.detections, once, mode)[0]
    assert np.nanmean(by_class) == pytest.approx(mean, abs=1e-7)
    assert by_class[:2] == pytest.approx(list(metric.per_class.values()), abs=1e-7)
    assert np.isnan(by_class[2]), 'there is no box of this class'


def test_nothing_detected_is_zero_and_not_an_error():
    empty = np.zeros(0)
    run = Detections(empty.astype(int), empty.astype(int), empty, empty.astype(bool), np.ones((5, 2), int))
    assert np.nanmean(resampled_ap(run, draw(5, 3), 'area'), axis=1).tolist() == [0, 0, 0]
    assert np.nanmean(resampled_ap(run, draw(5, 3), '11points'), axis=1).tolist() == [0, 0, 0]


def test_iou_of_resamples_is_that_of_the_added_pixels():
    rng = np.random.default_rng(0)
    intersect = rng.integers(0, 50, (12, 4)) * np.array([1, 1, 1, 0])
    union = intersect + rng.integers(0, 50, (12, 4)) * np.array([1, 1, 1, 0])
    counts = draw(12, 10)
    found = resampled_iou(Overlaps(intersect, union), counts)
    for row, values in zip(counts.astype(int), found, strict=True):
        pixels = [np.repeat(part, row, axis=0).sum(0) for part in (intersect, union)]
        assert values[:3] == pytest.approx(pixels[0][:3] / pixels[1][:3])
        assert np.isnan(values[3])


def test_every_resample_draws_as_many_images_as_there_are():
    counts = draw(30, 50, seed=1)
    assert counts.shape == (50, 30) and (counts.sum(1) == 30).all()
    assert np.array_equal(counts, draw(30, 50, seed=1))
    assert not np.array_equal(counts, draw(30, 50, seed=2))


def test_error_over_images_is_that_of_the_difference_of_the_means():
    hard = np.random.default_rng(0).normal(0, 1, 400)
    none = image_errors([hard + 1], [hard])
    assert none == pytest.approx((0, 0), abs=1e-12), 'what is hard for both cancels'
    assert image_errors([hard], [-hard]) == pytest.approx((2 * hard.std(ddof=1), 0))


@pytest.mark.parametrize('paired', [False, True])
def test_what_is_single_runs_luck_with_images_is_told_from_what_they_share(paired):
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 1, 20_000)
    luck = rng.normal(0, 2, (8, 20_000))
    ours, theirs = shared + luck[:4], luck[4:]
    assert image_errors(ours, theirs, paired) == pytest.approx((1, np.sqrt(8 / 4)), abs=0.1)
    common, lucky = image_errors(luck[:4], theirs, paired)
    assert common < 0.5 and lucky == pytest.approx(np.sqrt(8 / 4), abs=0.1)
    whole = np.sqrt(1 + 8 / 1)
    alone = image_errors(ours[:1], theirs[:1], paired)
    assert alone == (pytest.approx(whole, rel=0.05), 0), 'one run keeps it'
