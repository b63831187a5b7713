"""How sure a difference between two backbones is: intervals, verdicts, and the runs a verdict would take.

Runs with several seeds give a t interval, paired where both backbones were run with the same seeds and
Welch's where not. The test images are a sample too: :mod:`transfer.bootstrap` gives their part of the
uncertainty, and :func:`combined` puts both together. All distributions are SciPy's.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import stats

LEVEL = 0.95
POWER = 0.8
# Beyond this many runs the answer is "do not try".
_MOST_RUNS = 100_000


@dataclass(frozen=True)
class Interval:
    """An estimate with its confidence interval, in the unit of the metric.

    Args:
        value: the estimate.
        error: its standard error.
        df: degrees of freedom of the t distribution; ``inf`` for a normal one.
        runs: number of runs of the backbone and of the baseline.
        paired: whether the runs were compared seed by seed.
        level: confidence level.
    """

    value: float
    error: float
    df: float
    runs: tuple[int, int]
    paired: bool = False
    level: float = LEVEL

    @property
    def reach(self) -> float:
        """Half of the interval's width."""
        return float(stats.t.ppf((1 + self.level) / 2, self.df)) * self.error

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
        """Two-sided p-value of no difference."""
        if self.error == 0:
            return 1.0 if self.value == 0 else 0.0
        return float(2 * stats.t.sf(abs(self.value) / self.error, self.df))


def seed_difference(
    runs: Mapping[int, float], baseline: Mapping[int, float], level: float = LEVEL
) -> Interval | None:
    """Difference of two means over seeds, ``None`` unless both sides have two runs.

    With the same seeds on both sides the differences seed by seed are used (paired t), otherwise Welch's
    standard error and degrees of freedom.

    Args:
        runs: seed to metric.
        baseline: seed to metric of the baseline.
        level: confidence level.
    """
    counts = (len(runs), len(baseline))
    if min(counts) < 2:
        return None
    if runs.keys() == baseline.keys():
        change = np.array([runs[seed] - baseline[seed] for seed in runs])
        error = float(change.std(ddof=1) / math.sqrt(len(change)))
        return Interval(float(change.mean()), error, len(change) - 1, counts, True, level)
    ours, theirs = np.array(list(runs.values())), np.array(list(baseline.values()))
    squared = np.array([ours.var(ddof=1) / len(ours), theirs.var(ddof=1) / len(theirs)])
    df = _satterthwaite(squared, np.array(counts) - 1.0)
    value = float(ours.mean() - theirs.mean())
    return Interval(value, float(math.sqrt(squared.sum())), df, counts, False, level)


def combined(seeds: Interval, image_error: float) -> Interval:
    """Add the test images' part of the uncertainty to that of the seeds.

    Runs of one backbone share their test images, so more seeds do not make that part smaller. The two parts
    are taken as independent and their variances added. Resampling the seeds as well instead would give
    intervals that are too short with the three to ten seeds that people run: the spread of n resampled values
    is (n - 1) / n of the variance, and it knows of no t distribution.

    Args:
        seeds: :func:`seed_difference`.
        image_error: standard error over the test images (:func:`transfer.bootstrap.image_error`).
    """
    squared = np.array([seeds.error**2, image_error**2])
    df = _satterthwaite(squared, np.array([seeds.df, math.inf]))
    return replace(seeds, error=float(math.sqrt(squared.sum())), df=df)


def _satterthwaite(squared: np.ndarray, df: np.ndarray) -> float:
    """Degrees of freedom of a sum of squared standard errors (Welch 1947, Satterthwaite 1946)."""
    if not squared.any():
        return float(df.min())
    return float(squared.sum() ** 2 / (squared**2 / df).sum()) if (squared**2 / df).any() else math.inf


def power(difference: float, interval: Interval, runs: int) -> float:
    """Probability that ``runs`` runs each find a true ``difference``, as scattered as those of ``interval``.

    It is that of the t test over seeds: the part of the test images is not in it, because no number of runs
    would remove it.

    Args:
        difference: the true difference, in the unit of the metric.
        interval: a :func:`seed_difference`.
        runs: number of runs each, at least 2.
    """
    # The scatter of one run's difference; for Welch exact if both have equally many runs.
    scatter = interval.error * math.sqrt(_effective(interval.runs))
    df = runs - 1 if interval.paired else 2 * (runs - 1)
    critical = stats.t.ppf((1 + interval.level) / 2, df)
    if scatter == 0:
        return float(difference != 0)
    shift = abs(difference) * math.sqrt(runs) / scatter
    return float(stats.nct.sf(critical, df, shift) + stats.nct.cdf(-critical, df, shift))


def runs_needed(difference: float, interval: Interval, wanted: float = POWER) -> int | None:
    """The least number of runs each that find a true ``difference`` with probability ``wanted``.

    Args:
        difference: the true difference, in the unit of the metric.
        interval: a :func:`seed_difference`, for the scatter of the runs.
        wanted: the power asked for.

    Returns:
        At least 2; ``None`` if more than 100,000 runs would be needed, as for no difference at all.
    """
    if difference == 0 or power(difference, interval, _MOST_RUNS) < wanted:
        return None
    low, high = 1, 2
    while power(difference, interval, high) < wanted:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(difference, interval, middle) >= wanted else (middle, high)
    return max(high, 2)


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


def verdict(name: str, metric: str, seeds: Interval | None, whole: Interval | None) -> Verdict:
    """Say in words whether a difference to the baseline is real.

    Args:
        name: the backbone.
        metric: what to call the metric; its unit is points of 0 to 1, written as percent.
        seeds: difference over seeds, ``None`` with a single run on a side.
        whole: the interval to judge by: seeds and images, or the one there is; ``None`` without any.
    """
    if whole is None:
        return Verdict('unknown', f'{name} unknown: {metric}, one run each and no predictions stored')
    difference = f'{100 * whole.value:+.1f} {metric}'
    bounds = f'{whole.level:.0%} CI [{100 * whole.low:.1f}, {100 * whole.high:.1f}]'
    resolved = whole.low > 0 or whole.high < 0
    kind = ('better' if whole.value > 0 else 'worse') if resolved else 'not resolved'
    lead = f'{name} {kind}'
    if seeds is None:
        caution = 'over test images only; a single run: how much runs scatter is not known'
        return Verdict(kind, f'{lead}: {difference}, {bounds} {caution}')
    text = f'{lead}: {difference}, {bounds}, {whole.runs[0]}+{whole.runs[1]} runs'
    if not resolved:
        needed = runs_needed(whole.value, seeds)
        if needed is None:
            text += '; no number of runs would resolve so small a difference'
        elif needed > min(whole.runs):
            text += f'; about {needed} runs each would resolve a true {100 * whole.value:+.1f}'
        else:
            text += '; more test images would be needed, not more runs'
    return Verdict(kind, text)
