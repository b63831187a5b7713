"""Images in ILSVRC2012 folders: ``ROOT/{train,val}/<wnid>/*.JPEG``."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms import v2

from sd_pretrain.chance import EpochSeeded
from sd_pretrain.cli import InputError

EXTENSIONS = ('.jpeg', '.jpg', '.png')
FULL_SIZE = {'classes': 1000, 'train': 1_281_167, 'val': 50_000}
WHERE_TO_GET = (
    'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar come from image-net.org (registration needed); '
    'unpack the class archives into train/<wnid>/ and move the validation images into val/<wnid>/'
)


def scan_split(root: str | Path, split: str) -> tuple[list[str], np.ndarray, np.ndarray]:
    """List the images of one split.

    Args:
        root: folder with ``train`` and ``val``.
        split: ``'train'`` or ``'val'``.

    Returns:
        Class names in sorted order, paths relative to the split's folder (bytes), and each one's class index.

    Raises:
        InputError: a missing folder, no class folders, or a class folder without an image.
    """
    root = Path(root)
    folder = root / split
    if not root.is_dir():
        raise InputError(f'no data root {root}: give the folder that holds ILSVRC2012 with --data-root')
    if not folder.is_dir():
        raise InputError(f"{root} has no folder '{split}'; expected {split}/<wnid>/*.JPEG; {WHERE_TO_GET}")
    classes = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    if not classes:
        raise InputError(f'{folder} has no class folders; expected {split}/<wnid>/*.JPEG; {WHERE_TO_GET}')
    names: list[bytes] = []
    counts: list[int] = []
    for name in classes:
        found = sorted(
            entry.name for entry in os.scandir(folder / name) if entry.name.lower().endswith(EXTENSIONS)
        )
        if not found:
            raise InputError(
                f'class folder {folder / name} has no images ({", ".join(EXTENSIONS)}); fill or remove it'
            )
        names += [os.fsencode(f'{name}/{file}') for file in found]
        counts.append(len(found))
    # Arrays instead of lists: worker processes share them without copying pages as reference counts change.
    return classes, np.array(names), np.repeat(np.arange(len(classes)), counts)


def check_imagenet(root: str | Path, full_size: bool = False) -> dict[str, int]:
    """Check that ``root`` holds classification data this project can train on.

    Args:
        root: folder with ``train`` and ``val``.
        full_size: require the complete ILSVRC2012: 1,000 classes, 1,281,167 and 50,000 images.

    Returns:
        ``{'classes', 'train', 'val'}``: the counts.

    Raises:
        InputError: something is missing or does not fit.
    """
    train_classes, train, _ = scan_split(root, 'train')
    val_classes, val, _ = scan_split(root, 'val')
    for here, there, split, other in (
        (train_classes, val_classes, 'val', 'train'),
        (val_classes, train_classes, 'train', 'val'),
    ):
        missing = sorted(set(here) - set(there))
        if missing:
            some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
            raise InputError(
                f'{Path(root) / split} lacks {len(missing)} class folders that {other} has: {some}; '
                'train and val must have the same classes'
            )
    counts = {'classes': len(train_classes), 'train': len(train), 'val': len(val)}
    if full_size and counts != FULL_SIZE:
        wrong = [
            f'{key}: {counts[key]:,} of {FULL_SIZE[key]:,}'
            for key in FULL_SIZE
            if counts[key] != FULL_SIZE[key]
        ]
        raise InputError(f'{root} is not the full ILSVRC2012 ({"; ".join(wrong)}); {WHERE_TO_GET}')
    return counts


def read_image(path: str | Path) -> Tensor:
    """Decode an image file to uint8 ``(3, H, W)`` RGB.

    Raises:
        InputError: the file is not an image, or damaged.
    """
    try:
        return decode_image(str(path), ImageReadMode.RGB)
    except (RuntimeError, OSError):
        pass
    # PIL is more forgiving about exotic files (ILSVRC2012 has CMYK JPEGs and a PNG named JPEG).
    try:
        with Image.open(path) as image:
            return torch.from_numpy(np.array(image.convert('RGB'))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f'cannot read image {path}: {error}; replace or remove it') from None


@DATASETS.register_module()
class ImageNetFolder(EpochSeeded):
    """Images and labels of one split, as uint8 ``(3, size, size)``.

    Training crops at random in place, scale and aspect ratio and mirrors; rotation and pixel jitter, the rest
    of the paper's augmentation (Section 4.2.1), happen on the device in
    :class:`sd_pretrain.classifier.ImageBatchPreprocessor`. Testing takes the centre crop.

    Args:
        data_root: folder with ``train`` and ``val``.
        split: ``'train'`` or ``'val'``.
        size: side of the images, in pixels.
        resize: short side before the centre crop, when testing.
        augment: random crop and mirror; default: for ``'train'``.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.
    """

    def __init__(
        self,
        data_root: str,
        split: str = 'train',
        size: int = 224,
        resize: int = 256,
        augment: bool | None = None,
        scale: tuple[float, float] = (0.08, 1.0),
        ratio: tuple[float, float] = (3 / 4, 4 / 3),
    ):
        classes, self.names, self.labels = scan_split(data_root, split)
        self.folder = Path(data_root) / split
        self.metainfo = {'classes': tuple(classes)}
        if augment if augment is not None else split == 'train':
            crop = v2.RandomResizedCrop(size, scale=tuple(scale), ratio=tuple(ratio), antialias=True)
            self.transform = v2.Compose([crop, v2.RandomHorizontalFlip()])
        else:
            self.transform = v2.Compose([v2.Resize(resize, antialias=True), v2.CenterCrop(size)])

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> dict:
        image = read_image(self.folder / os.fsdecode(self.names[index]))
        return {'inputs': self.transform(image), 'labels': int(self.labels[index])}
