"""One training process: its log with a lock on it, started, stopped, and never left behind.

Imports the standard library alone, so that the small processes that only wait for a training stay small.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

# torchrun's workers have sessions of their own; it gives them 30 seconds to end before it kills them.
STOP_SECONDS = 40.0
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Job:
    """One process: its name on screen, its command line, its log file, what to add to the environment."""

    name: str
    argv: list[str]
    log: Path
    env: dict[str, str] = field(default_factory=dict)


def start(job: Job) -> subprocess.Popen[bytes]:
    """Start a job; its standard output and error go to its log, which is emptied and locked while it lives.

    The process has a group of its own, so that a signal to that reaches data workers too, and gets SIGTERM
    when the process that started it dies, however that dies (Linux).

    Raises:
        BlockingIOError: another process holds the lock, so it is writing into the same work dir.
    """
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with _locked(job) as log:
        return subprocess.Popen(
            job.argv,
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env={**os.environ, 'PYTHONUNBUFFERED': '1', **job.env},
            start_new_session=True,
            preexec_fn=_die_with_parent if sys.platform == 'linux' else None,
        )


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its group to end; it has :data:`STOP_SECONDS` before it is killed."""
    terminate(process)
    kill_after(process, STOP_SECONDS)


def terminate(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and its group to end."""
    signal_group(process, signal.SIGTERM)


def signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    """Send a signal to a process that is alive, and to its group."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, number)


def kill_after(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process, and kill its group if it has not ended after ``seconds``."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def is_locked(log: Path) -> bool:
    """Whether a job is alive that writes this log, as far as the file system knows of locks."""
    with suppress(OSError), log.open('rb') as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Leave through every ``finally`` on SIGTERM (Slurm) and SIGHUP (a closed terminal).

    The jobs have sessions of their own: they would go on if this process just ended.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, _frame: object) -> None:
        sys.exit(128 + number)

    # Ignored ones (nohup) stay ignored.
    before = {
        number: signal.signal(number, leave)
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _locked(job: Job) -> BinaryIO:
    """Open a job's log, emptied, and lock it; the lock goes over to the job and lasts as long as it lives."""
    log = job.log.open('ab')
    try:
        fcntl.flock(log, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        log.close()
        raise BlockingIOError(
            f'{job.name}: another process is at work in {job.log.parent}; wait until it has ended, or stop it'
        ) from None
    except OSError:
        pass  # a file system without locks
    log.truncate(0)
    return log


def _die_with_parent() -> None:
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
