"""From results to evidence: for each backbone and metric a difference, its interval and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from transfer.bootstrap import RESAMPLES, draw, image_error, resampled_map, resampled_miou
from transfer.predictions import load_predictions
from transfer.statistics import LEVEL, Interval, Verdict, seed_difference, verdict
from transfer.table import METRICS, Row, rows

# The task whose runs have the metric, and its value in every resample of the test images.
_RESAMPLED: dict[str, tuple[str, Callable[[Any, np.ndarray], np.ndarray]]] = {
    'mAP_11point': ('det', partial(resampled_map, mode='11points')),
    'mAP_area': ('det', partial(resampled_map, mode='area')),
    'mIoU': ('seg', resampled_miou),
}


@dataclass(frozen=True)
class Comparison:
    """A backbone against the baseline in one metric (fractions).

    Args:
        name: the backbone.
        metric: the metric, a key of :data:`transfer.table.METRICS`.
        value: difference of the means.
        seeds: its interval over seeds alone, ``None`` with a single run on a side.
        image_error: its standard error over the test images, ``None`` where predictions are not stored.
        interval: the interval of both together, or of the one there is; ``None`` without either.
        verdict: in words.
    """

    name: str
    metric: str
    value: float
    seeds: Interval | None
    image_error: float | None
    interval: Interval | None
    verdict: Verdict

    def as_json(self) -> dict[str, Any]:
        """What ``table5.json`` says of it: ``low`` and ``high`` are ``null`` where they are not known."""
        interval = self.interval
        return {
            'name': self.name,
            'metric': self.metric,
            'difference': self.value,
            'low': None if interval is None else interval.low,
            'high': None if interval is None else interval.high,
            'level': LEVEL,
            'seeds': self.seeds is not None,
            'images': self.image_error is not None,
            'verdict': self.verdict.kind,
            'text': self.verdict.text,
        }


def compare(
    results: Sequence[Mapping[str, Any]], baseline: str | None = None, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Compare every backbone with the baseline, metric by metric.

    Args:
        results: contents of ``result.json`` files, each with its ``work_dir``
            (:func:`transfer.table.collect`).
        baseline: name of the baseline; default: the first result's.
        resamples: number of bootstrap resamples of the test images.

    Raises:
        InputError: see :func:`transfer.table.rows`; or runs of one task were tested on different images.
    """
    base, *others = rows(results, baseline)
    images = _ImageSample(results, resamples)
    return [
        _comparison(row, base, metric, images)
        for metric in METRICS
        for row in others
        if row.values.get(metric) and base.values.get(metric)
    ]


def verdict_lines(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """The verdicts in words, one line each (:meth:`Comparison.as_json`)."""
    return [one['text'] for one in comparisons]


def _comparison(row: Row, base: Row, metric: str, images: _ImageSample) -> Comparison:
    ours, theirs = row.values[metric], base.values[metric]
    value = float(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    seeds = seed_difference(ours, theirs)
    error = images.error(row.name, base.name, metric, seeds is not None and seeds.paired)
    counts = (len(ours), len(theirs))
    interval = seeds
    if error is not None:
        interval = replace(seeds or Interval(value, 0.0, np.inf, counts), image_error=error)
    said = verdict(row.name, METRICS[metric], interval)
    return Comparison(row.name, metric, value, seeds, error, interval, said)


class _ImageSample:
    """The metrics of all runs in the same resamples of the test images."""

    def __init__(self, results: Sequence[Mapping[str, Any]], resamples: int):
        self.results = results
        self.resamples = resamples
        self._counts: dict[int, np.ndarray] = {}
        self._images: dict[str, tuple[str, tuple[str, ...]]] = {}
        self._values: dict[tuple[str, str], list[np.ndarray] | None] = {}

    def error(self, name: str, baseline: str, metric: str, paired: bool) -> float | None:
        """Standard error of the difference, ``None`` unless all runs have their predictions stored."""
        ours, theirs = (self._resampled(one, metric) for one in (name, baseline))
        return None if ours is None or theirs is None else image_error(ours, theirs, paired)

    def _resampled(self, name: str, metric: str) -> list[np.ndarray] | None:
        if (name, metric) not in self._values:
            task, function = _RESAMPLED[metric]
            runs = [one for one in self.results if one['name'] == name and one['task'] == task]
            runs.sort(key=lambda one: one['seed'])
            stored = [self._load(one, task) for one in runs]
            known = all(one is not None for one in stored)
            self._values[name, metric] = (
                [function(found, self._draw(len(images))) for found, images in stored] if known else None
            )
        return self._values[name, metric]

    def _load(self, result: Mapping[str, Any], task: str) -> tuple[Any, tuple[str, ...]] | None:
        stored = load_predictions(result['work_dir'], task) if result.get('work_dir') else None
        if stored is None:
            return None
        where, first = self._images.setdefault(task, (result['work_dir'], stored[1]))
        if first != stored[1]:
            raise InputError(
                f'{where} and {result["work_dir"]} were tested on different images ({len(first)} and '
                f'{len(stored[1])}): their results cannot be compared; run one of them again'
            )
        return stored

    def _draw(self, images: int) -> np.ndarray:
        if images not in self._counts:
            self._counts[images] = draw(images, self.resamples)
        return self._counts[images]
