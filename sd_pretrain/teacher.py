"""The frozen teacher of a mini-generation: a past state of the student itself (paper, Section 3.2)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn


class FrozenTeacher:
    """A copy of the student that only looks: evaluation mode, no gradient.

    It is deliberately no ``nn.Module``. Hung on the student's model as a plain attribute it stays out of that
    model's ``parameters()``, ``state_dict()``, optimizer and DDP, and ``model.train()`` cannot wake its batch
    normalisation.

    Args:
        network: the student's network; it is copied, with its device and memory format, and left as it is.
        state_dict: weights for the copy, instead of the network's present ones.
    """

    def __init__(self, network: nn.Module, state_dict: Mapping[str, Tensor] | None = None):
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if state_dict is not None:
            self.network.load_state_dict(state_dict, strict=True)

    @torch.no_grad()
    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)`` of normalised images ``(N, 3, H, W)``, in the autocast mode of the caller."""
        return self.network(inputs)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, as CPU tensors of their own."""
        return {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow ``model.to(...)``: ``function`` is what ``nn.Module._apply`` hands on."""
        self.network._apply(function)
