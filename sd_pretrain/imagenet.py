"""The images of ILSVRC2012, or of other data in its layouts: checked, decoded, and as a data set."""

from __future__ import annotations

import io
from contextlib import suppress
from functools import partial
from pathlib import Path

import numpy as np
import torch
from mmengine.registry import DATASETS
from PIL import Image
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2 import functional

from sd_pretrain.chance import EpochSeeded
from sd_pretrain.cli import InputError
from sd_pretrain.crops import DRAWS, crop_box, resize
from sd_pretrain.ilsvrc_layouts import WHERE_TO_GET, find_split
from sd_pretrain.jpeg_file import parse_baseline
from sd_pretrain.jpeg_region import decode_region
from sd_pretrain.subset import choose_subset, require_counts

FULL_SIZE = {'classes': 1000, 'train': 1_281_167, 'val': 50_000}


def check_imagenet(root: str | Path, full_size: bool = False) -> dict[str, int]:
    """Check that ``root`` holds classification data this project can train on.

    Args:
        root: the folder of the data, in one of the layouts of :func:`find_split`.
        full_size: require the complete ILSVRC2012: 1,000 classes, 1,281,167 and 50,000 images.

    Returns:
        ``{'classes', 'train', 'val'}``: the counts.

    Raises:
        InputError: something is missing or does not fit.
    """
    train, val = find_split(root, 'train'), find_split(root, 'val')
    for here, there, split, other in (
        (train, val, 'val', 'train'),
        (val, train, 'train', 'val'),
    ):
        missing = sorted(set(here.classes) - set(there.classes))
        if missing:
            some = ', '.join(missing[:3]) + (', ...' if len(missing) > 3 else '')
            raise InputError(
                f'{Path(root) / split} lacks {len(missing)} classes that {other} has: {some}; '
                'train and val must have the same classes'
            )
    counts = {'classes': len(train.classes), 'train': len(train.labels), 'val': len(val.labels)}
    if full_size:
        require_counts(counts, FULL_SIZE, f'{root} is not the full ILSVRC2012', WHERE_TO_GET)
    return counts


def decode(content: bytes) -> Tensor:
    """Decode an image, whatever its file is called, to uint8 ``(3, H, W)`` RGB.

    ILSVRC2012 has two dozen JPEGs in CMYK, a PNG that is named JPEG, and grey images. Transparency is left
    out, and an orientation in the EXIF data is not applied, as in all published results on this data.

    Raises:
        OSError, SyntaxError, ValueError: it is no image, or damaged.
    """
    if not content:
        raise ValueError('the file is empty')
    try:
        image = decode_image(torch.frombuffer(bytearray(content), dtype=torch.uint8), ImageReadMode.RGB)
    except RuntimeError:
        # PIL knows more formats, and says what is wrong with a damaged file.
        with Image.open(io.BytesIO(content)) as opened:
            image = torch.from_numpy(np.array(opened.convert('RGB'))).permute(2, 0, 1)
    if image.ndim == 4:  # an animation: its first picture
        image = image[0]
    if image.dtype == torch.uint16:
        image = (image.int() >> 8).to(torch.uint8)
    return image


def decode_as_pil(content: bytes) -> Image.Image:
    """Decode an image as PIL does it, which published accuracies are measured with.

    Raises:
        OSError, SyntaxError, ValueError: it is no image, or damaged.
    """
    with Image.open(io.BytesIO(content)) as opened:
        if not opened.mode.startswith('I'):
            return opened.convert('RGB')
    # PIL would clip the values of 16 bits instead of scaling them.
    return Image.fromarray(decode(content).permute(1, 2, 0).numpy())


def random_crop(
    content: bytes,
    size: int = 224,
    scale: tuple[float, float] = (0.08, 1.0),
    ratio: tuple[float, float] = (3 / 4, 4 / 3),
) -> Tensor:
    """Decode an image's random resized crop; of a baseline JPEG, little more than the crop.

    Args:
        content: the encoded image.
        size: side of the result.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.

    Returns:
        uint8 ``(3, size, size)``; see :func:`sd_pretrain.crops.resize`.

    Raises:
        OSError, SyntaxError, ValueError: it is no image, or damaged.
    """
    draws = torch.rand(DRAWS, dtype=torch.float64).tolist()
    crop = None
    jpeg = parse_baseline(content)
    if jpeg is not None:
        left, top, width, height = crop_box(draws, jpeg.width, jpeg.height, scale, ratio)
        # The fast decoder does not know unusual sampling factors.
        with suppress(ValueError):
            crop = torch.from_numpy(decode_region(content, jpeg, left, top, width, height)).permute(2, 0, 1)
    if crop is None:
        image = decode(content)
        left, top, width, height = crop_box(draws, image.shape[2], image.shape[1], scale, ratio)
        crop = image[:, top : top + height, left : left + width]
    return resize(crop, size)


def _centre_crop(content: bytes, size: int, resize: int) -> Tensor:
    image = functional.center_crop(functional.resize(decode_as_pil(content), resize), size)
    return functional.pil_to_tensor(image)


@DATASETS.register_module()
class ImageNetFolder(EpochSeeded):
    """Images and labels of one split, as uint8 ``(3, size, size)``.

    Training crops at random in place, scale and aspect ratio; mirror, rotation and pixel jitter, the rest of
    the paper's augmentation (Section 4.2.1), happen on the device in
    :class:`sd_pretrain.preprocessor.ImageBatchPreprocessor`. Testing takes the centre crop, exactly as
    torchvision's transforms of PIL images do.

    Args:
        data_root: the folder of the data, in one of the layouts of :func:`find_split`.
        split: ``'train'`` or ``'val'``.
        size: side of the images, in pixels.
        resize: short side before the centre crop, when testing.
        augment: random crop; default: for ``'train'``.
        scale: range of the crop's share of the image's area.
        ratio: range of the crop's aspect ratio.
        subset: use this many images only, the first ones of each class; default: all.

    Raises:
        InputError: ``subset`` is not between 1 and the number of images; or see :func:`find_split`.
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
        subset: int | None = None,
    ):
        self.samples = find_split(data_root, split)
        self.chosen = None
        if subset is not None:
            self.chosen = choose_subset(self.samples.labels, subset, f'{split} images in {data_root}')
        self.metainfo = {'classes': tuple(self.samples.classes)}
        if augment if augment is not None else split == 'train':
            self.load = partial(random_crop, size=size, scale=tuple(scale), ratio=tuple(ratio))
        else:
            self.load = partial(_centre_crop, size=size, resize=resize)

    def __len__(self) -> int:
        return len(self.samples.labels if self.chosen is None else self.chosen)

    def __getitem__(self, index: int) -> dict:
        index = index if self.chosen is None else int(self.chosen[index])
        try:
            image = self.load(self.samples.read(index))
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            where = self.samples.where(index)
            raise InputError(f'cannot read image {where}: {error}; replace or remove it') from None
        return {'inputs': image, 'labels': int(self.samples.labels[index])}
