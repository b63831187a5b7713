"""From results to evidence: for each backbone and metric a difference, its interval and a verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from transfer.bootstrap import (
    RESAMPLES,
    draw,
    image_errors,
    resampled_ap,
    resampled_iou,
)
from transfer.predictions import load_predictions
from transfer.ranking import resampled_scores
from transfer.statistics import LEVEL, Interval, Verdict, holm, seed_difference, verdict
from transfer.table import Row, rows
from transfer.tasks import TASKS, all_metrics, detailed

# By task, from predictions and resamples of the test images: the values of all classes in each, whose mean is
# the metric.
_RESAMPLED: dict[str, Callable[..., np.ndarray]] = {
    'det': resampled_ap,
    'seg': resampled_iou,
    'probe': resampled_scores,
}
# Metrics are fractions: what float64 leaves of equal ones.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Comparison:
    """A backbone against the baseline in one metric (fractions).

    Args:
        name: the backbone.
        metric: the metric, its name in ``result.json``.
        value: difference of the means.
        interval: over the seeds where both have several, and over the test images where the predictions of
            all runs are stored; ``None`` where neither shows any scatter.
        verdict: in words.
    """

    name: str
    metric: str
    value: float
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
            'runs': None if interval is None else list(interval.runs),
            'over_seeds': interval is not None and interval.error > 0,
            'over_images': interval is not None and max(interval.image_error, interval.luck) > 0,
            'verdict': self.verdict.kind,
            'text': self.verdict.text,
        }


def compare(
    results: Sequence[Mapping[str, Any]], baseline: str | None = None, resamples: int = RESAMPLES
) -> list[Comparison]:
    """Compare every backbone with the baseline, metric by metric.

    Args:
        results: contents of ``result.json`` files, each with its ``work_dir``
            (:func:`transfer.results.collect`).
        baseline: name of the baseline; default: the first result's.
        resamples: number of bootstrap resamples of the test images.

    Raises:
        InputError: see :func:`transfer.table.rows`; or runs of one task were tested on different images.
    """
    base, *others = rows(results, baseline)
    images = _ImageSample(results, resamples)
    return [
        _comparison(row, base, metric, images)
        for metric in all_metrics()
        for row in others
        if row.values.get(metric) and base.values.get(metric)
    ]


@dataclass(frozen=True)
class ClassDifference:
    """A class in which a backbone differs from the baseline (fractions).

    Args:
        name: the class.
        interval: the difference of its AP or IoU over seeds, images or both.
        p: p-value of no difference, adjusted for looking at all classes (Holm).
    """

    name: str
    interval: Interval
    p: float


def compare_classes(
    results: Sequence[Mapping[str, Any]],
    name: str,
    baseline: str,
    task: str,
    resamples: int = RESAMPLES,
) -> list[ClassDifference]:
    """Compare a backbone with the baseline class by class.

    Args:
        results: as for :func:`compare`.
        name: the backbone.
        baseline: the baseline.
        task: a key of :data:`transfer.tasks.TASKS`; the main metric of one of its data sets, the first, is
            looked at, class by class.
        resamples: number of bootstrap resamples of the test images.

    Returns:
        One entry for each class that all runs have a value of, and whose uncertainty is known.

    Raises:
        InputError: runs of the task were tested on different images.
    """
    mine = [run for run in results if run['task'] == task]
    dataset = detailed(task, {run.get('dataset') for run in mine})
    metric = (dataset or TASKS[task]).metrics[0].name
    mine = [run for run in mine if metric in run['metrics']]
    runs = {
        one: sorted((run for run in mine if run['name'] == one), key=lambda run: run['seed'])
        for one in (name, baseline)
    }
    every = [run for part in runs.values() for run in part]
    if not all(runs.values()) or not all(run.get('per_class') for run in every):
        return []
    images = _ImageSample(results, resamples)
    resampled = {one: images.classes(part, task) for one, part in runs.items()}
    found = []
    for label in every[0]['per_class']:
        if any(label not in run['per_class'] for run in every):
            continue
        ours, theirs = ({run['seed']: run['per_class'][label] for run in part} for part in runs.values())
        again = None if None in resampled.values() else [one[label] for one in resampled.values()]
        interval = _interval(ours, theirs, again)
        if interval is not None:
            found.append((label, interval))
    adjusted = holm([interval.p for _, interval in found])
    return [ClassDifference(*pair, p) for pair, p in zip(found, adjusted, strict=True)]


@dataclass(frozen=True)
class _Resampled:
    """A metric in every resample of the test images, run by run; ``images`` of them have what it is about."""

    values: list[np.ndarray]
    images: int


def _filled(values: np.ndarray) -> np.ndarray:
    """Resamples that have lost all images with a class say nothing on it, and so what the others say."""
    return np.where(np.isnan(values), np.nanmean(values, axis=0), values)


def _interval(
    ours: Mapping[int, float], theirs: Mapping[int, float], resampled: Sequence[_Resampled] | None
) -> Interval | None:
    """The interval of a difference over what is known: seeds, images (``resampled`` of both) or both."""
    seeds = seed_difference(ours, theirs)
    scatter = seeds is not None and seeds.error > _ROUNDING
    if resampled is None:
        return seeds if scatter else None  # equal runs are no evidence that other images would say the same
    images = min(one.images for one in resampled)
    if images < 2:
        return None
    paired = seeds is not None and seeds.paired
    error, luck = image_errors(*(one.values for one in resampled), paired, images)
    value = float(np.mean(list(ours.values())) - np.mean(list(theirs.values())))
    if value and not scatter and max(error, luck) < _ROUNDING:
        return None  # the same in every resample
    interval = seeds or Interval(value, 0.0, np.inf, (len(ours), len(theirs)))
    return replace(interval, image_error=error, luck=luck, images=images)


def _comparison(row: Row, base: Row, metric: str, images: _ImageSample) -> Comparison:
    resampled = [images.metric(one.name, metric) for one in (row, base)]
    interval = _interval(row.values[metric], base.values[metric], None if None in resampled else resampled)
    said = verdict(
        row.name,
        all_metrics()[metric].title,
        interval,
        images.seedless((row, base), metric),
        (row.pretrainings, base.pretrainings),
    )
    value = row.minus(base, metric).value
    return Comparison(row.name, metric, value, interval, said)


class _ImageSample:
    """The metrics of all runs in the same resamples of the test images."""

    def __init__(self, results: Sequence[Mapping[str, Any]], resamples: int):
        self.results = results
        self.resamples = resamples
        self._counts: dict[int, np.ndarray] = {}
        self._images: dict[tuple[str, str | None], tuple[str, tuple[str, ...]]] = {}
        self._values: dict[tuple[str, str], _Resampled | None] = {}

    def metric(self, name: str, metric: str) -> _Resampled | None:
        """A metric of a backbone's runs, by seed, in every resample; ``None`` if a run has not stored it."""
        if (name, metric) not in self._values:
            runs = sorted(self._runs(name, metric), key=lambda one: one['seed'])
            task, how = runs[0]['task'], all_metrics()[metric].how
            stored = self._load(runs, task)
            self._values[name, metric] = stored and _Resampled(
                [_filled(np.nanmean(_RESAMPLED[task](*one, *how), axis=1)) for one in stored],
                stored[0][1].shape[1],
            )
        return self._values[name, metric]

    def seedless(self, both: Sequence[Row], metric: str) -> bool:
        """Whether other seeds change nothing, as the runs say of themselves or show."""
        if any(one.pretrainings for one in both):
            return False
        if all(metric in run.get('seedless', ()) for one in both for run in self._runs(one.name, metric)):
            return True
        return all(one.sd(metric) == 0 for one in both)

    def _runs(self, name: str, metric: str) -> list[Mapping[str, Any]]:
        return [one for one in self.results if one['name'] == name and metric in one['metrics']]

    def classes(self, runs: Sequence[Mapping[str, Any]], task: str) -> dict[str, _Resampled] | None:
        """By class the AP or IoU of runs in every resample; ``None`` if one has stored no predictions."""
        stored = self._load(runs, task)
        if stored is None:
            return None
        by_class: dict[str, list[Sequence[Any]]] = {}
        for run, (found, counts) in zip(runs, stored, strict=True):
            values = _RESAMPLED[task](found, counts, *TASKS[task].metrics[0].how)
            there = ~np.isnan(values).all(0)
            values = _filled(values[:, there])
            columns = zip(run['per_class'], values.T, found.shown.sum(0)[there], strict=True)
            for label, *one in columns:
                by_class.setdefault(label, []).append(one)
        return {
            label: _Resampled([values for values, _ in some], min(images for _, images in some))
            for label, some in by_class.items()
        }

    def _load(self, runs: Sequence[Mapping[str, Any]], task: str) -> list[tuple[Any, np.ndarray]] | None:
        found = []
        for run in runs:
            stored = load_predictions(run['work_dir'], task) if run.get('work_dir') else None
            if stored is None:
                return None
            where, first = self._images.setdefault((task, run.get('dataset')), (run['work_dir'], stored[1]))
            if first != stored[1]:
                raise InputError(
                    f'{where} and {run["work_dir"]} were tested on different images ({len(first)} and '
                    f'{len(stored[1])}): their results cannot be compared; run one of them again'
                )
            found.append((stored[0], self._draw(len(first))))
        return found

    def _draw(self, images: int) -> np.ndarray:
        if images not in self._counts:
            self._counts[images] = draw(images, self.resamples)
        return self._counts[images]
