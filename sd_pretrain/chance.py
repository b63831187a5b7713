"""Random numbers that depend on where in a run they are drawn, not on what was drawn before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch.utils.data import Dataset


def derive_seed(*parts: int) -> int:
    """A seed of 63 bits from whole numbers that are not negative, such as (seed, epoch, rank)."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)


class EpochSeeded(Dataset):
    """A dataset whose sample is a function of (seed, epoch, index): the same in any worker, of any number.

    It holds for torch's CPU generator and for samples that a ``DataLoader`` asks for; without
    :meth:`set_epoch` the caller's generator is used.
    """

    _state: torch.Tensor | None = None

    def set_epoch(self, seed: int, epoch: int) -> None:
        """Say which epoch begins; workers that live from one epoch to the next see it as well."""
        if self._state is None:
            self._state = torch.zeros(2, dtype=torch.int64).share_memory_()
        self._state.copy_(torch.tensor([seed, epoch]))

    def __getitems__(self, indices: Sequence[int]) -> list:
        """The samples of a batch."""
        if self._state is None:
            return [self[index] for index in indices]
        seed, epoch = self._state.tolist()
        samples = []
        with torch.random.fork_rng(devices=[]):
            for index in indices:
                # torch.manual_seed would seed the devices' generators as well.
                torch.default_generator.manual_seed(derive_seed(seed, epoch, int(index)))
                samples.append(self[index])
        return samples
