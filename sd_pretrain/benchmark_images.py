"""What the benchmark of the data measures with: images, and the pipelines of other projects."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import torch

SIZE = 224
BASELINE = 'torchvision v1 (PIL)'


def choose_images(root: Path, folder: Path, count: int) -> tuple[list[str], list[str], str]:
    """Image files spread over a training split, the same with restart markers, and a word on them."""
    from sd_pretrain.ilsvrc_layouts import find_split
    from sd_pretrain.restart_markers import add_restart_markers

    samples = find_split(root, 'train')
    step = max(len(samples.labels) // count, 1)
    plain, marked = [], []
    for index in range(0, len(samples.labels), step)[:count]:
        content = samples.read(index)
        for kind, paths, data in (
            ('plain', plain, content),
            ('marked', marked, add_restart_markers(content) or content),
        ):
            path = folder / kind / f'{index}.JPEG'
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(data)
            paths.append(str(path))
    before, after = (sum(map(os.path.getsize, paths)) for paths in (plain, marked))
    about = (
        f'{len(plain)} JPEGs of {before / len(plain) / 1e3:.0f} kB ({after / before - 1:+.1%} with markers)'
    )
    return plain, marked, about


def generate_photos(root: Path, count: int = 48) -> Path:
    """Class folders of photo-like JPEGs: 500 x 375, quality 92, a spectrum that falls as that of photos."""
    import numpy as np
    from PIL import Image

    height, width = 375, 500
    rng = np.random.default_rng(0)
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width))
    frequency[0, 0] = np.inf
    for index in range(count):
        noise = rng.standard_normal((3, height, width))
        layers = np.fft.irfft2(np.fft.rfft2(noise) / frequency**1.2, s=(height, width))
        layers /= layers.std(axis=(1, 2), keepdims=True)
        # Brightness varies most, and all the colours with it.
        pixels = 120 + 40 * layers[:1] + 10 * layers
        path = root / 'train' / f'n{index % 4:08d}' / f'{index}.JPEG'
        path.parent.mkdir(parents=True, exist_ok=True)
        image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))
        image.save(path, quality=92, subsampling=0)
    return root


def load_ours(path: str) -> torch.Tensor:
    """A training image, as :class:`sd_pretrain.imagenet.ImageNetFolder` loads it."""
    from sd_pretrain.imagenet import random_crop

    return random_crop(Path(path).read_bytes(), SIZE)


def peers() -> dict[str, Callable[[str], object]]:
    """Functions from a path to a training image, each of the project's own parts."""
    import cv2
    import mmcv
    import numpy as np
    from mmcv.transforms import LoadImageFromFile
    from PIL import Image
    from timm.data import create_transform
    from torchvision import transforms as v1
    from torchvision.io import ImageReadMode, decode_image
    from torchvision.transforms import v2

    cv2.setNumThreads(1)
    first = v1.Compose([v1.RandomResizedCrop(SIZE), v1.PILToTensor()])
    second = v2.RandomResizedCrop(SIZE, antialias=True)
    timms = create_transform(
        SIZE, is_training=True, hflip=0.0, color_jitter=None, interpolation='bilinear', use_prefetcher=True
    )
    reader = LoadImageFromFile()

    def through_pil(transform: Callable[[Image.Image], object]) -> Callable[[str], object]:
        def load(path: str) -> object:
            with Image.open(path) as opened:
                return transform(opened.convert('RGB'))

        return load

    def through_mmcv(path: str) -> torch.Tensor:
        image = reader.transform({'img_path': path})['img']
        shape = torch.empty((1, *image.shape[:2]), device='meta')
        top, left, high, wide = v1.RandomResizedCrop.get_params(shape, (0.08, 1.0), (3 / 4, 4 / 3))
        image = mmcv.imcrop(image, np.array([left, top, left + wide - 1, top + high - 1]))
        image = mmcv.imresize(image, (SIZE, SIZE), interpolation='bilinear')
        return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))

    return {
        BASELINE: through_pil(first),
        'torchvision v2 (torchvision.io)': lambda path: second(decode_image(path, ImageReadMode.RGB)),
        'timm': through_pil(timms),
        'mmcv': through_mmcv,
    }
