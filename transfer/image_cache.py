"""Images and masks decoded once: kept in memory that a process shares with the loader workers it forks.

What the pipelines get is the same to the bit. The configs stay stock: fine-tuning gives the loading
transforms of a built dataset this memory (:func:`cache_images`).
"""

from __future__ import annotations

import hashlib
import mmap
import multiprocessing
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmcv.transforms import LoadImageFromFile

from sd_pretrain.launch import SIDE_BY_SIDE

# Of the free memory; what the images do not need of it is never touched.
SHARE = 0.25
_SLOTS = 2**17
_ENTRY = np.dtype([('key', np.uint64), ('offset', np.int64), ('shape', np.int32, 3), ('ndim', np.int32)])
_LOCK_SECONDS = 5.0
# Where the tree is; in it the limit, what is used of it, and how much of that are files read before (bytes).
_CGROUP_V1 = (
    'sys/fs/cgroup/memory',
    'memory.limit_in_bytes',
    'memory.usage_in_bytes',
    'total_inactive_file',
)
_CGROUP_V2 = ('sys/fs/cgroup', 'memory.max', 'memory.current', 'inactive_file')


class ImageStore:
    """A bounded store of uint8 images by name; processes that are forked afterwards share it.

    Args:
        size: most bytes of pixels. What comes when they are used up is not kept.
    """

    def __init__(self, size: int):
        self.size = size
        self._pixels = np.frombuffer(mmap.mmap(-1, max(size, 1)), np.uint8)
        self._table = np.frombuffer(mmap.mmap(-1, _SLOTS * _ENTRY.itemsize), _ENTRY)
        self._used = np.frombuffer(mmap.mmap(-1, 16), np.int64)  # bytes, images
        self._lock = multiprocessing.get_context('fork').Lock()

    def __len__(self) -> int:
        return int(self._used[1])

    def get(self, name: str) -> np.ndarray | None:
        """A copy of the image, or ``None``."""
        key = _key(name)
        with self._locked() as locked:
            entry = self._table[self._slot(key)].copy() if locked else None
        if entry is None or entry['key'] != key:
            return None
        shape = entry['shape'][: entry['ndim']]
        begin = int(entry['offset'])
        return self._pixels[begin : begin + int(shape.prod())].reshape(shape).copy()

    def put(self, name: str, image: np.ndarray) -> bool:
        """Keep an image; returns whether there was room for it."""
        if image.dtype != np.uint8 or image.ndim > 3:
            return False
        key = _key(name)
        with self._locked() as locked:
            begin, count = map(int, self._used)
            if not locked or begin + image.size > self.size or count >= _SLOTS // 2:
                return False
            self._used[0] += image.size
        self._pixels[begin : begin + image.size] = image.reshape(-1)
        with self._locked() as locked:
            slot = self._slot(key)
            if not locked or self._table[slot]['key'] == key:
                return False
            shape = (*image.shape, *[1] * (3 - image.ndim))
            self._table[slot] = (key, begin, shape, image.ndim)
            self._used[1] += 1
        return True

    def _slot(self, key: np.uint64) -> int:
        """Where a key is, or where it would go."""
        slot = int(key) % _SLOTS
        while self._table[slot]['key'] not in (0, key):
            slot = (slot + 1) % _SLOTS
        return slot

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        # A worker that was killed may have taken the lock with it: images are then decoded as if new.
        locked = self._lock.acquire(timeout=_LOCK_SECONDS)
        try:
            yield locked
        finally:
            if locked:
                self._lock.release()


def _key(name: str) -> np.uint64:
    return np.uint64(int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), 'little') | 1)


def budget(share: float = SHARE, root: Path = Path('/')) -> int:
    """Bytes for the images of one process: its part of a share of the memory that is free here.

    Free is the least of what the machine has, what the limits of the process's cgroups leave, and what Slurm
    has given the job; runs and processes side by side have equal parts.

    Args:
        share: of the free memory.
        root: where ``proc`` and ``sys`` are.
    """
    free = [_machine_free(root), *_cgroups_free(root)]
    slurm = os.environ.get('SLURM_MEM_PER_NODE', '')  # MiB; 0: all there is
    if slurm.isdigit() and int(slurm):
        free.append(int(slurm) * 2**20)
    parts = int(os.environ.get('LOCAL_WORLD_SIZE', 1)) * int(os.environ.get(SIDE_BY_SIDE, 1))
    return max(0, int(share * min(free) / parts))


def _machine_free(root: Path) -> int:
    info = root / 'proc/meminfo'
    if info.is_file():
        lines = dict(line.split(':', 1) for line in info.read_text().splitlines())
        return int(lines['MemAvailable'].split()[0]) * 1024
    return os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')


def _cgroups_free(root: Path) -> list[int]:
    """What each limit on this process's cgroups, and those above, leaves; cached files count as free."""
    own = root / 'proc/self/cgroup'
    found = []
    for line in own.read_text().splitlines() if own.is_file() else []:
        _, controllers, path = line.split(':', 2)
        if controllers and 'memory' not in controllers.split(','):
            continue
        top, limit, used, cached = _CGROUP_V1 if controllers else _CGROUP_V2
        here = root / top / path.strip('/')
        for folder in (here, *here.parents):
            try:
                left = int((folder / limit).read_text()) - int((folder / used).read_text())
                stat = dict(line.split() for line in (folder / 'memory.stat').read_text().splitlines())
            except (OSError, ValueError):
                continue  # no cgroup, or 'max': no limit
            found.append(left + int(stat.get(cached, 0)))
    return found


class CachedLoadImageFromFile(LoadImageFromFile):
    """``LoadImageFromFile`` that decodes an image once."""

    store: ImageStore

    def transform(self, results: dict) -> dict | None:
        """Load the image of ``img_path``."""
        name = f'{self.color_type} {results["img_path"]}'
        image = self.store.get(name)
        if image is None:
            results = super().transform(results)
            if results is not None:
                self.store.put(name, results['img'])
            return results
        results['img'] = image
        results['img_shape'] = results['ori_shape'] = image.shape[:2]
        return results


def cache_images(dataset: Any, store: ImageStore) -> int:
    """Let the loading transforms of a dataset, built and perhaps wrapped, keep what they decode.

    Args:
        dataset: of mmdet or mmseg.
        store: where; one for all datasets.

    Returns:
        Number of transforms changed.
    """
    inner = [*getattr(dataset, 'datasets', []), *([dataset.dataset] if hasattr(dataset, 'dataset') else [])]
    changed = sum(cache_images(one, store) for one in inner)
    for one in getattr(getattr(dataset, 'pipeline', None), 'transforms', []):
        cached = _cached_type(type(one))
        if cached is not None:
            one.__class__ = cached
            one.store = store
            changed += 1
    return changed


def _cached_type(loader: type) -> type | None:
    if loader is LoadImageFromFile:
        return CachedLoadImageFromFile
    if f'{loader.__module__}.{loader.__name__}' == 'mmseg.datasets.transforms.loading.LoadAnnotations':
        from transfer.seg_speed import CachedLoadMasks

        return CachedLoadMasks
    return None
