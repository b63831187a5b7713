"""Work dirs: files that are there whole or not at all, and a note of what a folder is for."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sd_pretrain.cli import COMPILE, InputError

CLAIM = 'run.json'
# mmengine's: the path of the checkpoint that was written last.
LAST = 'last_checkpoint'


@contextmanager
def whole(path: str | Path) -> Iterator[Path]:
    """Have a file written whole or not at all, in place of the one that is there; its folder is made.

    Yields:
        Where to write: what lies there when the context ends well becomes ``path``.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f'{path.name}.part')
    yield part
    os.replace(part, path)


def write_json(path: str | Path, content: Any) -> None:
    """Write a JSON file whole or not at all; its folder is made."""
    with whole(path) as part:
        part.write_text(json.dumps(content, indent=2) + '\n')


def read_json(path: Path, remedy: str, missing: Any = None) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        remedy: what to do where it does not parse, for the message.
        missing: what to return where there is none.

    Raises:
        InputError: it does not parse.
    """
    if not path.is_file():
        return missing
    try:
        return json.loads(path.read_text())
    except ValueError as error:
        raise InputError(f'{path} does not parse ({error}); {remedy}') from None


@contextmanager
def one_at_a_time(path: str | Path) -> Iterator[None]:
    """Keep the other processes that want to write ``path`` waiting."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f'.{path.name}.lock').open('w') as lock:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@contextmanager
def alone_in(work_dir: str | Path) -> Iterator[None]:
    """Keep other trainings out of a work dir: each would overwrite the other's checkpoints.

    The lock is this process's: data workers, which outlive a killed training by seconds, do not hold it.

    Raises:
        InputError: one is at work there.
    """
    path = Path(work_dir) / '.lock'
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open('w') as lock:
        try:
            fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f'another training is at work in {work_dir}; wait until it ends, or take another --work-dir'
            ) from None
        except OSError:
            pass  # a file system without locks
        yield


def latest_checkpoint(work_dir: str | Path) -> Path | None:
    """The checkpoint that was written last, ``None`` if there is none.

    It is looked for where the work dir is now, and only then where it was written; it may be in neither.

    Raises:
        InputError: the note of it is empty.
    """
    pointer = Path(work_dir) / LAST
    if not pointer.is_file():
        return None
    named = Path(pointer.read_text().strip())
    if not named.name:
        raise InputError(
            f'{pointer} is empty (a full disk, a crash of the machine?): write the name of its newest whole '
            'epoch_N.pth into it'
        )
    own = pointer.with_name(named.name)
    return own if own.is_file() else named


def claim(work_dir: str | Path, wanted: Mapping[str, Any]) -> None:
    """Note in ``run.json`` what a work dir is for, or refuse one that is for something else.

    Finished runs are not run again, so that runs on other data or with other settings would be reported as
    if they were these.

    Args:
        work_dir: the folder; made where it is missing.
        wanted: what it is to be for, plain values.

    Raises:
        InputError: it is for something else; says what differs.
    """
    path = Path(work_dir) / CLAIM
    if not path.exists():
        write_json(path, wanted)
        return
    try:
        found = dict(json.loads(path.read_text()))
    except (ValueError, TypeError):
        raise InputError(f'{path} does not parse; take another --work-dir, or delete this one') from None
    found, wanted = ({key: _compared(value) for key, value in one.items()} for one in (found, wanted))
    differ = [
        f'{key} was {_only_in(found.get(key), wanted[key])}, is now {_only_in(wanted[key], found.get(key))}'
        for key in wanted
        if found.get(key) != wanted[key]
    ]
    if differ:
        raise InputError(
            f'{work_dir} holds another run: {"; ".join(differ)}; take another --work-dir, or delete this one'
        )


def _only_in(value: Any, other: Any) -> Any:
    """Of two lists, what the first has and the other has not; any other value as it is."""
    if not isinstance(value, list) or not isinstance(other, list):
        return value
    only = value if set(value) == set(other) else [item for item in value if item not in other]
    return ', '.join(str(item) for item in only) or 'without'


def _compared(value: Any) -> Any:
    """A list of ``KEY=VALUE`` in the order of its keys, several values of one in their own.

    ``COMPILE`` is left out: a run is faster by it, and no other.
    """
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return sorted((item for item in value if item != COMPILE), key=lambda item: item.partition('=')[0])
    return value
