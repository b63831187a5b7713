"""From the loader to the device: batches in the layout of the network, copied one batch ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.registry import FUNCTIONS, HOOKS
from mmengine.runner import EpochBasedTrainLoop, Runner
from torch import Tensor
from torch.utils.data import default_collate


@FUNCTIONS.register_module()
def collate_channels_last(samples: list[dict]) -> dict:
    """Stack samples with the three colours of a pixel side by side, as channels_last networks read them.

    Args:
        samples: each has ``inputs``, an image ``(3, H, W)``, beside other values.

    Returns:
        Their batch; ``inputs`` is ``(N, 3, H, W)`` as ever, but dense in the order N, H, W, 3.
    """
    pixels = [{**sample, 'inputs': sample['inputs'].permute(1, 2, 0)} for sample in samples]
    batch = default_collate(pixels)
    batch['inputs'] = batch['inputs'].permute(0, 3, 1, 2)
    return batch


def map_tensors(function: Callable[[Tensor], Any], batch: Any) -> Any:
    """Apply ``function`` to all tensors in dicts, plain lists and tuples; all else stays as it is."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, dict):
        return {key: map_tensors(function, value) for key, value in batch.items()}
    if type(batch) in (list, tuple):
        return type(batch)([map_tensors(function, value) for value in batch])
    return batch


def one_ahead(
    batches: Iterable[Any], start: Callable[[Any], Any], finish: Callable[[Any], Any]
) -> Iterator[Any]:
    """``finish(start(batch))`` of each batch, where the next one is started before one is handed out."""
    waiting: list[Any] = []
    for batch in batches:
        waiting.append(start(batch))
        if len(waiting) == 2:
            yield finish(waiting.pop(0))
    yield from map(finish, waiting)


class PrefetchingLoader:
    """A ``DataLoader`` whose batches are copied to a CUDA device while their predecessors are trained on.

    The copies run on a stream of their own, and the host waits for none of them if the loader pins its
    memory. Tensors that are on the device already stay where they are. Everything else is the loader's.

    Args:
        loader: the loader.
        device: a CUDA device.
    """

    def __init__(self, loader: Iterable[Any], device: torch.device):
        self.loader = loader
        self.device = device
        self._stream: torch.cuda.Stream | None = None

    def __len__(self) -> int:
        return len(self.loader)

    def __getattr__(self, name: str) -> Any:
        # Without this, unpickling and copying would look for the loader in the loader.
        if name == 'loader':
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __iter__(self) -> Iterator[Any]:
        # One for all epochs: freed memory is kept for the stream that it was taken on.
        if self._stream is None:
            self._stream = torch.cuda.Stream(self.device)
        stream = self._stream

        def start(batch: Any) -> tuple[Any, torch.cuda.Event]:
            with torch.cuda.stream(stream):
                moved = map_tensors(lambda one: one.to(self.device, non_blocking=True), batch)
                return moved, stream.record_event()

        def finish(started: tuple[Any, torch.cuda.Event]) -> Any:
            batch, copied = started
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            # Else the memory could be given to the batch after next while this one is still read.
            map_tensors(lambda one: one.record_stream(current), batch)
            return batch

        return one_ahead(self.loader, start, finish)


@HOOKS.register_module()
class PrefetchHook(Hook):
    """Have the batches of an epoch based training on a CUDA device copied one ahead; elsewhere do nothing."""

    def before_train(self, runner: Runner) -> None:
        """Put a :class:`PrefetchingLoader` in the place of the loader."""
        loop, device = runner.train_loop, next(runner.model.parameters()).device
        wrapped = isinstance(loop.dataloader, PrefetchingLoader)
        if device.type == 'cuda' and isinstance(loop, EpochBasedTrainLoop) and not wrapped:
            loop.dataloader = PrefetchingLoader(loop.dataloader, device)
