"""The probes themselves, on features made by hand."""

import numpy as np
import pytest
from sklearn.svm import LinearSVC

from transfer.probes import draw_shots, knn_scores, linear_scores, low_shot_scores
from transfer.ranking import average_precision

SETTINGS = dict(costs=(0.1, 10.0), folds=3, positive_weight=2)


@pytest.fixture
def data():
    """60 + 200 images; each of three classes adds to a direction of its own, the rest is noise."""
    rng = np.random.default_rng(0)
    labels = rng.choice([1, -1], (260, 3))
    features = rng.normal(size=(260, 16)) + 4 * (labels > 0) @ np.eye(3, 16)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    return features[:60], labels[:60], features[60:], labels[60:]


def mean_ap(scores, labels):
    return np.mean([average_precision(*columns) for columns in zip(scores.T, labels.T, strict=True)])


def test_every_probe_finds_the_classes_and_more_images_help(data):
    train, labels, test, truth = data
    linear, _ = linear_scores(train, labels, test, **SETTINGS)
    few, more = (
        mean_ap(low_shot_scores(train, labels, test, shots=k, seed=0, cost=0.5, positive_weight=2), truth)
        for k in (1, 8)
    )
    assert mean_ap(linear, truth) > 0.95 and few < more < mean_ap(linear, truth)
    assert mean_ap(knn_scores(train, labels, test, k=5, temperature=0.07), truth) > 0.9
    assert mean_ap(np.random.default_rng(1).random(truth.shape), truth) < 0.7


def test_the_linear_svm_is_the_field_s_and_its_cost_the_one_that_validates_best(data):
    train, labels, test, _ = data
    scores, costs = linear_scores(train, labels, test, **SETTINGS)
    assert set(costs) <= {0.1, 10.0}
    alone, fixed = linear_scores(train, labels, test, **SETTINGS | {'costs': (0.5,)}, jobs=2)
    assert fixed.tolist() == [0.5] * 3
    # The dual problem with the numbers of the public code has the same solution.
    for label in range(3):
        theirs = LinearSVC(
            C=0.5, class_weight={1: 2, -1: 1}, dual=True, max_iter=100_000, tol=1e-6, random_state=0
        )
        wanted = theirs.fit(train, labels[:, label]).decision_function(test)
        assert alone[:, label] == pytest.approx(wanted, abs=1e-3)
        chosen, _ = linear_scores(train, labels, test, **SETTINGS | {'costs': (costs[label],)})
        assert scores[:, label] == pytest.approx(chosen[:, label])


def test_difficult_images_are_negatives_for_all_and_not_drawn_for_few(data):
    train, labels, test, _ = data
    some = labels.copy()
    some[:10][some[:10] < 0] = 0
    one, _ = linear_scores(train, some, test, **SETTINGS)
    other, _ = linear_scores(train, labels, test, **SETTINGS)
    assert (one == other).all()
    chosen = draw_shots(some[:, 0], 8, 3, np.random.default_rng(0))
    assert len(set(chosen)) == len(chosen) == 8 + 16
    assert some[chosen, 0].tolist() == [1] * 8 + [-1] * 16


def test_negatives_are_as_many_as_there_are():
    truth = np.array([1, 1, -1, -1, -1, 0])
    assert sorted(draw_shots(truth, 2, 20, np.random.default_rng(0))) == [0, 1, 2, 3, 4]


def test_the_seed_draws_the_images_and_nothing_else_does(data):
    train, labels, test, _ = data

    def scores(seed, features=train):
        return low_shot_scores(features, labels, test, shots=2, seed=seed, cost=0.5, positive_weight=2)

    assert (scores(0) == scores(0)).all() and not (scores(0) == scores(1)).all()
    drawn = [draw_shots(labels[:, 1], 4, 3, np.random.default_rng([7, 4, 1])) for _ in range(2)]
    assert (drawn[0] == drawn[1]).all()


def test_neighbours_weigh_by_their_similarity(data):
    train, labels, test, _ = data
    found = knn_scores(train, labels, test, k=5, temperature=0.07)
    for image in (0, 17):
        similarity = train @ test[image]
        near = np.argsort(-similarity)[:5]
        weights = np.exp(similarity[near] / 0.07)
        assert found[image] == pytest.approx(weights @ (labels[near] > 0) / weights.sum())
    sharp = knn_scores(train, labels, test, k=5, temperature=1e-6)
    nearest = (test @ train.T).argmax(1)
    assert sharp == pytest.approx((labels[nearest] > 0).astype(float), abs=1e-2)
