"""AP and top-1 accuracy of classification, by hand and by scikit-learn, and their bootstrap over images."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, average_precision_score, precision_recall_curve

from transfer.bootstrap import draw
from transfer.ranking import Scores, average_precision, class_aps, resampled_scores, top1


def by_scikit_learn(score, label):
    """Area under scikit-learn's curve, after precision has been made to fall."""
    precision, recall, _ = precision_recall_curve(label > 0, score)
    best = np.maximum.accumulate(precision)  # the curve begins at full recall
    return -np.diff(recall) @ best[:-1]


def test_by_hand_and_where_precision_falls_by_itself():
    label = np.array([1, -1, 1, -1])
    assert average_precision(np.array([0.9, 0.8, 0.7, 0.6]), label) == pytest.approx((1 + 2 / 3) / 2)
    # Found at ranks 2 and 3: precision rises from 1/2 to 2/3, so 2/3 counts for both.
    assert average_precision(np.array([0.8, 0.9, 0.7, 0.6]), label) == pytest.approx(2 / 3)
    label = np.array([1, 1, -1, 1, -1, -1, -1, 1, -1])
    score = -np.arange(9.0)
    assert average_precision(score, label) == pytest.approx(average_precision_score(label > 0, score))


@pytest.mark.parametrize('levels', [3, 1000])
def test_equals_scikit_learns_curve_also_with_ties(levels):
    rng = np.random.default_rng(0)
    for _ in range(30):
        label = rng.choice([1, -1, -1], 50)
        score = rng.integers(0, levels, 50) + label
        wanted = by_scikit_learn(score, label)
        assert average_precision(score, label) == pytest.approx(wanted)
        order = rng.permutation(50)
        assert average_precision(score[order], label[order]) == pytest.approx(wanted), 'whatever the order'
        assert wanted >= average_precision_score(label > 0, score) - 1e-12


def test_what_counts_neither_way_is_as_if_it_were_not_there():
    rng = np.random.default_rng(1)
    label, score = rng.choice([1, -1, 0], 60), rng.random(60)
    assert (label == 0).any()
    counts = label != 0
    assert average_precision(score, label) == average_precision(score[counts], label[counts])
    assert np.isnan(average_precision(score, np.minimum(label, 0)))


@pytest.fixture
def run():
    rng = np.random.default_rng(2)
    label = rng.choice([1, -1, -1, 0], (40, 3)).astype(np.int8)
    score = (rng.integers(0, 6, (3, 40, 3)) + label).astype(np.float32)
    return Scores(np.array(['linear', 'low_shot_1', 'low_shot_2']), score, label)


def test_a_kind_is_the_mean_of_its_probes(run):
    each = [class_aps(run, name) for name in ('low_shot_1', 'low_shot_2')]
    assert class_aps(run, 'low_shot') == pytest.approx(np.mean(each, 0))
    assert run.of_kind('linear') == [0] and run.of_kind('low') == []


@pytest.mark.parametrize('kind', ['linear', 'low_shot'])
def test_the_bootstrap_is_that_of_the_resampled_images(run, kind):
    counts = draw(40, 20)
    found = resampled_scores(run, counts, kind)
    for times, aps in zip(counts, found, strict=True):
        images = np.repeat(np.arange(40), times.astype(int))
        again = Scores(run.probe, run.score[:, images], run.label[images])
        assert aps == pytest.approx(class_aps(again, kind), abs=1e-6)
    once = resampled_scores(run, np.ones((1, 40), np.float32), kind)
    assert once[0] == pytest.approx(class_aps(run, kind), abs=1e-6)


def test_top1_is_the_share_of_images_whose_class_scores_highest(run):
    assert not run.one_class_each
    rng = np.random.default_rng(3)
    classes = rng.integers(0, 3, 40)
    label = np.where(np.eye(3)[classes] > 0, 1, -1).astype(np.int8)
    score = rng.random((2, 40, 3)).astype(np.float32) + 0.4 * (label > 0)
    one = Scores(np.array(['knn_1', 'knn_2']), score, label)
    assert one.one_class_each
    right = [accuracy_score(classes, scores.argmax(1)) for scores in score]
    assert 0.4 < top1(one, 'knn') < 0.9 and top1(one, 'knn') == pytest.approx(np.mean(right))

    counts = draw(40, 20)
    for times, (found,) in zip(counts, resampled_scores(one, counts, 'knn', 'top1'), strict=True):
        images = np.repeat(np.arange(40), times.astype(int))
        assert found == pytest.approx(top1(Scores(one.probe, score[:, images], label[images]), 'knn'))
    # One image that is left open, or shows two classes.
    for value in (0, 1):
        other = label.copy()
        other[5, (classes[5] + 1) % 3] = value
        assert not Scores(one.probe, score, other).one_class_each
