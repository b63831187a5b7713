"""ILSVRC2012 as Hugging Face's ``imagenet-1k`` has it: parquet shards with encoded images and labels."""

from __future__ import annotations

import os
import re
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import whole

_SHARD = re.compile(r'(?P<split>[a-z]+)-(?P<number>\d+)-of-(?P<total>\d+)(-[0-9a-f]+)?\.parquet')
_SPLITS = {'train': ('train',), 'val': ('validation', 'val')}
# Hugging Face appends the class to the file's official name: n01440764_10026_n01440764.JPEG.
_APPENDED = re.compile(r'_n\d{8}(\.\w+)$')
_WNID = re.compile(r'(?:^|.*_)(n\d{8})[_.]')
# One group of rows is about 100 images or 11 MB.
_GROUPS_KEPT = 2


def find_shards(root: str | Path, split: str) -> list[Path]:
    """The parquet files of a split in ``root/data`` or ``root``, in order; empty if there are none.

    Raises:
        InputError: a shard is missing.
    """
    for folder in (Path(root) / 'data', Path(root)):
        sets = defaultdict(dict)
        for path in sorted(folder.glob('*.parquet')):
            match = _SHARD.fullmatch(path.name)
            if match and match['split'] in _SPLITS[split]:
                sets[match['split'], int(match['total'])][int(match['number'])] = path
        if len(sets) > 1:
            names = ', '.join(f'{name}-*-of-{total:05d}.parquet' for name, total in sorted(sets))
            raise InputError(f'{folder} holds more than one set of {split} shards: {names}; keep one')
        for (name, total), found in sets.items():
            missing = sorted(set(range(total)) - set(found))
            if missing:
                raise InputError(
                    f'{folder} lacks {len(missing)} of {total} shards, the first is '
                    f'{name}-{missing[0]:05d}-of-{total:05d}.parquet; download them'
                )
            return [found[number] for number in range(total)]
    return []


def open_shards(paths: Sequence[str | Path]) -> ParquetSplit:
    """Read labels and names of all shards, but no image.

    Raises:
        InputError: pyarrow is not installed, a file is damaged or has other columns, or an image has no
            label.
    """
    paths = [Path(path) for path in paths]
    labels, names, places = [], [], []
    wnids: dict[int, str] = {}
    for shard, path in enumerate(paths):
        file = _open(path)
        for group in range(file.num_row_groups):
            label, name = _columns(path, file, group)
            for row, (one, called) in enumerate(zip(label, name, strict=True)):
                if one is None or one < 0:
                    raise InputError(f'{path}, row {row} of group {group} has no label: is it a test split?')
                if one not in wnids and called:
                    match = _WNID.match(called)
                    wnids[one] = match.group(1) if match else None
                # Without names the shards' own order remains.
                called = Path(called).name if called else f'{shard:05d}_{group:05d}_{row:05d}.JPEG'
                names.append(os.fsencode(_APPENDED.sub(r'\1', called)))
            labels += label
            places.append(
                np.stack([np.full(len(label), shard), np.full(len(label), group), range(len(label))])
            )
    if not labels:
        raise InputError(f'{paths[0]} (of {len(paths)} shards) has no rows; download it again')
    found, labels = np.unique(np.array(labels), return_inverse=True)
    order = np.lexsort((np.array(names), labels))
    classes = tuple(wnids.get(one) or str(one) for one in found.tolist())
    at = np.concatenate(places, 1).T.astype(np.int32)
    return ParquetSplit(classes, labels[order], paths, at[order], np.array(names)[order])


class ParquetSplit:
    """A split in parquet shards, of which images are read at random.

    A group of rows (about a hundred images in Hugging Face's files) is the least that can be read, so every
    random access costs a group; the latest are kept. Training at full speed wants class folders, which
    ``tools/unpack_parquet.py`` makes.

    Args:
        classes: the wnids, or the numbers of the labels where the shards do not name them.
        labels: ``(N,)``, indices of ``classes``.
        paths: the shards.
        places: ``(N, 3)``: shard, group of rows in it, row in the group.
        names: ``(N,)`` file names.
    """

    def __init__(
        self,
        classes: Sequence[str],
        labels: np.ndarray,
        paths: Sequence[Path],
        places: np.ndarray,
        names: np.ndarray,
    ):
        self.classes = classes
        self.labels = labels
        self.paths = paths
        self.places = places
        self.names = names
        self._files: dict[int, Any] = {}
        self._groups: OrderedDict[tuple[int, int], Any] = OrderedDict()

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {'_files': {}, '_groups': OrderedDict()}

    def read(self, index: int) -> bytes:
        """The encoded image; ``OSError`` if its shard is damaged there."""
        shard, group, row = self.places[index].tolist()
        if (shard, group) not in self._groups:
            if shard not in self._files:
                self._files[shard] = _open(self.paths[shard])
            # One thread: pyarrow's pool does not survive the fork of a loader worker.
            table = self._files[shard].read_row_group(group, columns=['image.bytes'], use_threads=False)
            while len(self._groups) >= _GROUPS_KEPT:
                self._groups.popitem(last=False)
            self._groups[shard, group] = table.column('image').combine_chunks().field('bytes')
        self._groups.move_to_end((shard, group))
        content = self._groups[shard, group][row].as_py()
        if content is None:
            raise OSError('no bytes')
        return content

    def where(self, index: int) -> str:
        """The shard, and the image's row in it."""
        shard, group, row = self.places[index].tolist()
        return f'{self.paths[shard]}, row {row} of group {group}'


def unpack(root: str | Path, split: str, out: str | Path) -> int:
    """Write the images of a split, byte for byte, to ``out/<split>/<wnid>/``.

    Files that are there already are left alone, so a broken-off run goes on.

    Args:
        root: the folder with the shards.
        split: ``'train'`` or ``'val'``.
        out: the folder to write to.

    Returns:
        The number of images.

    Raises:
        InputError: there are no shards, or one is damaged.
    """
    paths = find_shards(root, split)
    if not paths:
        raise InputError(
            f'{root} has no parquet files of {split}, such as data/{_SPLITS[split][0]}-*.parquet'
        )
    samples = open_shards(paths)
    for name in samples.classes:
        (Path(out) / split / name).mkdir(parents=True, exist_ok=True)
    # In the order in which they lie in the shards: each group of rows is read once.
    for index in np.lexsort(samples.places.T[::-1]).tolist():
        label = samples.classes[samples.labels[index]]
        path = Path(out) / split / label / os.fsdecode(samples.names[index])
        if not path.exists():
            try:
                content = samples.read(index)
            except (OSError, ValueError) as error:
                raise InputError(f'cannot read image {samples.where(index)}: {error}') from None
            with whole(path) as part:
                part.write_bytes(content)
    return len(samples.labels)


def _open(path: Path) -> Any:
    try:
        from pyarrow.parquet import ParquetFile
    except ImportError:
        raise InputError(
            f'{path} is a parquet file, which takes pyarrow to read: '
            "pip install -c constraints.txt -e '.[parquet]'"
        ) from None
    try:
        return ParquetFile(path, pre_buffer=False)
    except (OSError, ValueError) as error:  # pyarrow's own errors derive from these
        raise InputError(f'cannot read {path}: {error}; download it again') from None


def _columns(path: Path, file: Any, group: int) -> tuple[list[int | None], list[str | None]]:
    """Labels and file names of a group of rows."""
    have = {column.path for column in file.schema}
    missing = sorted({'image.bytes', 'label'} - have)
    if missing:
        raise InputError(
            f'{path} has no column {" and ".join(missing)} (it has {", ".join(sorted(have))}): '
            "no file of Hugging Face's imagenet-1k"
        )
    try:
        table = file.read_row_group(
            group, columns=[name for name in ('label', 'image.path') if name in have], use_threads=False
        )
    except (OSError, ValueError) as error:
        raise InputError(f'cannot read {path}: {error}; download it again') from None
    labels = table.column('label').to_pylist()
    if 'image.path' not in have:
        return labels, [None] * len(labels)
    return labels, table.column('image').combine_chunks().field('path').to_pylist()
