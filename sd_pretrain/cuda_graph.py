"""CUDA graphs: hundreds of launches in one, of a function of one tensor or of a training step.

A ResNet's forward pass is some hundred kernels. At small batches the time to launch them one by one is what
it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn

from sd_pretrain.optim import like

Outputs = TypeVar('Outputs')


def record(function: Callable[[], Outputs], device: torch.device) -> tuple[Callable[[], None], Outputs]:
    """Record what ``function`` launches.

    Args:
        function: reads nothing back from the device, and works on memory that stays; it is called four times.
        device: a CUDA device.

    Returns:
        A function that launches all of it again, and what ``function`` returned: tensors whose content is
        that of the latest launch.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    main, stream = torch.cuda.current_stream(device), torch.cuda.Stream(device)
    stream.wait_stream(main)
    try:
        # Libraries choose their algorithms and take their workspaces before anything is recorded.
        with torch.cuda.stream(stream):
            for _ in range(2):
                function()
            # A recording that fails leaves the allocator as if it went on: what would fail is found before.
            with _never_waiting():
                function()
    finally:
        main.wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        # Threads of the process group and of loaders may call CUDA meanwhile.
        with torch.cuda.graph(graph, capture_error_mode='thread_local'):
            outputs = function()
    finally:
        torch.cuda.set_stream(main)  # PyTorch does not where a recording fails
    return graph.replay, outputs


@contextmanager
def _never_waiting() -> Iterator[None]:
    """Refuse what lets the host wait for the device, as reading a value does, with a ``RuntimeError``."""
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode('error')
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


class CudaGraph:
    """``function`` recorded for inputs of one shape; the host then launches it as a whole.

    Args:
        function: from one CUDA tensor to one, as :func:`record` needs it.
        example: an input: shape, type, device and memory format are those of all later ones.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor):
        self.inputs = example.clone(memory_format=torch.preserve_format)
        self._replay, self.outputs = record(lambda: function(self.inputs), example.device)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Run it on inputs of the recorded shape, of any floating type; a new tensor."""
        self.inputs.copy_(inputs)
        self._replay()
        return self.outputs.clone()


class RecordedStep:
    """Forward pass, loss and backward pass of a training step as one CUDA graph; the optimizer is not in it.

    Recording leaves no trace: buffers, such as the statistics of batch normalisation, are put back.

    Args:
        network: what is trained, on a CUDA device; its buffers are those that ``function`` changes.
        function: from a batch to the loss and to what is to be known of it, as :func:`record` needs it.
        batch: tensors by name: shapes and types are those of all later ones.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    def __init__(
        self,
        network: nn.Module,
        function: Callable[[Mapping[str, Tensor]], tuple[Tensor, dict[str, Tensor]]],
        batch: Mapping[str, Tensor],
    ):
        self._function = function
        self._batch = {key: one.clone(memory_format=torch.preserve_format) for key, one in batch.items()}
        self._weights = [one for one in network.parameters() if one.requires_grad]
        device = self._weights[0].device
        before = [one.clone() for one in network.buffers()]
        caching = torch.is_autocast_cache_enabled()
        # A weight that was cast before, and kept for the rest of the step, would be read in all later ones.
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.random.fork_rng([device], device_type=device.type):
                self._replay, (self._grads, self._values) = record(self._run, device)
        finally:
            torch.set_autocast_cache_enabled(caching)
            for buffer, value in zip(network.buffers(), before, strict=True):
                buffer.copy_(value)

    def fits(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether a batch is of the recorded form."""
        return _form(batch) == _form(self._batch)

    def __call__(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Give every weight its gradient, in memory that the next call writes anew.

        Returns:
            The second value of ``function``, as new tensors without gradient.
        """
        for key, one in batch.items():
            self._batch[key].copy_(one)
        self._replay()
        for weight, grad in zip(self._weights, self._grads, strict=True):
            weight.grad = grad
        return {key: value.clone() for key, value in self._values.items()}

    def _run(self) -> tuple[list[Tensor | None], dict[str, Tensor]]:
        loss, values = self._function(self._batch)
        # The backward pass has the types of the forward pass, and asks autocast for none.
        with torch.autocast(loss.device.type, enabled=False):
            grads = torch.autograd.grad(loss, self._weights, allow_unused=True)
        pairs = zip(self._weights, grads, strict=True)
        laid_out = [None if grad is None else like(weight, grad) for weight, grad in pairs]
        return laid_out, {key: value.detach() for key, value in values.items()}


def _form(batch: Mapping[str, Tensor]) -> dict[str, tuple]:
    return {key: (one.shape, one.dtype) for key, one in batch.items()}
