"""CIFAR-100 resident on the device: batches of random crops and mirror images in a few operations each.

Networks of 0.3 million parameters take milliseconds an iteration, so a loader that handles images one by one
would be what one waits for. Here mmengine's ordinary ``DataLoader`` carries whole batches: the batch sampler
draws order, crops and mirrors of a whole epoch at once and hands out slices of that plan, and the dataset
cuts them out of one uint8 tensor. All randomness is a function of (seed, epoch, rank), so a resumed run sees
what an unbroken one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from mmengine.device import get_device
from mmengine.registry import DATA_SAMPLERS, DATASETS, FUNCTIONS
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import Dataset, Sampler, get_worker_info

from sd_pretrain.cifar_files import read_classes, read_split
from sd_pretrain.cli import InputError
from sd_pretrain.subset import choose_subset


@FUNCTIONS.register_module()
def as_is(batch: dict) -> dict:
    """Collate function for a dataset that gives whole batches."""
    return batch


@DATASETS.register_module()
class Cifar100(Dataset):
    """Images and labels of one split, uint8 on the device; a batch is asked for as a whole.

    Args:
        data_root: the folder ``cifar-100-python``.
        split: ``'train'`` or ``'val'`` (the official test images).
        subset: use this many images only, the first ones of each class; default: all.
        padding: black margin on each of the four sides, in pixels, that crops may reach into.
        device: where the images are kept; default: where mmengine trains.

    Raises:
        InputError: the files do not fit, or ``subset`` is not between 1 and the number of images.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        subset: int | None = None,
        padding: int = 0,
        device: str | None = None,
    ):
        self.metainfo = {'classes': tuple(read_classes(data_root))}
        images, labels = read_split(data_root, split)
        if subset is not None:
            chosen = choose_subset(labels, subset, f'{split} images in {data_root}')
            images, labels = images[chosen], labels[chosen]
        device = device or get_device()
        # Pixels last: a crop is then an index of two dimensions whose entries are three bytes in a row.
        images = torch.from_numpy(images).to(device)
        self.images = F.pad(images, (0, 0, padding, padding, padding, padding)).contiguous()
        self.labels = torch.from_numpy(labels).to(device)
        self.padding = padding

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> dict:
        """One centred image ``(3, 32, 32)`` and its label."""
        batch = self.__getitems__([index])
        return {key: value[0] for key, value in batch.items()}

    def __getitems__(self, plan: Tensor | Sequence[int]) -> dict:
        """Cut out a batch.

        Args:
            plan: ``(N, 4)`` integers: image, top and left of the crop in the padded image, mirror or not; or
                ``N`` image indices for centred crops that are not mirrored.

        Returns:
            ``inputs``, uint8 ``(N, 3, 32, 32)``, and ``labels``, int64 ``(N,)``, on the device.
        """
        if get_worker_info() is not None:
            raise InputError('Cifar100 keeps its images on the device: set num_workers=0')
        plan = torch.as_tensor(plan).to(self.images.device, non_blocking=True)
        if plan.ndim == 1:
            centre = plan.new_tensor([self.padding, self.padding, 0]).expand(len(plan), 3)
            plan = torch.column_stack((plan, centre))
        image, top, left, mirror = plan[:, :, None, None].unbind(1)
        steps = torch.arange(32, device=plan.device)
        columns = torch.where(mirror.bool(), 31 - steps, steps)
        crops = self.images[image, top + steps[:, None], left + columns]
        return {'inputs': crops.permute(0, 3, 1, 2), 'labels': self.labels[plan[:, 0]]}


@DATA_SAMPLERS.register_module()
class CropFlipBatchSampler(Sampler):
    """Batches of images in the sampler's order, each with a random crop and, half of the time, mirrored.

    In distribution this is torchvision's ``RandomCrop(32, padding)``, the padding being the dataset's, and
    ``RandomHorizontalFlip()``: "a subregion with 32x32 pixels is randomly cropped and flipped with a
    probability of 0.5" (Section 4.1.1).

    Args:
        sampler: mmengine's ``DefaultSampler``: order by seed and epoch, its share by rank.
        batch_size: images a batch of this process.
        drop_last: leave out a last batch that is not full.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False):
        self.sampler = sampler
        self.batch_size = batch_size
        self.drop_last = drop_last

    def __len__(self) -> int:
        full, rest = divmod(len(self.sampler), self.batch_size)
        return full + bool(rest and not self.drop_last)

    def __iter__(self) -> Iterator[Tensor]:
        """Slices ``(batch_size, 4)`` of the epoch's plan, for ``Cifar100.__getitems__``."""
        plan = self.plan().to(get_device())
        for number in range(len(self)):
            yield plan[number * self.batch_size : (number + 1) * self.batch_size]

    def plan(self) -> Tensor:
        """The epoch's images of this rank: ``(N, 4)`` of index, top, left, mirror.

        Drawn on the CPU, so that it is the same on every device; it moves there once an epoch.
        """
        order = np.fromiter(self.sampler, np.int64)
        # Not seed + epoch: neighbouring seeds would draw each other's crops, an epoch later.
        source = [self.sampler.seed, self.sampler.epoch, self.sampler.rank]
        random = np.random.default_rng(source)
        offsets = random.integers(0, 2 * self.sampler.dataset.padding + 1, (len(order), 2))
        mirror = random.integers(0, 2, len(order))
        return torch.from_numpy(np.column_stack((order, offsets, mirror)))
