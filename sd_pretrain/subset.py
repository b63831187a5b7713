"""A part of a data set that has all of its classes."""

from __future__ import annotations

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
