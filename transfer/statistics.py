"""How sure a difference between two backbones is: intervals, verdicts, and the runs a verdict would take.

Runs with several seeds give a t interval, paired where both backbones were run with the same seeds and
Welch's where not. The test images are a sample too: :mod:`transfer.bootstrap` gives their part of the
uncertainty, and an :class:`Interval` puts both together. Resampling the seeds as well would give intervals
that are too short with the three to ten seeds that people run. All distributions are SciPy's.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats
from scipy.optimize import brentq

LEVEL = 0.95
POWER = 0.8
# Beyond this many runs the answer is "do not try".
_MOST_RUNS = 100_000
_QUANTILES = 2000


@dataclass(frozen=True)
class Interval:
    """A difference with its confidence interval, in the unit of the metric.

    Args:
        value: the difference.
        error: its standard error over the seeds; 0 if they are not sampled.
        df: degrees of freedom of the t distribution that belongs to ``error``.
        runs: number of runs of the backbone and of the baseline.
        paired: whether the runs were compared seed by seed.
        image_error: its standard error over the test images; 0 if they are taken as given.
        luck: the part of ``error`` that is these runs' luck with single test images, as resamples of the
            images show it; 0 if they do not.
        images: number of test images that ``image_error`` and ``luck`` are found from, at least 2.
        level: confidence level.
    """

    value: float
    error: float
    df: float
    runs: tuple[int, int]
    paired: bool = False
    image_error: float = 0.0
    luck: float = 0.0
    images: float = math.inf
    level: float = LEVEL

    @property
    def reach(self) -> float:
        """Half of the interval's width."""
        return self._reach(self.level)

    @property
    def low(self) -> float:
        """Lower end."""
        return self.value - self.reach

    @property
    def high(self) -> float:
        """Upper end."""
        return self.value + self.reach

    @property
    def p(self) -> float:
        """Two-sided p-value of no difference: the level at which the interval would just reach 0."""
        size = abs(self.value)
        if size == 0 or self.error == self.image_error == self.luck == 0:
            return float(size == 0)
        if self.image_error == self.luck == 0:
            return float(2 * stats.t.sf(size / self.error, self.df))
        # In its logarithm, so that small ones are found as well.
        excess = lambda log_p: self._reach(1 - 10.0**log_p) - size  # noqa: E731
        return 10.0 ** brentq(excess, -15, 0) if excess(-15) > 0 else 1e-15

    def _reach(self, level: float) -> float:
        """Half of the width at a level: t intervals over seeds and over images, added in squares.

        With few runs a t distribution of Satterthwaite's degrees of freedom for the sum of both would make it
        too short: in ``tools/calibrate.py`` 92% instead of 95% with three runs each. And few runs may agree
        by chance better than their luck with the images lets them: it is never less than what the images
        leave open, that luck among it.
        """
        return float(_reach(level, self.df, self.images, self.error, self.image_error, self.luck))


def _reach(
    level: float, df: float, images: float, error: np.ndarray | float, image_error: float, luck: float
) -> np.ndarray | float:
    over_seeds, over_images = stats.t.ppf((1 + level) / 2, [df, images - 1])
    both = np.hypot(over_seeds * error, over_images * image_error)
    return np.maximum(both, over_images * math.hypot(image_error, luck))


def seed_difference(runs: Mapping[Hashable, float], baseline: Mapping[Hashable, float]) -> Interval | None:
    """Difference of two means over seeds, ``None`` unless both sides have two runs.

    With the same seeds on both sides the differences seed by seed are used (paired t), otherwise Welch's
    standard error and degrees of freedom.

    Args:
        runs: seed to metric.
        baseline: seed to metric of the baseline.
    """
    counts = (len(runs), len(baseline))
    if min(counts) < 2:
        return None
    if runs.keys() == baseline.keys():
        change = np.array([runs[seed] - baseline[seed] for seed in runs])
        error = float(change.std(ddof=1) / math.sqrt(len(change)))
        return Interval(float(change.mean()), error, len(change) - 1, counts, paired=True)
    ours, theirs = np.array(list(runs.values())), np.array(list(baseline.values()))
    squared = np.array([ours.var(ddof=1) / len(ours), theirs.var(ddof=1) / len(theirs)])
    # Welch 1947, Satterthwaite 1946.
    parts = (squared**2 / (np.array(counts) - 1)).sum()
    df = squared.sum() ** 2 / parts if parts else min(counts) - 1
    value = float(ours.mean() - theirs.mean())
    return Interval(value, float(math.sqrt(squared.sum())), df, counts)


def power(difference: float, seeds: Interval, runs: int, image_error: float = 0.0) -> float:
    """Probability that ``runs`` runs each find a true ``difference``.

    Args:
        difference: the true difference, in the unit of the metric.
        seeds: a :func:`seed_difference`, for the scatter and ``luck`` of the runs and the ``images``.
        runs: number of runs each, at least 2.
        image_error: standard error over the test images, which no number of runs makes smaller.
    """
    # Of the difference of one run each; for Welch exact if both have equally many runs.
    fewer = math.sqrt(_effective(seeds.runs) / runs)
    error = max(seeds.error, seeds.luck) * fewer
    whole = math.hypot(error, image_error)
    if whole == 0:
        return float(difference != 0)
    # The test goes by the scatter that it finds: the mean over what that may be.
    df = (1 if seeds.paired else 2) * (runs - 1)
    found = np.sqrt(stats.chi2.ppf((np.arange(_QUANTILES) + 0.5) / _QUANTILES, df) / df) * error
    reach = _reach(seeds.level, df, seeds.images, found, image_error, seeds.luck * fewer)
    size = abs(difference)
    return float((stats.norm.sf((reach - size) / whole) + stats.norm.cdf((-reach - size) / whole)).mean())


def runs_needed(difference: float, seeds: Interval, image_error: float = 0.0) -> int | None:
    """The least number of runs each that find a true ``difference`` with probability :data:`POWER`.

    Args:
        difference: the true difference, in the unit of the metric.
        seeds: a :func:`seed_difference`, for the scatter of the runs.
        image_error: standard error over the test images.

    Returns:
        At least 2; ``None`` if 100,000 runs are too few: there is no difference, or not on so few images.
    """
    if difference == 0 or power(difference, seeds, _MOST_RUNS, image_error) < POWER:
        return None
    low, high = 1, 2
    while power(difference, seeds, high, image_error) < POWER:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        enough = power(difference, seeds, middle, image_error) >= POWER
        low, high = (low, middle) if enough else (middle, high)
    return high


def _effective(runs: tuple[int, int]) -> float:
    return 2 / (1 / runs[0] + 1 / runs[1])


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p-values for looking at all of them (Holm 1979): compare each with the level as it is.

    Args:
        p_values: one a class.

    Returns:
        The adjusted ones, in the same order; at least as large as before, at most 1.
    """
    p_values = np.asarray(p_values, dtype=float)
    order = np.argsort(p_values, kind='stable')
    factors = np.arange(len(p_values), 0, -1)
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_values[order] * factors))
    result = np.empty_like(adjusted)
    result[order] = adjusted
    return result.tolist()


@dataclass(frozen=True)
class Verdict:
    """Which of two backbones is better: ``'better'``, ``'worse'``, ``'not resolved'`` or ``'unknown'``."""

    kind: str
    text: str


def verdict(
    name: str,
    metric: str,
    interval: Interval | None,
    seedless: bool = False,
    pretrainings: tuple[bool, bool] = (False, False),
) -> Verdict:
    """Say in words whether a difference to the baseline is real.

    Args:
        name: the backbone.
        metric: what to call the metric; it is in fractions, written as percent.
        interval: the difference over seeds, over images or over both; ``None`` without either.
        seedless: whether every run with another seed gives the same, on both sides.
        pretrainings: whether runs of the backbone, and of the baseline, have a pretraining of their own each.
    """
    if interval is None:
        same = 'the same in every run, and nothing known of other test images'
        why = same if seedless else 'how much runs and test images scatter is not known'
        return Verdict('unknown', f'{name} unknown: {metric}, {why}')
    resolved = interval.low > 0 or interval.high < 0
    kind = ('better' if interval.value > 0 else 'worse') if resolved else 'not resolved'
    points = [100 * part for part in (interval.value, interval.low, interval.high)]
    # As many digits as show on which side of 0 each lies; less than half a thousandth is none.
    digits = next((few for few in (1, 2) if all(round(one, few) or abs(one) < 5e-4 for one in points)), 3)
    value, low, high = f'{points[0]:+.{digits}f}', *(f'{one:.{digits}f}' for one in points[1:])
    text = f'{name} {kind}: {value} {metric}, {interval.level:.0%} CI [{low}, {high}]'
    if seedless:
        return Verdict(kind, f'{text} over test images only; no chance from run to run')
    if min(interval.runs) < 2:
        return Verdict(
            kind, f'{text} over test images only; a single run: how much runs scatter is not known'
        )
    words = ['pretrainings' if one else 'runs' for one in pretrainings]
    ours, theirs = interval.runs
    if words[0] == words[1]:
        text += f', {ours}+{theirs} {words[0]}'
    else:
        text += f', {ours} {words[0]} and {theirs} {words[1]}'
    if not resolved:
        needed = runs_needed(interval.value, interval, interval.image_error)
        if needed is None:
            text += '; so small a difference cannot be resolved on these test images, by any number of runs'
        else:
            of_each = f'{words[0]} each' if words[0] == words[1] else f'{words[0]} and as many {words[1]}'
            text += f'; about {needed} {of_each} would resolve a true {value}'
            few = runs_needed(interval.value, replace(interval, luck=0.0))
            if few is not None and needed > 2 * few:
                text += f', with many more test images about {few}'
    return Verdict(kind, text)
