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

# Of the free memory; what the images do not need of it is never touched.
SHARE = 0.25
_SLOTS = 2**17
_ENTRY = np.dtype([('key', np.uint64), ('offset', np.int64), ('shape', np.int32, 3), ('ndim', np.int32)])
_LOCK_SECONDS = 5.0


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


def budget(share: float = SHARE) -> int:
    """Bytes for the images of one process: its part of a share of the memory that is free here."""
    free = [os.sysconf('SC_AVPHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')]
    info = Path('/proc/meminfo')
    if info.is_file():
        lines = dict(line.split(':', 1) for line in info.read_text().splitlines())
        free = [int(lines['MemAvailable'].split()[0]) * 1024]
    limit, used = (Path('/sys/fs/cgroup') / name for name in ('memory.max', 'memory.current'))
    if limit.is_file() and used.is_file() and limit.read_text().strip() != 'max':
        free.append(int(limit.read_text()) - int(used.read_text()))
    processes = int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    return max(0, int(share * min(free) / processes))


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
