"""Run the fine-tunings of a sweep on this machine, through submitit."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.live import Live
from submitit import LocalExecutor
from submitit.core.core import Job as SubmittedJob

from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.launch import SIDE_BY_SIDE
from sd_pretrain.process import STOP_SECONDS, Job, ended_by_signals, is_locked
from transfer.status import (
    JOBS,
    RunStatus,
    last_words,
    read_status,
    status_lines,
    status_table,
    summary,
    write_jobs,
)
from transfer.sweep_job import FineTuning

_POLL_SECONDS = 1.0
_PLAIN_EVERY_SECONDS = 20.0
# The local controller wants a limit; fine-tunings have none.
_YEAR_MINUTES = 365 * 24 * 60


@dataclass(frozen=True)
class SweepRun:
    """One run of a sweep.

    Args:
        work_dir: its ``<name>/seed<k>`` folder; gets the log.
        job: what to run.
    """

    work_dir: Path
    job: Job

    @property
    def key(self) -> str:
        """Its name in the notes of the sweep."""
        return f'{self.work_dir.parent.name}/{self.work_dir.name}'


def run_local(
    title: str, runs: Sequence[SweepRun], folder: Path, places: Sequence[Mapping[str, str]]
) -> None:
    """Run on this machine, at most ``len(places)`` at a time, and show how far each is.

    When a run fails by a mistake of the user's, the others are stopped; when it fails otherwise, they go on.

    Args:
        title: what is run, for the screen.
        runs: the runs that are to be done.
        folder: the ``<task>_<dataset>`` folder of the sweep.
        places: for each that may run at a time, what to add to its environment (GPUs, share of cores).

    Raises:
        InputError: a mistake in a run's input; or another process is at work in a work dir.
        RunFailedError: runs failed; carries the ends of their logs.
    """
    for run in runs:
        if is_locked(run.job.log):
            raise InputError(
                f'{run.job.name}: another process is at work in {run.work_dir}; wait until it has ended, '
                'or stop it'
            )
    executor = LocalExecutor(folder / JOBS)
    executor.update_parameters(timeout_min=_YEAR_MINUTES, stderr_to_stdout=True)
    write_jobs(folder, {run.key: None for run in runs})
    waiting, free = list(runs), list(places)
    shared = {SIDE_BY_SIDE: str(min(len(runs), len(places)))}
    running: list[tuple[SweepRun, SubmittedJob, Mapping[str, str]]] = []
    failed: list[SweepRun] = []

    def states() -> list[RunStatus]:
        live = {run.key for run, _, _ in running}
        return [_local_status(run, run.key in live, run in failed) for run in runs]

    try:
        with ended_by_signals(), shown(title, states) as show:
            while waiting or running:
                while waiting and free:
                    run, place = waiting.pop(0), free.pop(0)
                    job = replace(run.job, env={**run.job.env, **shared, **place})
                    with _deaf_to_ctrl_c():
                        running.append((run, executor.submit(FineTuning(job)), place))
                time.sleep(_POLL_SECONDS)
                show()
                for entry in [entry for entry in running if entry[1].done()]:
                    running.remove(entry)
                    run, _, place = entry
                    free.append(place)
                    if not (run.work_dir / 'result.json').is_file():
                        failed.append(run)
                        raise_mistake(run, last_words(run.work_dir))
    finally:
        _stop([job for _, job, _ in running])
    raise_failed([(run, last_words(run.work_dir, lines=12)) for run in failed], len(runs))


def _local_status(run: SweepRun, live: bool, failed: bool) -> RunStatus:
    found = read_status(run.work_dir, None, {})
    if found.state == 'done' or failed:
        return found
    # A log of an earlier attempt is there until the new one begins.
    state = 'running' if live else 'waiting'
    return found if found.state == state else RunStatus(found.name, state, note='starting' if live else '')


@contextmanager
def shown(title: str, states: Callable[[], list[RunStatus]]) -> Iterator[Callable[[], None]]:
    """Yield a function that shows the states: a live table on a terminal, a line now and then elsewhere."""
    console = Console()
    if console.is_terminal:
        with Live(console=console, auto_refresh=False) as live:
            yield lambda: live.update(status_table(title, states()), refresh=True)
        return
    print(title, flush=True)
    said: set[str] = set()
    last = time.monotonic()

    def show() -> None:
        nonlocal last
        runs = states()
        for run in runs:
            if run.state == 'done' and run.name not in said:
                said.add(run.name)
                took = f' in {run.seconds:.0f} s' if run.seconds is not None else ''
                print(f'  {run.name}: done{took}', flush=True)
        if time.monotonic() - last > _PLAIN_EVERY_SECONDS:
            last = time.monotonic()
            print('\n'.join([*status_lines(runs), f'  {summary(runs)}']), flush=True)

    try:
        yield show
    finally:
        last = time.monotonic()
        show()


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    """Start processes of this group to which Ctrl-C says nothing: they are stopped by :func:`_stop`."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _stop(jobs: Sequence[SubmittedJob]) -> None:
    """End local jobs; each passes SIGTERM on to its fine-tuning, and waits for that."""
    deadline = time.monotonic() + STOP_SECONDS + 10
    while open_jobs := [job for job in jobs if not job.done()]:
        # A worker that is just starting is deaf to the signal: so it is sent again.
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for job in open_jobs:
            with suppress(ProcessLookupError):
                os.kill(int(job.job_id), number)
        time.sleep(_POLL_SECONDS)


def raise_mistake(run: SweepRun, said: str) -> None:
    """Raise InputError where a run's last words are of a mistake in its input."""
    if said.startswith('error: '):
        raise InputError(f'{run.job.name}: {said.removeprefix("error: ")}')


def raise_failed(failed: Sequence[tuple[SweepRun, str]], total: int) -> None:
    """Raise RunFailedError where runs failed, with the ends of their logs."""
    if failed:
        ends = '\n'.join(f'{run.job.name}; the end of {run.job.log}:\n{said}' for run, said in failed)
        raise RunFailedError(
            f'{len(failed)} of {total} runs failed; the same command goes on with them.\n{ends}'
        )
