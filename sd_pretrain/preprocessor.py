"""From batches of uint8 images to the network's input, on the device."""

from __future__ import annotations

import torch
from mmengine.dist import get_rank
from mmengine.model import BaseDataPreprocessor
from mmengine.registry import MODELS
from torch import Tensor

from sd_pretrain.augment import Draws, augment, draw

IMAGENET_MEAN = (123.675, 116.28, 103.53)
IMAGENET_STD = (58.395, 57.12, 57.375)


@MODELS.register_module()
class ImageBatchPreprocessor(BaseDataPreprocessor):
    """Move a uint8 batch to the device, augment it there when training, and normalise it.

    Rotation and pixel jitter cost more than decoding when they are done image by image on the CPU; here they
    are a few batched operations.

    Args:
        mean: per channel, RGB, in grey levels of 0 to 255.
        std: per channel, RGB.
        mirror: probability that left and right are swapped, drawn per image.
        rotation: largest angle in degrees, drawn per image; 0 for none.
        jitter: largest relative change of brightness, contrast and saturation, drawn per image; 0 for none.
        channels_last: lay images out as the network's weights are.
        compile: compile augmentation and normalisation (``torch.compile``).
    """

    def __init__(
        self,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        mirror: float = 0.0,
        rotation: float = 0.0,
        jitter: float = 0.0,
        channels_last: bool = False,
        compile: bool = False,
    ):
        super().__init__(non_blocking=True)
        self.register_buffer('mean', torch.tensor(mean).view(1, 3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(1, 3, 1, 1), persistent=False)
        self.chances = {'mirror': mirror, 'rotation': rotation, 'jitter': jitter}
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self._prepare = torch.compile(self._normalised, dynamic=False) if compile else self._normalised
        self._seed: int | None = None
        self._generator: torch.Generator | None = None

    def forward(self, data: dict, training: bool = False) -> dict:
        """Turn ``inputs`` ``(N, 3, H, W)`` uint8 into normalised float32; others are only moved."""
        data = self.cast_data(data)
        images = data['inputs']
        draws = Draws(None, None, None)
        if training:
            draws = draw(len(images), images.device, **self.chances, generator=self._random(images.device))
        data['inputs'] = self._prepare(images, draws)
        return data

    def _normalised(self, images: Tensor, draws: Draws) -> Tensor:
        images = (augment(images, draws) - self.mean) / self.std
        return images.contiguous(memory_format=self.memory_format)

    def set_seed(self, seed: int) -> None:
        """Begin the augmentation's random numbers anew from ``seed``, which should differ by rank."""
        self._seed, self._generator = seed, None

    def _random(self, device: torch.device) -> torch.Generator:
        # All ranks share the run's seed; without a generator of their own they would all draw the same
        # angles.
        if self._generator is None or self._generator.device != device:
            seed = torch.initial_seed() + 1000 * get_rank() if self._seed is None else self._seed
            self._generator = torch.Generator(device).manual_seed(seed)
        return self._generator
