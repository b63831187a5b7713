"""How far the runs of a sweep are, read off their work dirs, their logs and Slurm's queue."""

from __future__ import annotations

import getpass
import json
import re
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from statistics import fmean

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from sd_pretrain.cli import InputError
from sd_pretrain.jobs import JobProgress
from sd_pretrain.process import is_locked
from sd_pretrain.work_dir import read_json, write_json

LOG = 'stdout.log'
# Beside the folders of the backbones, whose names begin with a letter or digit.
JOBS = '_jobs'
_JOBS_FILE = 'jobs.json'
STAY = 'the jobs stay in the queue: the same command finds them again, scancel ends them'
_PATIENCE_SECONDS = 600.0
_TAIL_BYTES = 1 << 16
_STATES = ('done', 'running', 'failed', 'waiting')
_BAR_WIDTH = 24
# What mmengine writes before each message.
_MMENGINE = re.compile(r'^\S+ \S+ - mmengine - \w+ - ')
_COLOURS = {'done': 'green', 'running': 'cyan', 'failed': 'red', 'waiting': 'dim'}


@dataclass(frozen=True)
class RunStatus:
    """How far one run is.

    Args:
        name: its backbone and seed.
        state: ``'done'``, ``'running'``, ``'failed'`` (broken off, too) or ``'waiting'``.
        fraction: how much of it is done, from 0 to 1.
        note: where it is, why it waits, or what its log says last.
        seconds: what it took, or what it is estimated to take in all; ``None`` if that is not known.
    """

    name: str
    state: str
    fraction: float = 0.0
    note: str = ''
    seconds: float | None = None

    @property
    def will_change(self) -> bool:
        """Whether it runs or waits in Slurm's queue; others wait for a sweep to be called again."""
        return self.state == 'running' or (self.state == 'waiting' and bool(self.note))


def read_jobs(folder: Path) -> dict[str, str | None]:
    """Read which runs a sweep in a ``<task>_<dataset>`` folder has: ``<name>/seed<k>``, and its Slurm job."""
    return read_json(folder / JOBS / _JOBS_FILE, 'delete it and run the sweep again', missing={})


def write_jobs(folder: Path, jobs: Mapping[str, str | None]) -> None:
    """Note runs of a sweep beside those noted before."""
    write_json(folder / JOBS / _JOBS_FILE, read_jobs(folder) | dict(jobs))


def slurm_queue() -> dict[str, tuple[str, str]]:
    """The user's jobs in Slurm's queue: for each job id, with its place in the array, its state and reason.

    Raises:
        InputError: Slurm does not answer.
    """
    command = ['squeue', '--noheader', '--array', '--user', getpass.getuser(), '--format=%i|%T|%r']
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60).stdout
    except (OSError, subprocess.SubprocessError) as error:
        said = ' '.join(str(getattr(error, 'stderr', None) or error).split())
        raise InputError(
            f'Slurm does not answer (squeue: {said}): is this a machine of the cluster?'
        ) from None
    lines = (line.strip().split('|') for line in said.splitlines() if line.strip())
    return {number: (state, reason) for number, state, reason in lines}


class SlurmQueue:
    """:func:`slurm_queue` for a long watch: the queue as last seen where Slurm is silent for some minutes."""

    def __init__(self) -> None:
        self._jobs: dict[str, tuple[str, str]] | None = None
        self._seen = 0.0

    def __call__(self) -> dict[str, tuple[str, str]]:
        """The queue.

        Raises:
            InputError: Slurm does not answer the first call, or has answered none for ten minutes.
        """
        try:
            self._jobs = slurm_queue()
        except InputError as error:
            if self._jobs is None:
                raise
            if time.monotonic() - self._seen > _PATIENCE_SECONDS:
                raise InputError(f'{error} {STAY}') from None
        else:
            self._seen = time.monotonic()
        return self._jobs

    def submitted(self, numbers: Iterable[str]) -> None:
        """Note jobs that the queue has not been seen with."""
        self._jobs = (self._jobs or {}) | dict.fromkeys(numbers, ('PENDING', 'submitted'))


def read_status(work_dir: Path, job: str | None, queue: Mapping[str, tuple[str, str]]) -> RunStatus:
    """Say how far a run is.

    Args:
        work_dir: its ``<name>/seed<k>`` folder.
        job: its Slurm job, if it has one.
        queue: Slurm's queue.
    """
    name = f'{work_dir.parent.name} {work_dir.name.replace("seed", "seed ")}'
    result, log = work_dir / 'result.json', work_dir / LOG
    if result.is_file():
        try:
            seconds = json.loads(result.read_text()).get('seconds')
        except ValueError:
            return RunStatus(name, 'failed', note=f'{result} does not parse; delete it')
        return RunStatus(name, 'done', 1.0, seconds=seconds)
    state, reason = queue.get(job or '', ('', ''))
    if state == 'RUNNING' or (not state and is_locked(log)):
        progress = _progress(work_dir)
        elapsed, done = time.time() - progress.started, progress.fraction - (progress.resumed_at or 0.0)
        seconds = elapsed / done if done > 0.02 else None
        return RunStatus(name, 'running', progress.fraction, str(progress), seconds)
    if state:
        return RunStatus(name, 'waiting', note=f'{state.lower()}: {reason}')
    if log.is_file() or job is not None:
        return RunStatus(name, 'failed', note=f'ended: {_MMENGINE.sub("", last_words(work_dir, job))}')
    return RunStatus(name, 'waiting')


def last_words(work_dir: Path, job: str | None = None, lines: int = 1) -> str:
    """The end of a run's log, or of its job's where it has never begun; its ``error:`` if there is one."""
    logs = [work_dir / LOG]
    if job is not None:
        logs += sorted((work_dir.parents[1] / JOBS).glob(f'{job}_*log.err'))
    for log in logs:
        said = [line for line in _tail(log).splitlines() if line.strip()]
        mistakes = [line for line in said if line.startswith('error: ')]
        if said:
            return mistakes[-1] if mistakes else '\n'.join(said[-lines:])
    return 'it has said nothing'


def sweep_status(
    folder: Path, queue: Callable[[], Mapping[str, tuple[str, str]]] = slurm_queue
) -> list[RunStatus]:
    """The status of every run of a sweep in a ``<task>_<dataset>`` folder, those not yet started as well.

    Args:
        folder: the folder.
        queue: reads Slurm's queue; called where there are jobs.
    """
    jobs = read_jobs(folder)
    for found in sorted(folder.glob('*/seed*')):
        jobs.setdefault(f'{found.parent.name}/{found.name}', None)
    seen = queue() if any(jobs.values()) else {}
    return [read_status(folder / run, job, seen) for run, job in jobs.items()]


def sweeps(root: Path) -> list[Path]:
    """The ``<task>_<dataset>`` folders with runs in them under (or at) a work dir.

    Raises:
        InputError: there are none.
    """
    inside = sorted(path for path in root.glob('*_*') if path.is_dir())
    found = [
        path for path in [root, *inside] if (path / JOBS / _JOBS_FILE).is_file() or any(path.glob('*/seed*'))
    ]
    if not found:
        raise InputError(f'no runs in {root}: name the work dir of tools/transfer.sh')
    return found


def summary(runs: Sequence[RunStatus]) -> str:
    """Count the states, and say how long the rest will take where that can be known."""
    counts = [f'{sum(run.state == state for run in runs)} {state}' for state in _STATES]
    left = seconds_left(runs)
    return ', '.join(counts) + (f'; about {_words(left)} left' if left is not None else '')


def seconds_left(runs: Sequence[RunStatus]) -> float | None:
    """What is still to do over what runs now; ``None`` where nothing runs or no duration is known yet."""
    running = [run for run in runs if run.state == 'running']
    known = [run.seconds for run in runs if run.seconds]
    if not running or not known:
        return None
    open_runs = sum(1 - run.fraction for run in runs if run.state in ('running', 'waiting'))
    return fmean(known) * open_runs / len(running)


def status_lines(runs: Iterable[RunStatus]) -> list[str]:
    """One plain line for each run that is neither waiting for its turn nor done."""
    return [
        f'  {run.name}: {run.state if run.state == "failed" else f"{run.fraction:4.0%}"}  {run.note}'
        for run in runs
        if run.state in ('running', 'failed')
    ]


def status_table(title: str, runs: Sequence[RunStatus]) -> Group:
    """Runs in rows with state, bar and note, and their summary, for a terminal."""
    table = Table(title=title, title_justify='left', box=None, pad_edge=False)
    table.add_column('run', no_wrap=True, min_width=max((len(run.name) for run in runs), default=0))
    table.add_column('state', no_wrap=True, min_width=max(map(len, _STATES)))
    table.add_column('progress', no_wrap=True, min_width=_BAR_WIDTH)
    table.add_column('', no_wrap=True)
    for run in runs:
        bar = ProgressBar(1.0, run.fraction, width=_BAR_WIDTH)
        state, note = Text(run.state, _COLOURS[run.state]), Text(run.note, overflow='ellipsis')
        table.add_row(run.name, state, bar, note)
    return Group(table, Text(summary(runs)))


def _progress(work_dir: Path) -> JobProgress:
    """Progress of a running run; it was started, or resumed, when mmengine made its log folder."""
    progress = JobProgress(started=time.time())
    for folder in sorted(work_dir.glob('2*_*')):
        try:
            progress.started = datetime.strptime(folder.name, '%Y%m%d_%H%M%S').timestamp()
        except ValueError:
            continue
    with suppress(OSError), (work_dir / LOG).open(errors='replace') as log:
        for line in log:
            progress.read(line)
    return progress


def _tail(path: Path) -> str:
    try:
        with path.open('rb') as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            return file.read().decode(errors='replace')
    except OSError:
        return ''


def _words(seconds: float) -> str:
    minutes = round(seconds / 60)
    return f'{minutes // 60} h {minutes % 60:02d} min' if minutes >= 60 else f'{max(minutes, 1)} min'
