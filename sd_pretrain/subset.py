"""How much of a data set there is: a part that has all of its classes, or the whole."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from sd_pretrain.cli import InputError


def choose_subset(labels: np.ndarray, count: int, what: str) -> np.ndarray:
    """Indices (ascending) of ``count`` images, the first ones of each class.

    Args:
        labels: class of each image, ``(N,)``.
        count: how many, 1 to N.
        what: what the images are called in the message.

    Raises:
        InputError: ``count`` is out of range.
    """
    if not 1 <= count <= len(labels):
        raise InputError(f'subset={count} of the {len(labels)} {what}')
    return first_of_each_class(labels, count)


def first_of_each_class(labels: np.ndarray, count: int) -> np.ndarray:
    """Indices (ascending) of ``count`` images, spread evenly over the classes."""
    by_class = np.argsort(labels, kind='stable')
    starts = np.searchsorted(labels[by_class], labels[by_class])
    rank = np.empty(len(labels), np.int64)
    rank[by_class] = np.arange(len(labels)) - starts
    return np.sort(np.lexsort((labels, rank))[:count])


def require_counts(found: Mapping[str, int], full: Mapping[str, int], what: str, hint: str) -> None:
    """Check that a data set is complete.

    Raises:
        InputError: says ``what`` is not, which counts differ, and a ``hint``.
    """
    wrong = [f'{key}: {found[key]:,} of {full[key]:,}' for key in full if found[key] != full[key]]
    if wrong:
        raise InputError(f'{what} ({"; ".join(wrong)}); {hint}')
