"""The embedded demo data: a small emoji world in the layouts of ILSVRC2012, VOC2007 and VOC2012.

Every image depends on the world's seed and its own index alone, so that the same pins give the same bytes on
every machine.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from xml.sax.saxutils import escape

from PIL import Image

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import one_at_a_time, write_json
from transfer.emoji_scenes import PRETRAIN_SPRITES, Object, classification_image, mask_of, scene

VERSION = 2


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


def annotation_of(objects: list[Object], name: str, size: tuple[int, int], folder: str = 'VOC2007') -> str:
    """The VOC XML of a scene; coordinates are 1-based and inclusive, as VOC has them."""
    boxes = ''.join(
        f'  <object>\n    <name>{escape(o.name)}</name>\n    <pose>Unspecified</pose>\n'
        '    <truncated>0</truncated>\n    <difficult>0</difficult>\n'
        f'    <bndbox><xmin>{o.box[0] + 1}</xmin><ymin>{o.box[1] + 1}</ymin>'
        f'<xmax>{o.box[2]}</xmax><ymax>{o.box[3]}</ymax></bndbox>\n  </object>\n'
        for o in objects
    )
    return (
        f'<annotation>\n  <folder>{folder}</folder>\n  <filename>{name}.jpg</filename>\n'
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
    if not _is_augmented(index, size):
        mask.save(root / 'SegmentationClass' / f'{name}.png')
        _write_voc12_boxes(root, name, objects, size)
    if index < size.seg_train + size.seg_aug:
        mask.save(root / 'SegmentationClassAug' / f'{name}.png')


def _write_voc12_boxes(root: Path, name: str, objects: list[Object], size: WorldSize) -> None:
    annotation = annotation_of(objects, name, size.scene_px, 'VOC2012')
    (root / 'Annotations' / f'{name}.xml').write_text(annotation)


def _is_augmented(index: int, size: WorldSize) -> bool:
    return size.seg_train <= index < size.seg_train + size.seg_aug


def _write_lists(folder: Path, lists: dict[str, list[str]]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
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
    for folder in ('JPEGImages', 'Annotations', 'SegmentationClass', 'SegmentationClassAug'):
        (root / folder).mkdir(parents=True)
    total = size.seg_train + size.seg_aug + size.seg_val
    names = [f'2012_{index:06d}' for index in range(total)]
    train, rest = names[: size.seg_train], names[size.seg_train :]
    aug, val = rest[: size.seg_aug], rest[size.seg_aug :]
    lists = {'train': train, 'val': val, 'trainval': train + val, 'aug': aug}
    _write_lists(root / 'ImageSets' / 'Segmentation', lists)
    lists.pop('aug')
    _write_lists(root / 'ImageSets' / 'Main', lists)
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
    write_json(partial_root / 'world.json', _description(seed, size))
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
        with one_at_a_time(root):
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


def digest(root: Path) -> str:
    """sha256 over the names and bytes of all files of a world, in sorted order."""
    whole = hashlib.sha256()
    for path in sorted(p for p in root.rglob('*') if p.is_file()):
        whole.update(path.relative_to(root).as_posix().encode() + b'\0' + path.read_bytes())
    return whole.hexdigest()
