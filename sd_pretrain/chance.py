"""Random numbers that depend on where in a run they are drawn, not on what was drawn before."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from whole numbers that are not negative, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class Drawn(int):
    """The index of a sample, which says with which seed the sample is made."""

    seed: int

    @classmethod
    def seeded(cls, index: int, *parts: int) -> Drawn:
        """``index`` with the seed that :func:`derive_seed` makes of ``parts``."""
        drawn = cls(index)
        drawn.seed = derive_seed(*parts)
        return drawn


class EpochSeeded(Dataset):
    """A dataset whose sample is a function of (seed, epoch, index): the same in any worker, of any number.

    It holds for what is drawn from the CPU generators of Python, NumPy and torch, and for samples that a
    ``DataLoader`` asks for; without :meth:`set_epoch` the caller's generators are used.
    """

    _state: torch.Tensor | None = None

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Say which epoch begins; workers that live from one epoch to the next see it as well."""
        if self._state is None:
            self._state = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._state.copy_(torch.tensor([seed, epoch]))

    def __getitems__(self, indices: Sequence[int]) -> list:
        """The samples of a batch."""
        if not all(isinstance(index, Drawn) for index in indices):
            if self._state is None:
                return [self[index] for index in indices]
            seed, epoch = self._state.tolist()
            indices = [Drawn.seeded(index, seed, epoch, int(index)) for index in indices]
        samples = []
        with _generators_as_before():
            for index in indices:
                # torch.manual_seed would seed the devices' generators as well.
                seed_generators(index.seed, torch.default_generator.manual_seed)
                samples.append(self[index])
        return samples


class _Seeded(EpochSeeded):
    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __getitem__(self, index: int) -> Any:
        return self._dataset[index]


def seed_samples(dataset: Any) -> None:
    """Make any dataset, such as one of mmdet or mmseg, do as an :class:`EpochSeeded` one, in place.

    One that makes batches itself is left as it is, and so is a plain list or range, which draws nothing.
    """
    if hasattr(dataset, '__dict__') and not hasattr(dataset, '__getitems__'):
        seeded = _Seeded(dataset)
        dataset.set_epoch, dataset.__getitems__ = seeded.set_epoch, seeded.__getitems__


def seed_draws(loader: DataLoader, seed: int, rank: int) -> None:
    """Have a loader's samples depend on (seed, rank, place) alone, in place: on how many were drawn before.

    That is for runs that count in iterations. Where the sampler is made to skip samples, as mmengine does to
    go on with such a run, the places of those after them stay what they were. Batches that come from no
    sampler are left as they are.
    """
    sampler = getattr(loader.batch_sampler, 'sampler', None)
    if sampler is None:
        return
    seed_samples(loader.dataset)
    kind = type(sampler)

    class _Seeding(kind):
        _place = 0

        def __iter__(self) -> Iterator[Drawn]:
            for index in super().__iter__():
                self._place += 1
                yield Drawn.seeded(index, seed, rank, self._place)

        if hasattr(kind, 'skip'):

            def skip(self, num_samples: int) -> None:
                super().skip(num_samples)
                self._place = num_samples

    # As it is, to whoever holds it or asks for its type.
    sampler.__class__ = _Seeding


def seed_generators(seed: int, seed_torch: Callable[[int], Any] = torch.manual_seed) -> None:
    """Seed the generators of Python, NumPy and torch, by default those of its devices, too."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    seed_torch(seed)


@contextmanager
def _generators_as_before() -> Iterator[None]:
    """Give the CPU generators back as they were."""
    states = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=[]):
        try:
            yield
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
