"""A function of one tensor as a CUDA graph: all its launches in one."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


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
