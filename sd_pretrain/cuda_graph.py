"""CUDA graphs: hundreds of launches in one, of a function of one tensor or of a network in training."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class CudaGraph:
    """``function`` recorded for inputs of one shape; the host then launches it as a whole.

    A ResNet's forward pass is some hundred kernels. At small batches the time to launch them one by one is
    what it costs.

    Args:
        function: from one CUDA tensor to one, without reading anything back, on memory that stays.
        example: an input: shape, type, device and memory format are those of all later ones.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    def __init__(self, function: Callable[[Tensor], Tensor], example: Tensor):
        self.inputs = example.clone(memory_format=torch.preserve_format)
        stream = torch.cuda.Stream(example.device)
        stream.wait_stream(torch.cuda.current_stream(example.device))
        # Libraries choose their algorithms and take their workspaces before anything is recorded.
        with torch.cuda.stream(stream):
            for _ in range(3):
                function(self.inputs)
        torch.cuda.current_stream(example.device).wait_stream(stream)
        self.graph = torch.cuda.CUDAGraph()
        # Threads of the process group and of loaders may call CUDA meanwhile.
        with torch.cuda.graph(self.graph, capture_error_mode='thread_local'):
            self.outputs = function(self.inputs)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Run it on inputs of the recorded shape, of any floating type; a new tensor."""
        self.inputs.copy_(inputs)
        self.graph.replay()
        return self.outputs.clone()


class GraphedTraining:
    """A network in training, its forward and its backward pass a CUDA graph each.

    A small network's step takes the time that its launches take, one by one. What is recorded are the
    network's own operations (:func:`torch.cuda.make_graphed_callables`): its weights, their gradients, the
    statistics of batch normalisation and what the optimizer does are as without.

    Nothing else may call CUDA while it is recorded: no loader's thread that pins memory, no other process of
    a group.

    Args:
        network: in training mode, on a CUDA device, under the autocast mode that later calls have.
        example: images ``(N, 3, H, W)``: shape, type, device and memory format are those of all later ones.

    Raises:
        RuntimeError: it cannot be recorded.
    """

    def __init__(self, network: nn.Module, example: Tensor):
        self.shape = example.shape
        before = [buffer.clone() for buffer in network.buffers()]
        caching = torch.is_autocast_cache_enabled()
        # Casts that autocast keeps for the rest of the step would be none of the graph's.
        torch.set_autocast_cache_enabled(False)
        try:
            with torch.random.fork_rng([example.device], device_type='cuda'):
                # Around the network: the function replaces the ``forward`` of what it is given.
                self._run = torch.cuda.make_graphed_callables(
                    _Forward(network), (example.clone(memory_format=torch.preserve_format),)
                )
        finally:
            torch.set_autocast_cache_enabled(caching)
            # It was run on the example some times.
            with torch.no_grad():
                for buffer, value in zip(network.buffers(), before, strict=True):
                    buffer.copy_(value)

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits of images of the recorded shape; they hold until the next call."""
        return self._run(inputs)


class _Forward(nn.Module):
    """Calls the network, whatever that has in the place of its ``forward``."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        return self.network(inputs)
