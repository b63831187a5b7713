"""Memory of the C library: what a training iteration frees, the next one takes again."""

from __future__ import annotations

import ctypes
import os
import sys

# Of <malloc.h>.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# Older glibc refuses more than 32 MiB for the second.
_THRESHOLDS = (2**30, 2**25)


def keep_freed_memory() -> bool:
    """Keep freed memory in this process, instead of giving it back to the kernel at once.

    glibc maps large blocks anew for each tensor, and the kernel clears every page of them when it is first
    touched: on a CPU that is a good part of a training step. Call it before anything large is allocated. What
    the user has set by ``MALLOC_MMAP_THRESHOLD_``, ``MALLOC_TRIM_THRESHOLD_`` or ``GLIBC_TUNABLES`` stays.

    Returns:
        Whether it was done; without glibc nothing is.
    """
    own = ('MALLOC_MMAP_THRESHOLD_', 'MALLOC_TRIM_THRESHOLD_', 'GLIBC_TUNABLES')
    if sys.platform != 'linux' or any(name in os.environ for name in own):
        return False
    library = ctypes.CDLL(None)
    if not hasattr(library, 'gnu_get_libc_version') or not hasattr(library, 'mallopt'):
        return False
    kept = any(library.mallopt(_M_MMAP_THRESHOLD, size) == 1 for size in _THRESHOLDS)
    return kept and library.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1) == 1
