"""Runs that share a GPU: NVIDIA's Multi-Process Service (MPS) lets their kernels run at the same time.

Without it processes get a GPU in turns, and the kernels of a small network leave most of it idle in theirs.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CONTROL = 'nvidia-cuda-mps-control'
_PIPES, _LOGS, _VISIBLE = 'CUDA_MPS_PIPE_DIRECTORY', 'CUDA_MPS_LOG_DIRECTORY', 'CUDA_VISIBLE_DEVICES'
_USERS_OWN = Path('/tmp/nvidia-mps')  # where MPS is when nobody says where
_START_SECONDS = 60
# Whether a process gets a context: one that finds a service that does not work gets none.
_CLIENT = """
import ctypes
cuda, context = ctypes.CDLL('libcuda.so.1'), ctypes.c_void_p()
raise SystemExit(bool(cuda.cuInit(0) or cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), 0)))
"""


@contextmanager
def sharing(places: Sequence[Mapping[str, str]]) -> Iterator[list[dict[str, str]]]:
    """Run an MPS of its own for as long as the context lasts, if GPUs are shared and it can be had.

    A service that the user runs, or names by ``CUDA_MPS_PIPE_DIRECTORY``, is left to do its work.

    Args:
        places: environments of the runs that go at the same time (:func:`sd_pretrain.launch.places`).

    Yields:
        The environments with the service in them, or as they were where there is none.
    """
    unchanged = [dict(place) for place in places]
    gpus = [gpu for place in places for gpu in place.get(_VISIBLE, '').split(',') if gpu]
    shared = len(set(gpus)) < len(gpus)
    if not shared or _PIPES in os.environ or _USERS_OWN.exists():
        yield unchanged
        return
    gpus = list(dict.fromkeys(gpus))
    with tempfile.TemporaryDirectory(prefix='mps', ignore_cleanup_errors=True) as folder:
        service = {_PIPES: folder, _LOGS: folder}
        # What the service sees is numbered anew for those it serves.
        given = [
            place | service | {_VISIBLE: ','.join(str(gpus.index(gpu)) for gpu in place[_VISIBLE].split(','))}
            for place in unchanged
        ]
        try:
            started = _call([CONTROL, '-d'], service | {_VISIBLE: ','.join(gpus)})
            yield given if started and _serves(given[0]) else unchanged
        finally:
            _call([CONTROL], service, 'quit -t 5\n')


def _serves(place: Mapping[str, str]) -> bool:
    return _call([sys.executable, '-c', _CLIENT], place)


def _call(argv: Sequence[str], environment: Mapping[str, str], said: str = '') -> bool:
    """Whether a program is there and ends well, in time."""
    try:
        done = subprocess.run(
            argv,
            env={**os.environ, **environment},
            input=said,
            text=True,
            stdout=subprocess.DEVNULL,  # a daemon keeps what it is given: a pipe would never close
            stderr=subprocess.DEVNULL,
            timeout=_START_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0
