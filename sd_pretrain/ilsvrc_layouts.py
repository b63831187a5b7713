"""ILSVRC2012 in the layouts that people have: class folders, the flat official ``val/``, parquet shards.

Whatever the layout, classes are numbered in the order of their wnids, and the samples are sorted by class
and then by file name: the same images give the same sequence of samples.
"""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from sd_pretrain.cli import InputError

EXTENSIONS = ('.jpeg', '.jpg', '.png')
WHERE_TO_GET = (
    'ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar come from image-net.org (registration needed); '
    'unpack the class archives into train/<wnid>/, and the validation images into val/ beside '
    'ILSVRC2012_devkit_t12.tar.gz, or into val/<wnid>/; the parquet files of imagenet-1k are read as well'
)
DEVKIT = 'ILSVRC2012_devkit_t12'
_GROUND_TRUTH = 'data/ILSVRC2012_validation_ground_truth.txt'
_META = 'data/meta.mat'
_FLAT_NAME = re.compile(r'ILSVRC2012_val_(\d{8})\.jpe?g', re.IGNORECASE)


class Split(Protocol):
    """The samples of one split: names of the classes, ``labels`` ``(N,)``, and where the images are."""

    classes: Sequence[str]
    labels: np.ndarray

    def read(self, index: int) -> bytes:
        """The encoded image; ``OSError`` if it cannot be read."""

    def where(self, index: int) -> str:
        """What to call the image in a message."""


@dataclass(frozen=True)
class FileSplit:
    """A split of image files; ``names`` are paths relative to ``folder``.

    Arrays of bytes instead of lists: worker processes share them without copying pages as reference counts
    change.
    """

    classes: Sequence[str]
    labels: np.ndarray
    folder: Path
    names: np.ndarray

    def read(self, index: int) -> bytes:
        """The file's content."""
        return self._path(index).read_bytes()

    def where(self, index: int) -> str:
        """The file's path."""
        return str(self._path(index))

    def _path(self, index: int) -> Path:
        return self.folder / os.fsdecode(self.names[index])


def find_split(root: str | Path, split: str) -> Split:
    """Find the images of one split, in whichever layout they are.

    ``ROOT/{train,val}/<wnid>/*.JPEG``; or ``ROOT/val/ILSVRC2012_val_00000001.JPEG`` and so on, with
    ``ILSVRC2012_devkit_t12`` (the folder or its ``.tar.gz``) in ``ROOT`` or beside it; or Hugging Face's
    ``imagenet-1k``, ``ROOT/data/{train,validation}-*-of-*.parquet``, also without the folder ``data``. The
    two splits need not have the same layout.

    Args:
        root: the folder of the data.
        split: ``'train'`` or ``'val'``.

    Raises:
        InputError: a missing folder, no images in a layout that is known, or a broken one.
    """
    root = Path(root)
    folder = root / split
    if not root.is_dir():
        raise InputError(f'no data root {root}: give the folder that holds ILSVRC2012 with --data-root')
    if not folder.is_dir():
        from sd_pretrain.ilsvrc_parquet import find_shards, open_shards

        shards = find_shards(root, split)
        if shards:
            return open_shards(shards)
        raise InputError(
            f"{root} has no folder '{split}' and no parquet files of it; expected {split}/<wnid>/*.JPEG; "
            f'{WHERE_TO_GET}'
        )
    classes, flat, archives = [], [], 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_dir():
                classes.append(entry.name)
            elif _FLAT_NAME.fullmatch(entry.name):
                flat.append(entry.name)
            else:
                archives += entry.name.endswith('.tar')
    if classes and flat:
        raise InputError(
            f'{folder} has both {len(classes)} class folders and {len(flat)} images that are in none: '
            'was sorting them into folders broken off? Finish it, or put all images into one layout'
        )
    if flat:
        return _flat_split(root, folder, sorted(flat))
    if not classes:
        packed = f' ({archives} class archives are not unpacked yet)' if archives else ''
        raise InputError(
            f'{folder} has no class folders{packed}; expected {split}/<wnid>/*.JPEG; {WHERE_TO_GET}'
        )
    return _folder_split(folder, sorted(classes))


def _folder_split(folder: Path, classes: Sequence[str]) -> FileSplit:
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
    return FileSplit(tuple(classes), np.repeat(np.arange(len(classes)), counts), folder, np.array(names))


def _flat_split(root: Path, folder: Path, files: Sequence[str]) -> FileSplit:
    """Images ``ILSVRC2012_val_<number>.JPEG``, whose classes are in the development kit."""
    wnids, truth, where = read_devkit(root)
    numbers = np.array([int(_FLAT_NAME.fullmatch(name).group(1)) for name in files])
    if numbers.min() < 1 or numbers.max() > len(truth):
        odd = files[int(numbers.argmin() if numbers.min() < 1 else numbers.argmax())]
        raise InputError(
            f'{folder / odd} has no line in the ground truth of {where}, which has {len(truth):,}; '
            'remove it, or bring the devkit that belongs to these images'
        )
    # The ILSVRC ids of the ground truth are not in the order of the wnids.
    found = np.array([wnids[number] for number in truth[numbers - 1].tolist()])
    classes, labels = np.unique(found, return_inverse=True)
    order = np.argsort(labels, kind='stable')
    return FileSplit(tuple(classes.tolist()), labels[order], folder, np.array(files, dtype='S')[order])


def read_devkit(root: str | Path) -> tuple[dict[int, str], np.ndarray, Path]:
    """Read the development kit of ILSVRC2012 that lies in ``root`` or beside it.

    Returns:
        The wnid of each class's ILSVRC id; the ILSVRC ids of the validation images ``(N,)``; and where the
        kit is.

    Raises:
        InputError: there is none, or it does not hold what it should.
    """
    # imported here: it takes a second, and only this layout needs it
    from scipy.io import loadmat

    root = Path(root)
    places = [place / name for place in (root, root.parent) for name in (DEVKIT, f'{DEVKIT}.tar.gz')]
    where = next((place for place in places if place.exists()), None)
    if where is None:
        raise InputError(
            f'{root / "val"} holds the validation images without class folders, whose classes are in the '
            f'development kit: put {DEVKIT}.tar.gz (from image-net.org), or the folder in it, into {root}'
        )
    try:
        if where.is_dir():
            truth = _numbers((where / _GROUND_TRUTH).read_bytes())
            synsets = loadmat(where / _META, squeeze_me=True)['synsets']
        else:
            with tarfile.open(where) as archive:
                truth = _numbers(archive.extractfile(f'{DEVKIT}/{_GROUND_TRUTH}').read())
                synsets = loadmat(archive.extractfile(f'{DEVKIT}/{_META}'), squeeze_me=True)['synsets']
        # Rows after the first thousand are inner nodes of the hierarchy, and no classes.
        wnids = {
            int(number): str(wnid)
            for number, wnid, children in zip(
                synsets['ILSVRC2012_ID'], synsets['WNID'], synsets['num_children'], strict=True
            )
            if children == 0
        }
    except Exception as error:
        # SciPy raises what it likes on a file that is none of Matlab's.
        raise InputError(
            f'{where} cannot be read as the development kit of ILSVRC2012 ({_GROUND_TRUTH}, {_META}): '
            f'{type(error).__name__}: {error}; unpack {DEVKIT}.tar.gz anew'
        ) from None
    unknown = sorted(set(truth.tolist()) - set(wnids))
    if unknown:
        raise InputError(
            f'{where}: the ground truth names the class {unknown[0]}, which meta.mat does not have; '
            f'unpack {DEVKIT}.tar.gz anew'
        )
    return wnids, truth, where


def _numbers(text: bytes) -> np.ndarray:
    return np.array([int(line) for line in text.split()])
