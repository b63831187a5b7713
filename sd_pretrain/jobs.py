"""Run training processes side by side, with one progress bar each, read off mmengine's own log lines."""

from __future__ import annotations

import math
import re
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.process import STOP_SECONDS, Job, ended_by_signals, kill_after, start, terminate

_POLL_SECONDS = 0.5
_PLAIN_EVERY_SECONDS = 20.0
_ETA = re.compile(r'\beta: (?:(\d+) days?, )?(\d+):(\d\d):(\d\d)')
_STEP = re.compile(r'(Epoch|Iter)\((train|val|test)\) +((?:\[ *[\d/ ]+\])+)')
# Of the config, which mmengine logs as a run starts.
_MAX_EPOCHS = re.compile(r'\bmax_epochs=(\d+)')
_LOSS = re.compile(r'\bloss: ([\d.]+|nan)')


@dataclass
class JobProgress:
    """What a log has said so far about one running job (fed line by line).

    ``fraction`` is that of the whole training, ``resumed_at`` that which was done before this start of it.
    """

    started: float
    fraction: float = 0.0
    resumed_at: float | None = None
    epochs: float = math.inf
    step: str = 'starting'
    loss: str = ''
    eta: str = ''

    def read(self, line: str) -> None:
        """Take in one log line."""
        step = _STEP.search(line)
        if step is None:
            if epochs := _MAX_EPOCHS.search(line):
                self.epochs = int(epochs.group(1))
            return
        counters = re.sub(r'\s+', '', step.group(3))
        self.step = f'{"evaluating " if step.group(2) != "train" else ""}{step.group(1).lower()} {counters}'
        if loss := _LOSS.search(line):
            self.loss = f'loss {float(loss.group(1)):.3f}'
        if step.group(2) != 'train' or '/' not in counters:
            return  # an accuracy of the epoch's training batches has no iteration
        *epoch, done, length = map(int, re.findall(r'\d+', counters))
        before, whole = (epoch[0] - 1, self.epochs) if epoch else (0, 1)
        self.fraction = (before + done / length) / whole
        if self.resumed_at is None:
            self.resumed_at = before / whole if epoch else self.fraction
        if eta := _ETA.search(line):
            days, hours, minutes, seconds = (int(part or 0) for part in eta.groups())
            remaining = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
            self.eta = f'eta {remaining // 60}:{remaining % 60:02d}'

    def __str__(self) -> str:
        return '  '.join(part for part in (self.step, self.loss, self.eta) if part)


class _Running:
    """A started job: its process, and the part of its log that has been read."""

    def __init__(self, job: Job, place: int):
        self.job, self.place = job, place
        try:
            self.process = start(job)
        except BlockingIOError as error:
            raise InputError(str(error)) from None
        self.reader = job.log.open(errors='replace')
        self.progress = JobProgress(time.monotonic())
        self.tail: deque[str] = deque(maxlen=25)
        self.partial = ''

    def poll(self) -> int | None:
        code = self.process.poll()
        *lines, self.partial = (self.partial + self.reader.read()).split('\n')
        for line in lines:
            self.tail.append(line)
            self.progress.read(line)
        if code is not None:
            self.reader.close()
        return code


def run_jobs(title: str, jobs: Sequence[Job], places: Sequence[Mapping[str, str]] = ({},)) -> None:
    """Run ``jobs``, each in the first free one of ``places``, and show how far each is.

    On a terminal every job has a bar; elsewhere a line is printed every 20 seconds. Standard output and
    error go to ``job.log``. When one job fails, or on an interrupt, SIGTERM or SIGHUP, the others are
    stopped.

    Args:
        title: printed above.
        jobs: what to run.
        places: for each job that may run at a time, what to add to its environment (GPUs, share of cores).

    Raises:
        InputError: a job exited with 2, the code for a mistake in its input; carries its ``error:`` line. Or
            another process is writing the log of one, and so works in the same folder.
        RunFailedError: a job exited with another code than 0; carries the end of its log.
    """
    console = Console()
    waiting, running = deque(jobs), []
    bars = Progress(
        TextColumn('{task.fields[name]:<12}'),
        BarColumn(24),
        TextColumn('{task.percentage:>3.0f}%'),
        TimeElapsedColumn(),
        TextColumn('{task.description}'),
        console=console,
        disable=not console.is_terminal,
    )
    console.print(f'[bold]{title}[/bold]')
    last_plain = time.monotonic()
    try:
        with ended_by_signals(), bars:
            ids = {job.name: bars.add_task('waiting', total=1.0, start=False, name=job.name) for job in jobs}
            while waiting or running:
                while waiting and len(running) < len(places):
                    taken = {one.place for one in running}
                    place = next(index for index in range(len(places)) if index not in taken)
                    job = waiting.popleft()
                    one = _Running(replace(job, env={**job.env, **places[place]}), place)
                    bars.start_task(ids[one.job.name])
                    running.append(one)
                time.sleep(_POLL_SECONDS)
                for one in list(running):
                    code = one.poll()
                    if code is None:
                        bars.update(
                            ids[one.job.name], completed=one.progress.fraction, description=str(one.progress)
                        )
                        continue
                    running.remove(one)
                    raise_for(code, one.job, [*one.tail, one.partial])
                    took = time.monotonic() - one.progress.started
                    bars.update(ids[one.job.name], completed=1.0, description='done')
                    if not console.is_terminal:
                        print(f'  {one.job.name}: done in {took:.0f} s', flush=True)
                if not console.is_terminal and time.monotonic() - last_plain > _PLAIN_EVERY_SECONDS:
                    last_plain = time.monotonic()
                    for one in running:
                        print(f'  {one.job.name}: {one.progress.fraction:4.0%}  {one.progress}', flush=True)
    finally:
        for one in running:
            terminate(one.process)
        deadline = time.monotonic() + STOP_SECONDS
        for one in running:
            kill_after(one.process, max(0.0, deadline - time.monotonic()))


def raise_for(code: int, job: Job, log: Sequence[str]) -> None:
    """Check a job's exit code; ``log`` has the last lines of its log.

    Raises:
        InputError, RunFailedError: as :func:`run_jobs` says.
    """
    if code == 0:
        return
    lines = [line for line in log if line.strip()]
    if code == 2:
        said = [line for line in lines if line.startswith('error: ')]
        if said:
            raise InputError(f'{job.name}: {said[-1].removeprefix("error: ")}')
    raise RunFailedError(
        f'{job.name} ended with exit code {code}; the end of {job.log}:\n' + '\n'.join(lines)
    )
