"""Images and the classes that they show, which probes are fitted to and tested on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from mmengine.config import Config
from torchvision.datasets.folder import IMG_EXTENSIONS, find_classes, make_dataset

from sd_pretrain.cli import InputError
from transfer.image_lists import list_file
from transfer.voc import CLASSES, read_annotation, read_list


@dataclass(frozen=True)
class LabelledImages:
    """Images of a probe.

    Args:
        names: of the images.
        paths: their files.
        labels: int8 ``(N, C)``: 1 if an image shows the class, -1 if not, 0 if that is left open.
    """

    names: list[str]
    paths: list[Path]
    labels: np.ndarray


def class_names(cfg: Config) -> tuple[str, ...]:
    """The classes of a probe config, its data root set: VOC's, or the folders that it trains on.

    Raises:
        InputError: there is no folder.
    """
    dataset = cfg.train_dataloader.dataset
    return CLASSES if dataset.get('ann_file') else tuple(_folders(Path(dataset.data_root)))


def read_images(cfg: Config, split: str) -> LabelledImages:
    """Read what a probe config is of: VOC's classification task, or a folder for each class.

    Args:
        cfg: a probe config, its data root set.
        split: ``'train'`` or ``'val'``.

    Raises:
        InputError: something is missing or damaged.
    """
    dataset = cfg[f'{split}_dataloader'].dataset
    root = Path(dataset.data_root)
    if dataset.get('ann_file'):
        names = read_list(list_file(dataset))
        paths = [root / 'JPEGImages' / f'{name}.jpg' for name in names]
        return LabelledImages(names, paths, read_labels(root, names))
    places = {name: place for place, name in enumerate(class_names(cfg))}
    for name in _folders(root):
        if name not in places:
            raise InputError(
                f'{root / name} is of a class that {cfg.train_dataloader.dataset.data_root} has not'
            )
    found = make_dataset(root, places, IMG_EXTENSIONS, allow_empty=True)
    paths, labels = [Path(path) for path, _ in found], [place for _, place in found]
    for name in _folders(root):
        if places[name] not in labels:
            raise InputError(f'{root / name} has no images ({", ".join(IMG_EXTENSIONS)})')
    shown = np.full((len(paths), len(places)), -1, np.int8)
    shown[np.arange(len(paths)), labels] = 1
    return LabelledImages([path.relative_to(root).as_posix() for path in paths], paths, shown)


def check_folders(cfg: Config) -> None:
    """Check the folders of a probe config, its data root set, images unopened.

    Raises:
        InputError: something is missing, or images are both fitted to and tested on.
    """
    if len(class_names(cfg)) < 2:
        raise InputError(f'{cfg.train_dataloader.dataset.data_root} has one folder, and each class needs one')
    trained, tested = ({path.resolve() for path in read_images(cfg, one).paths} for one in ('train', 'val'))
    if trained & tested:
        raise InputError(
            f'{Path(cfg.filename).name} fits to and tests on {len(trained & tested)} images, such as '
            f'{min(trained & tested)}: take them out of one'
        )


def read_labels(root: Path, names: Sequence[str]) -> np.ndarray:
    """Which classes images show, as VOC's classification task has it.

    Args:
        root: the folder ``VOC2007``.
        names: of the images.

    Returns:
        int8 ``(N, 20)``: 1 if an image shows the class, -1 if not, 0 if all objects of it are "difficult".

    Raises:
        InputError: an annotation is missing or damaged.
    """
    labels = np.full((len(names), len(CLASSES)), -1, np.int8)
    for row, name in zip(labels, names, strict=True):
        path = root / 'Annotations' / f'{name}.xml'
        try:
            for box in read_annotation(path).boxes:
                if box.name not in CLASSES:
                    raise ValueError(f'{box.name!r} is none of the 20 classes of VOC')
                column = CLASSES.index(box.name)
                row[column] = max(row[column], 0 if box.difficult else 1)
        except (OSError, ValueError) as error:
            raise InputError(f'cannot read {path}: {error}; unpack it again from its archive') from None
    return labels


def _folders(root: Path) -> list[str]:
    """Names of the folders, in order."""
    try:
        return find_classes(root)[0]
    except FileNotFoundError:
        raise InputError(
            f'{root} has no folders, one for each class: put the data there, or say with --data-root where '
            '"data" is'
        ) from None
