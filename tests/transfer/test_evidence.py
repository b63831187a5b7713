"""Results and stored predictions to intervals and verdicts."""

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from sd_pretrain.cli import InputError
from transfer.bootstrap import (
    Detections,
    Overlaps,
    resampled_ap,
    resampled_iou,
)
from transfer.evidence import compare, compare_classes
from transfer.predictions import save_predictions
from transfer.statistics import holm, seed_difference

IMAGES = [f'{number:06d}' for number in range(60)]
METRIC = {'det': 'mAP_11point', 'seg': 'mIoU'}


def detections(rng, quality):
    """One box of one of two classes in each image; found or not, and false alarms."""
    label = rng.integers(0, 2, len(IMAGES))
    boxes = np.eye(2, dtype=int)[label]
    image = np.tile(np.arange(len(IMAGES)), 2)
    hit = np.concatenate([rng.random(len(IMAGES)) < quality, np.zeros(len(IMAGES), bool)])
    found = np.concatenate([label, rng.integers(0, 2, len(IMAGES))])
    score = rng.random(2 * len(IMAGES)) + 0.3 * hit
    order = np.lexsort((-score, found))
    return Detections(image[order], found[order], score[order], hit[order], boxes)


def overlaps(rng, quality):
    union = rng.integers(50, 100, (len(IMAGES), 3))
    share = np.clip(rng.normal(quality, 0.2, union.shape), 0, 1)
    return Overlaps((union * share).astype(int), union)


def run(folder, name, task, seed, quality, images=IMAGES, stored=True):
    """A result as fine-tuning leaves it, with the predictions that have its metric."""
    rng = np.random.default_rng([seed, *name.encode()])
    found = (detections if task == 'det' else overlaps)(rng, quality)
    once = np.ones((1, len(IMAGES)), np.float32)
    values = resampled_ap(found, once, '11points') if task == 'det' else resampled_iou(found, once)
    value = np.nanmean(values, axis=1)
    work_dir = folder / task / name / f'seed{seed}'
    work_dir.mkdir(parents=True)
    if stored:
        save_predictions(work_dir, found, images)
    each = resampled_ap(found, once, '11points') if task == 'det' else resampled_iou(found, once)
    return {
        'name': name,
        'task': task,
        'seed': seed,
        'metrics': {METRIC[task]: float(value[0])},
        'per_class': {f'class {label}': float(one) for label, one in enumerate(each[0])},
        'work_dir': str(work_dir),
    }


@pytest.mark.parametrize('task', ['det', 'seg'])
def test_one_run_each_is_judged_over_the_images_alone(tmp_path, task):
    results = [run(tmp_path, 'BL', task, 0, 0.4), run(tmp_path, 'SD', task, 0, 0.8)]
    (one,) = compare(results)
    assert (one.name, one.metric) == ('SD', METRIC[task])
    assert one.value == pytest.approx(results[1]['metrics'][one.metric] - results[0]['metrics'][one.metric])
    assert one.interval.error == 0 and 0 < one.interval.low < one.value < one.interval.high
    assert one.verdict.kind == 'better' and 'a single run' in one.verdict.text
    assert one.as_json()['over_images'] and not one.as_json()['over_seeds']


def test_seeds_and_images_are_put_together(tmp_path):
    results = [
        run(tmp_path, name, 'seg', seed, quality)
        for name, quality in (('BL', 0.50), ('SD', 0.51))
        for seed in range(3)
    ]
    (one,) = compare(results, resamples=200)
    assert one.interval.runs == (3, 3) and one.interval.paired
    seeds = [{run['seed']: run['metrics']['mIoU'] for run in part} for part in (results[3:], results[:3])]
    known = one.interval
    images = {'image_error': known.image_error, 'luck': known.luck, 'images': len(IMAGES)}
    assert one.interval == replace(seed_difference(*seeds), **images)
    assert one.interval.image_error > 0
    assert one.verdict.kind == 'not resolved'


def test_without_stored_predictions_the_seeds_remain(tmp_path):
    results = [
        run(tmp_path, n, 'seg', s, q, stored=s == 0) for n, q in (('BL', 0.4), ('SD', 0.6)) for s in (0, 1)
    ]
    (one,) = compare(results)
    assert one.interval.image_error == 0 < one.interval.error
    (one,) = compare([results[1], results[3]])
    assert one.interval is None and one.verdict.kind == 'unknown'


def test_different_test_images_are_refused(tmp_path):
    results = [
        run(tmp_path, 'BL', 'det', 0, 0.5),
        run(tmp_path, 'SD', 'det', 0, 0.5, images=[f'other{name}' for name in IMAGES]),
    ]
    with pytest.raises(InputError, match='tested on different images'):
        compare(results)


@pytest.mark.parametrize('task', ['det', 'seg'])
@pytest.mark.parametrize('seeds', [1, 3])
def test_classes_are_compared_with_holms_correction(tmp_path, task, seeds):
    results = [run(tmp_path, n, task, s, q) for n, q in (('BL', 0.3), ('SD', 0.9)) for s in range(seeds)]
    found = compare_classes(results, 'SD', 'BL', task)
    assert [one.name for one in found] == list(results[0]['per_class'])
    means = [
        np.mean([list(one['per_class'].values()) for one in part], 0)
        for part in (results[seeds:], results[:seeds])
    ]
    assert [one.interval.value for one in found] == pytest.approx(list(means[0] - means[1]))
    assert [one.p for one in found] == holm([one.interval.p for one in found])
    if seeds == 1:
        assert all(one.interval.image_error > 0 and one.p < 0.05 for one in found)
    results[0].pop('work_dir')
    assert len(compare_classes(results, 'SD', 'BL', task)) == (0 if seeds == 1 else len(found))


def test_equal_runs_have_an_interval_over_the_images_or_none(tmp_path):
    results = [run(tmp_path, name, 'det', 0, q) for name, q in (('BL', 0.4), ('SD', 0.5))]
    results += [{**one, 'seed': seed} for one in results for seed in (1, 2)]
    (one,) = compare(results)
    (single,) = compare(results[:2])
    assert one.interval.error == 0 and one.interval.runs == (3, 3)
    assert one.interval.reach == pytest.approx(single.interval.reach) and one.interval.reach > 0
    assert 'over test images only; no chance from run to run' in one.verdict.text
    assert not one.as_json()['over_seeds'] and one.as_json()['over_images']
    for each in results:
        each.pop('work_dir')
    (one,) = compare(results)
    assert one.interval is None and one.verdict.kind == 'unknown'


def test_one_image_is_no_certainty(tmp_path):
    """A class that one test image shows has the same IoU in every resample, and the only image has all."""
    results = []
    for name, found in (('BL', 40), ('SD', 41)):
        rng = np.random.default_rng(len(results))
        union = np.tile([100, 0], (len(IMAGES), 1))
        union[7, 1] = 80
        intersect = rng.integers(20, 80, union.shape) * (union > 0)
        intersect[7, 1] = found
        iou = intersect.sum(0) / union.sum(0)
        work_dir = tmp_path / name
        work_dir.mkdir()
        save_predictions(work_dir, Overlaps(intersect, union), IMAGES)
        one = {'name': name, 'task': 'seg', 'seed': 0, 'metrics': {'mIoU': iou.mean()}}
        per_class = {'common': float(iou[0]), 'rare': float(iou[1])}
        results.append({**one, 'per_class': per_class, 'work_dir': str(work_dir)})
    assert [one.name for one in compare_classes(results, 'SD', 'BL', 'seg')] == ['common']
    for one in results:
        found = Overlaps(np.array([[50 + (one['name'] == 'SD')]]), np.array([[100]]))
        save_predictions(one['work_dir'], found, IMAGES[:1])
        one['metrics']['mIoU'] = float(found.intersect[0, 0] / 100)
    (single,) = compare(results)
    assert single.interval is None and single.verdict.kind == 'unknown'


def test_few_images_say_as_much_as_few_images_can(tmp_path):
    """Where all unions are equal, mIoU is the mean over the images, and its t interval is known."""
    rng, union, results, values = np.random.default_rng(5), np.full((6, 1), 10_000), [], {}
    for name, quality in (('BL', 0.5), ('SD', 0.6)):
        work_dir = tmp_path / name
        work_dir.mkdir()
        intersect = (union * rng.normal(quality, 0.1, union.shape)).astype(int)
        save_predictions(work_dir, Overlaps(intersect, union), IMAGES[:6])
        values[name] = intersect[:, 0] / 10_000
        one = {'name': name, 'task': 'seg', 'seed': 0, 'metrics': {'mIoU': values[name].mean()}}
        results.append({**one, 'per_class': {'dog': values[name].mean()}, 'work_dir': str(work_dir)})
    known = stats.ttest_rel(values['SD'], values['BL'])
    (one,), (dog,) = compare(results), compare_classes(results, 'SD', 'BL', 'seg')
    assert (one.interval.low, one.interval.high) == pytest.approx(
        tuple(known.confidence_interval()), abs=0.01
    )
    assert dog.interval == one.interval and dog.p == pytest.approx(known.pvalue, rel=0.2)


@pytest.mark.filterwarnings('ignore:Mean of empty slice')
def test_resamples_without_any_object_say_nothing(tmp_path):
    results = []
    for name, hits in (('BL', [True, False]), ('SD', [True, True])):
        work_dir = tmp_path / name
        work_dir.mkdir()
        none, boxes = np.zeros(2, int), np.array([[1], [1], [0], [0]])
        save_predictions(
            work_dir, Detections(np.arange(2), none, np.ones(2), np.array(hits), boxes), IMAGES[:4]
        )
        metrics = {'mAP_area': sum(hits) / 2}
        results.append(
            {'name': name, 'task': 'det', 'seed': 0, 'metrics': metrics, 'work_dir': str(work_dir)}
        )
    (one,) = compare(results)
    assert one.interval.low < 0.5 < one.interval.high and one.interval.image_error > 0


def test_classes_of_few_images_are_rarely_called_different(tmp_path):
    """Two runs that are alike, on few images of each class: at 5% for all, seldom in any."""
    images, classes, wrong = 40, 20, 0
    for trial in range(40):
        rng, results = np.random.default_rng(trial), []
        union = 100 * (rng.random((images, classes)) < 0.1)
        union[:2] = 100
        for name in ('BL', 'SD'):
            work_dir = tmp_path / f'{name}{trial}'
            work_dir.mkdir()
            found = Overlaps(rng.binomial(union, 0.6), union)
            save_predictions(work_dir, found, IMAGES[:images])
            iou = resampled_iou(found, np.ones((1, images)))[0]
            one = {'name': name, 'task': 'seg', 'seed': 0, 'metrics': {'mIoU': iou.mean()}}
            per_class = {f'class {label}': float(value) for label, value in enumerate(iou)}
            results.append({**one, 'per_class': per_class, 'work_dir': str(work_dir)})
        wrong += any(one.p < 0.05 for one in compare_classes(results, 'SD', 'BL', 'seg', resamples=200))
    assert wrong <= 6  # of 2 that are due


def test_three_runs_against_one_are_not_one_run_each(tmp_path):
    results = [run(tmp_path, 'BL', 'seg', seed, 0.5, stored=False) for seed in range(3)]
    (one,) = compare([*results, run(tmp_path, 'SD', 'seg', 0, 0.6, stored=False)])
    assert one.verdict.text == 'SD unknown: mIoU, how much runs and test images scatter is not known'


def test_differences_that_are_equal_but_for_rounding_are_no_scatter():
    values = {'BL': (0.1, 0.1 + 0.2), 'SD': (0.1 + 0.2, 0.5)}
    results = [
        {'name': name, 'task': 'seg', 'seed': seed, 'metrics': {'mIoU': value}}
        for name, some in values.items()
        for seed, value in enumerate(some)
    ]
    (one,) = compare(results)
    assert 0 < seed_difference(*(dict(enumerate(some)) for some in values.values())).error < 1e-15
    assert one.interval is None and one.verdict.kind == 'unknown'
