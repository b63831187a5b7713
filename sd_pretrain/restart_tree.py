"""Rewrite a folder of JPEGs with restart markers: in parallel, resumable, each file verified."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg

from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.ilsvrc_layouts import EXTENSIONS
from sd_pretrain.launch import cpu_share
from sd_pretrain.restart_markers import add_restart_markers, compile_coder
from sd_pretrain.work_dir import whole

REWRITTEN = 'rewritten with restart markers'
COPIED = 'copied as they are (no baseline JPEG, or damaged)'
DIFFERENT = 'copied as they are (verification failed)'
OTHER = 'other files, copied'
THERE = 'there already'
Totals = Mapping[str, Sequence[int]]

_SECONDS_BETWEEN_REPORTS = 10.0
_FILES_AT_A_TIME = 16
# Some file systems keep times in steps of two seconds.
_SAME_TIME_SECONDS = 2.0


def rewrite_tree(
    source: str | Path,
    target: str | Path,
    workers: int | None = None,
    verify: bool = True,
    report: Callable[[str], None] = print,
) -> Totals:
    """Write every file below ``source`` to its place below ``target``, baseline JPEGs with restart markers.

    All else is copied. A file that is there already, with the time of its source, is left alone: a broken-off
    run goes on.

    Args:
        source: the folder of the data, class folders or flat.
        target: the folder to write to.
        workers: number of processes; default: one for each core.
        verify: decode each image before and after, and compare all pixels.
        report: is given a line of progress now and then.

    Returns:
        By what was done with them: the number of files, their bytes before, their bytes after.

    Raises:
        InputError: a folder is missing or inside the other, there are no images, the data is in parquet
            files, or a file cannot be read or written.
        RunFailedError: a process was killed.
    """
    source, target = Path(source), Path(target)
    names = _find_files(source, target)
    compile_coder()  # once: the processes inherit it
    work = partial(_handle, source=str(source), target=str(target), verify=verify)
    totals: dict[str, list[int]] = defaultdict(lambda: [0, 0, 0])
    started = last = time.monotonic()
    # Ctrl-C is this process's to handle.
    pool = ProcessPoolExecutor(
        workers or cpu_share(1), initializer=signal.signal, initargs=(signal.SIGINT, signal.SIG_IGN)
    )
    try:
        for count, (what, before, after) in enumerate(pool.map(work, names, chunksize=_FILES_AT_A_TIME), 1):
            totals[what] = [old + new for old, new in zip(totals[what], (1, before, after), strict=True)]
            now = time.monotonic()
            if now - last > _SECONDS_BETWEEN_REPORTS:
                last, rate = now, count / (now - started)
                left = (len(names) - count) / rate / 60
                report(f'{count:,} of {len(names):,} files, {rate:,.0f}/s, {left:,.0f} min left')
    except BrokenProcessPool:
        raise RunFailedError(
            'a process was killed (out of memory?); the same command with fewer --workers goes on'
        ) from None
    except OSError as error:
        raise InputError(f'{error}; mend it and give the same command again, it goes on') from None
    finally:
        pool.shutdown(cancel_futures=True)
    return dict(totals)


def summary(totals: Totals) -> str:
    """What was done, a line each, with sizes."""
    lines = []
    for what, (files, before, after) in sorted(totals.items()):
        sizes = f'{before / 1e6:,.1f} MB'
        if after != before:
            sizes += f' -> {after / 1e6:,.1f} MB ({after / before - 1:+.1%})'
        lines.append(f'{files:,} {what}: {sizes}')
    return '\n'.join(lines)


def _find_files(source: Path, target: Path) -> list[str]:
    if not source.is_dir():
        raise InputError(f'no folder {source}: give the one that holds train/ and val/')
    here, there = source.resolve(), target.resolve()
    if here == there or here in there.parents or there in here.parents:
        raise InputError(f'{target} and {source} lie in one another; give a folder of its own to write to')
    names = []
    for folder, folders, files in os.walk(source, followlinks=True):
        folders.sort()
        names += [os.path.relpath(os.path.join(folder, name), source) for name in sorted(files)]
    if any(name.endswith('.parquet') for name in names):
        raise InputError(f'{source} has parquet files; first python tools/unpack_parquet.py {source} FOLDER')
    if not any(name.lower().endswith(EXTENSIONS) for name in names):
        raise InputError(f'{source} has no images ({", ".join(EXTENSIONS)}); expected train/<wnid>/*.JPEG')
    return names


def _handle(name: str, source: str, target: str, verify: bool) -> tuple[str, int, int]:
    """Rewrite or copy one file; returns what was done and the bytes before and after."""
    old, new = Path(source, name), Path(target, name)
    stat = old.stat()
    if new.exists() and abs(new.stat().st_mtime - stat.st_mtime) < _SAME_TIME_SECONDS:
        return THERE, stat.st_size, new.stat().st_size
    with whole(new) as part:
        if name.lower().endswith(EXTENSIONS):
            what, content = _convert(old.read_bytes(), verify)
            part.write_bytes(content)
        else:
            what = OTHER
            shutil.copyfile(old, part)
        os.utime(part, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return what, stat.st_size, new.stat().st_size


def _convert(content: bytes, verify: bool) -> tuple[str, bytes]:
    rewritten = add_restart_markers(content)
    if rewritten is None:
        return COPIED, content
    if verify and not _same_pixels(content, rewritten):
        return DIFFERENT, content
    return REWRITTEN, rewritten


def _same_pixels(one: bytes, other: bytes) -> bool:
    try:
        return np.array_equal(*(simplejpeg.decode_jpeg(content, strict=False) for content in (one, other)))
    except ValueError:
        return False
