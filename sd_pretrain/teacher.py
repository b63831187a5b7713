"""The frozen teacher of a mini-generation: a past state of the student itself (paper, Section 3.2)."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from mmengine.dist import all_reduce
from mmengine.logging import print_log
from torch import Tensor, nn

from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.cli import InputError
from sd_pretrain.cuda_graph import CudaGraph
from sd_pretrain.fused_network import fused_network

PRECISIONS = ('auto', 'float32', 'float16', 'bfloat16')


class FrozenTeacher:
    """A copy of the student that only looks: evaluation mode, no gradient, as fast as the device allows.

    It is deliberately no ``nn.Module``. Hung on the student's model as a plain attribute it stays out of that
    model's ``parameters()``, ``state_dict()``, optimizer and DDP, and ``model.train()`` cannot wake its batch
    normalisation.

    What runs is :func:`sd_pretrain.fused_network.fused_network` of it, made when the first images come; what
    is stored is the copy itself. A network that cannot be fused runs as it is.

    Args:
        network: the student's network; it is copied, with its device and memory format, and left as it is.
        state_dict: weights for the copy, instead of the network's present ones.
        precision: ``'float32'``, ``'float16'``, ``'bfloat16'``, or ``'auto'``: float16 on a GPU; on a CPU as
            the student trains, in bfloat16 where the first images come under autocast (and the CPU computes
            in it), in float32 otherwise. Float16 rounds eight times as finely as bfloat16, which picks
            another first class for almost one image in a hundred; a network that leaves the range of float16,
            65504, on the first images is run in bfloat16 instead. What is called ``'float32'`` is that on a
            GPU, too: its convolutions do not round to TF32.
        cuda_graph: on a GPU, record the forward pass for the shape of the first batch; batches of other
            shapes run without.
        overlap: on a GPU, run on a stream of its own beside the student's forward pass.

    Raises:
        InputError: a precision that is none of these.
    """

    def __init__(
        self,
        network: nn.Module,
        state_dict: Mapping[str, Tensor] | None = None,
        precision: str = 'auto',
        cuda_graph: bool = True,
        overlap: bool = False,
    ):
        check_teacher_options({'precision': precision, 'cuda_graph': cuda_graph, 'overlap': overlap})
        self.network = copy.deepcopy(network).eval().requires_grad_(False)
        if state_dict is not None:
            self.network.load_state_dict(state_dict, strict=True)
        self.precision = precision
        self.cuda_graph = cuda_graph
        self.overlap = overlap
        self._forward: Callable[[Tensor], Tensor] | None = None
        self._dtype = torch.float32
        self._graph: CudaGraph | None = None
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, inputs: Tensor) -> Tensor:
        """Logits ``(N, C)``, float32, of normalised images ``(N, 3, H, W)``, whatever the autocast mode."""
        device = inputs.device
        autocast = torch.is_autocast_enabled(device.type)
        rounding = no_tf32() if self.precision == 'float32' else nullcontext()
        with torch.autocast(device.type, enabled=False), torch.no_grad(), rounding:
            if self._forward is None:
                self._prepare(inputs, _dtype(self.precision, device, autocast))
            recorded = self._graph is not None and inputs.shape == self._graph.inputs.shape
            # Within a graph that is being recorded it is part of that one.
            if recorded and not torch.cuda.is_current_stream_capturing():
                return self._graph(inputs)
            return self._forward(self._cast(inputs))

    def start(self, inputs: Tensor) -> Callable[[], Tensor]:
        """Begin with the logits of ``inputs``; the function returned gives them, when they are needed.

        What is launched in between runs beside the teacher, if it has a stream of its own (``overlap``).
        """
        if not (self.overlap and inputs.is_cuda):
            logits = self(inputs)
            return lambda: logits
        main = torch.cuda.current_stream(inputs.device)
        if self._stream is None:
            self._stream = torch.cuda.Stream(inputs.device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            logits = self(inputs)
        # Neither may be given to somebody else while the other stream still works on it.
        inputs.record_stream(self._stream)

        def wait() -> Tensor:
            main.wait_stream(self._stream)
            logits.record_stream(main)
            return logits

        return wait

    def state_dict(self) -> dict[str, Tensor]:
        """The weights, as CPU tensors of their own."""
        return {key: value.detach().cpu().clone() for key, value in self.network.state_dict().items()}

    def apply_to_tensors(self, function: Callable[[Tensor], Tensor]) -> None:
        """Follow ``model.to(...)``: ``function`` is what ``nn.Module._apply`` hands on."""
        self.network._apply(function)
        self._forward = self._graph = self._stream = None

    def _cast(self, inputs: Tensor) -> Tensor:
        return inputs.to(self._dtype, memory_format=torch.channels_last)

    def _prepare(self, inputs: Tensor, dtype: torch.dtype) -> None:
        """Make what runs, for the device of ``inputs``."""
        fused = self._fuse(dtype, inputs)
        if dtype == torch.float16 and not _in_range(self._forward(self._cast(inputs))):
            print_log('The teacher leaves the range of float16; it runs in bfloat16.', 'current', level=30)
            fused = self._fuse(torch.bfloat16, inputs)
        if fused and self.cuda_graph and inputs.is_cuda:
            try:
                self._graph = CudaGraph(self._forward, self._cast(inputs))
            except RuntimeError as error:
                print_log(f'The teacher runs without a CUDA graph: {error}', logger='current', level=30)

    def _fuse(self, dtype: torch.dtype, inputs: Tensor) -> bool:
        """Set what runs in ``dtype``; returns whether it is fused."""
        try:
            self._forward, self._dtype = fused_network(self.network, dtype), dtype
            # Whether the types of all its layers agree, a run shows alone.
            self._forward(self._cast(inputs))
        except (ValueError, RuntimeError) as error:
            print_log(f'The teacher runs unfused, and slower: {error}', logger='current', level=30)
            self._forward, self._dtype = self._plain(dtype), torch.float32
            return False
        return True

    def _plain(self, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
        """The network as it is, under autocast where ``dtype`` is not float32."""

        def forward(inputs: Tensor) -> Tensor:
            with torch.autocast(inputs.device.type, dtype, enabled=dtype != torch.float32):
                return self.network(inputs).float()

        return forward


def check_teacher_options(options: Mapping[str, Any] | None) -> dict[str, Any]:
    """The hook's ``teacher_options``: those of :class:`FrozenTeacher` after the weights.

    Raises:
        InputError: an unknown name, or a value that cannot be used.
    """
    options = dict(options or {})
    known = list(inspect.signature(FrozenTeacher).parameters)[2:]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise InputError(f'teacher_options has no {", ".join(unknown)}; it takes {", ".join(known)}')
    if options.get('precision', 'auto') not in PRECISIONS:
        raise InputError(
            f"the teacher's precision is one of {', '.join(PRECISIONS)}; found {options['precision']!r}"
        )
    return options


@contextmanager
def no_tf32() -> Iterator[None]:
    """Let cuDNN multiply float32 numbers as they are; by its default a GPU rounds them to TF32."""
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32
    cudnn.allow_tf32 = False
    try:
        yield
    finally:
        cudnn.allow_tf32 = before


def _in_range(logits: Tensor) -> bool:
    """Whether logits are finite, on all processes: one precision for the teacher of a run."""
    finite = logits.isfinite().all().int()
    all_reduce(finite, op='min')
    return bool(finite)


def _dtype(precision: str, device: torch.device, autocast: bool) -> torch.dtype:
    if precision != 'auto':
        return getattr(torch, precision)
    if device.type == 'cuda':
        # Volta was the first with tensor cores; many cards before it are slower in float16.
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else torch.float32
    return torch.bfloat16 if autocast and cpu_has_bf16() else torch.float32
