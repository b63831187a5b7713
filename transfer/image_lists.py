"""Which images the datasets of a config are of, read off the config and the files that it names."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from mmengine.config import Config
from torchvision.datasets.folder import IMG_EXTENSIONS, has_file_allowed_extension

from sd_pretrain.cli import InputError


@dataclass(frozen=True)
class ImageList:
    """What a dataset is of: the SHA-256 of its list, the same wherever the data is, and how many images."""

    sha256: bytes
    images: int


def datasets_of(cfg: Config) -> list[dict]:
    """The datasets of a config, those to train on first; wrappers are opened."""
    return open_datasets([cfg.train_dataloader.dataset, cfg.val_dataloader.dataset])


def open_datasets(datasets: Iterable[dict]) -> list[dict]:
    """The plain datasets inside wrappers, in their order."""
    return [one for one in with_inner(datasets) if not inner(one)]


def inner(dataset: dict) -> list[dict]:
    """What a wrapper wraps; nothing of a plain dataset."""
    return [*dataset.get('datasets', []), *([dataset['dataset']] if 'dataset' in dataset else [])]


def with_inner(datasets: Iterable[dict]) -> Iterator[dict]:
    """Datasets, and all that they wrap."""
    for one in datasets:
        yield one
        yield from with_inner(inner(one))


def list_file(dataset: dict[str, Any]) -> Path:
    """The image list of a dataset's config; without a data root its path is whole."""
    return Path(dataset.get('data_root') or '') / (dataset.get('ann_file') or '')


def data_folder(dataset: dict[str, Any]) -> Path:
    """The ``VOC2007`` or ``VOC2012`` folder of a dataset's config, however the path is split in it."""
    path = list_file(dataset)
    return next((one.parent for one in path.parents if one.name == 'ImageSets'), path.parent)


def image_list(dataset: dict[str, Any]) -> ImageList:
    """Read the list of a dataset's config, its data root set: a text, JSON, or what lies in its folder.

    Raises:
        InputError: there is none.
    """
    path = list_file(dataset)
    if dataset.get('ann_file'):
        if not path.is_file():
            raise InputError(f'no {path}: put the data there, or say with --data-root where "data" is')
        found = path.stat()
        return _read(path, found.st_size, found.st_mtime_ns)
    prefix = dataset.get('data_prefix') or {}
    folder = path / (prefix.get('img_path') or prefix.get('img') or '')
    suffix = dataset.get('img_suffix', '').lower() or IMG_EXTENSIONS
    images = (one for one in folder.rglob('*') if has_file_allowed_extension(one.name, suffix))
    names = sorted(one.relative_to(folder).as_posix() for one in images)
    if not names:
        raise InputError(
            f'no images in {folder}: put the data there, or say with --data-root where "data" is'
        )
    return ImageList(hashlib.sha256('\n'.join(names).encode()).digest(), len(names))


@cache
def _read(path: Path, *_: int) -> ImageList:
    """A list in a file of a size and time; COCO's are of hundreds of megabytes, and read for each run."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).digest()
    if path.suffix != '.json':
        return ImageList(sha256, sum(bool(line.strip()) for line in content.splitlines()))
    try:
        found = json.loads(content)
    except ValueError as error:
        raise InputError(f'{path} is no JSON: {error}') from error
    # As COCO has it; as mmengine's datasets have it; a plain list.
    images = found.get('images', found.get('data_list', ())) if isinstance(found, dict) else found
    return ImageList(sha256, len(images))
