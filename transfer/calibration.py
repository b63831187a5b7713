"""Do the intervals and verdicts keep their word? Simulated runs whose true difference is known.

A simulated run has a quality for each test image: the image's own difficulty, which all runs share; what this
backbone makes of this image; the run's luck as a whole; and its luck with this image. The metric is the mean.
The comparison is made by the very functions that compare real runs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from transfer.bootstrap import Overlaps, draw, image_errors, resampled_iou
from transfer.statistics import Interval, power, seed_difference

# Standard deviations, in the unit of the metric: about those of VOC runs, which scatter by 0.5 points.
DIFFICULTY, BACKBONE, RUN, RUN_IMAGE = 0.30, 0.05, 0.005, 0.10


@dataclass(frozen=True)
class Rates:
    """How often, of ``trials`` simulated comparisons.

    Args:
        runs: number of runs of each backbone.
        true: the true difference.
        found: rate of comparisons that say there is a difference.
        covered: rate of 95% intervals that hold the true difference.
        expected: the rate of ``found`` that is due: 5% without a difference, the power estimate with one.
        trials: number of comparisons.
    """

    runs: int
    true: float
    found: float
    covered: float
    expected: float
    trials: int

    def error(self, rate: float) -> float:
        """Standard error of a rate."""
        return math.sqrt(rate * (1 - rate) / self.trials)


def simulate(
    runs: int, true: float, *, trials: int = 1000, images: int = 300, resamples: int = 200, seed: int = 0
) -> Rates:
    """Compare two simulated backbones many times, each time with new images and new runs.

    Args:
        runs: number of runs of each.
        true: the true difference of their metric; at 0 they are the same backbone.
        trials: number of comparisons.
        images: number of test images.
        resamples: bootstrap resamples of each comparison.
        seed: seed of the simulation.
    """
    rng = np.random.default_rng(seed)
    counts = draw(images, resamples, seed)
    # Two different backbones also differ in which images they are good at.
    backbone = BACKBONE if true else 0.0
    found = covered = 0
    for _ in range(trials):
        difficulty = rng.normal(0.5, DIFFICULTY, images)
        values, resampled = [], []
        for better in (0.0, true):
            mine = difficulty + better + rng.normal(0, backbone, images)
            luck = rng.normal(0, RUN, (runs, 1)) + rng.normal(0, RUN_IMAGE, (runs, images))
            quality = mine + luck
            values.append(dict(enumerate(quality.mean(1))))
            resampled.append([_resampled(row, counts) for row in quality])
        seeds = seed_difference(values[1], values[0])
        shared, lucky = image_errors(resampled[1], resampled[0], seeds.paired, images)
        interval = replace(seeds, image_error=shared, luck=lucky, images=images)
        found += not interval.low <= 0 <= interval.high
        covered += interval.low <= true <= interval.high
    luck = RUN_IMAGE * math.sqrt(2 / images / runs)
    scatter = math.hypot(RUN * math.sqrt(2 / runs), luck)
    known = Interval(true, scatter, runs - 1, (runs, runs), paired=True, luck=luck, images=images)
    due = power(true, known, runs, backbone * math.sqrt(2 / images)) if true else 1 - known.level
    return Rates(runs, true, found / trials, covered / trials, due, trials)


def _resampled(quality: np.ndarray, counts: np.ndarray) -> np.ndarray:
    # One class whose union is the same everywhere: its IoU is the mean over the images.
    return resampled_iou(Overlaps(quality[:, None], np.ones((len(quality), 1))), counts)[:, 0]
