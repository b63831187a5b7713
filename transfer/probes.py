"""Probes of frozen features: linear SVM, low-shot SVM and nearest neighbours, one yes-or-no question a class.

After Goyal et al. 2019, "Scaling and benchmarking self-supervised visual representation learning" and its
public code, with scikit-learn's estimators: features of unit length; squared-hinge SVMs in which positives
weigh double. An image that shows a class only as "difficult" objects has label 0: it is a negative for the
SVM on all images, is never drawn for few, and does not count in the test, all as in that code.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsRegressor
from sklearn.svm import LinearSVC
from sklearn.utils.parallel import Parallel, delayed


def linear_scores(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    costs: Sequence[float],
    folds: int,
    positive_weight: float,
    jobs: int = 1,
) -> tuple[np.ndarray, np.ndarray]:
    """Linear SVM on all images, its cost C chosen for each class by cross-validated AP.

    Args:
        train: ``(N, D)`` features, rows of unit length.
        labels: ``(N, C)``, 1, -1 or 0.
        test: ``(M, D)``.
        costs: values of the SVM's C to choose from; one alone is taken as it is.
        folds: of the cross-validation.
        positive_weight: weight of positives in the loss.
        jobs: classes fitted at a time.

    Returns:
        Scores ``(M, C)`` and the chosen costs ``(C,)``.
    """

    def fit(truth: np.ndarray) -> tuple[np.ndarray, float]:
        if len(costs) == 1:
            model, cost = _svm(costs[0], positive_weight).fit(train, truth), costs[0]
        else:
            grid = {'C': list(costs)}
            search = GridSearchCV(
                _svm(costs[0], positive_weight), grid, scoring='average_precision', cv=folds
            )
            model = search.fit(train, truth)
            cost = search.best_params_['C']
        return model.decision_function(test), cost

    # Threads: liblinear leaves Python's lock, and the features need not be copied.
    truths = (labels > 0).T.astype(int)
    fitted = Parallel(n_jobs=jobs, prefer='threads')(delayed(fit)(truth) for truth in truths)
    scores, chosen = zip(*fitted, strict=True)
    return np.stack(scores, axis=1), np.array(chosen)


def knn_scores(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, *, k: int, temperature: float
) -> np.ndarray:
    """Share of each class among the ``k`` nearest, who weigh ``exp(cosine similarity / temperature)``.

    Args:
        train: ``(N, D)`` features.
        labels: ``(N, C)``, 1, -1 or 0.
        test: ``(M, D)``.
        k: number of neighbours.
        temperature: the smaller, the more the nearest count.

    Returns:
        Scores ``(M, C)`` between 0 and 1.
    """

    def weights(distances: np.ndarray) -> np.ndarray:
        # From the nearest on: only ratios count, and exp(1 / temperature) could overflow.
        return np.exp((distances.min(axis=1, keepdims=True) - distances) / temperature)

    model = KNeighborsRegressor(k, metric='cosine', algorithm='brute', weights=weights)
    return model.fit(train, (labels > 0).astype(float)).predict(test)


def low_shot_scores(
    train: np.ndarray,
    labels: np.ndarray,
    test: np.ndarray,
    *,
    shots: int,
    seed: int,
    cost: float,
    positive_weight: float,
) -> np.ndarray:
    """Linear SVM on few images: ``shots`` of each class and ``(C - 1) * shots`` without it.

    Args:
        train: ``(N, D)`` features, rows of unit length.
        labels: ``(N, C)``, 1, -1 or 0.
        test: ``(M, D)``.
        shots: number of positive images a class.
        seed: draws the images, for each class and number of shots anew; the same for every backbone.
        cost: the SVM's C.
        positive_weight: weight of positives in the loss.

    Returns:
        Scores ``(M, C)``.
    """
    scores = []
    for label, truth in enumerate(labels.T):
        chosen = draw_shots(truth, shots, labels.shape[1], np.random.default_rng([seed, shots, label]))
        model = _svm(cost, positive_weight).fit(train[chosen], (truth[chosen] > 0).astype(int))
        scores.append(model.decision_function(test))
    return np.stack(scores, axis=1)


def draw_shots(truth: np.ndarray, shots: int, classes: int, rng: np.random.Generator) -> np.ndarray:
    """Places of ``shots`` positive and ``(classes - 1) * shots`` negative images, or all negatives there are.

    Args:
        truth: ``(N,)``, 1, -1, or 0 for images that are not to be drawn.
        shots: number of positive images.
        classes: number of classes.
        rng: draws.
    """
    positive, negative = np.flatnonzero(truth > 0), np.flatnonzero(truth < 0)
    several = min(len(negative), (classes - 1) * shots)
    return np.concatenate(
        [rng.choice(positive, shots, replace=False), rng.choice(negative, several, replace=False)]
    )


def _svm(cost: float, positive_weight: float) -> LinearSVC:
    # The primal problem: the same solution as the dual one, found without random numbers.
    return LinearSVC(C=cost, class_weight={0: 1, 1: positive_weight}, loss='squared_hinge', dual=False)
