"""Run the fine-tunings of a sweep as a Slurm job array, through submitit."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from submitit import SlurmExecutor
from submitit.core.utils import FailedJobError, FailedSubmissionError

from sd_pretrain.cli import InputError
from transfer.status import (
    JOBS,
    STAY,
    RunStatus,
    SlurmQueue,
    last_words,
    read_jobs,
    read_status,
    write_jobs,
)
from transfer.sweep import SweepRun, raise_failed, raise_mistake, shown
from transfer.sweep_job import FineTuning

_POLL_SECONDS = 5.0
_DAY_MINUTES = 24 * 60
_REQUEUES = 20
# Time for a result to become visible on a shared file system after its job has left the queue.
_GRACE_SECONDS = 20.0
_TIME = re.compile(r'(?:(?P<days>\d+)-)?(?P<parts>\d+(?::\d+){0,2})')


def run_slurm(
    title: str, runs: Sequence[SweepRun], folder: Path, parameters: Mapping[str, Any], parallel: int | None
) -> None:
    """Submit runs as one Slurm job array, wait for them, and show how far each is.

    Runs that are in the queue from before are not submitted again. On an interrupt the jobs stay there; the
    same call finds them.

    Args:
        title: what is run, for the screen.
        runs: the runs that are to be done.
        folder: the ``<task>_<dataset>`` folder of the sweep, on a file system that the nodes share.
        parameters: from :func:`slurm_parameters`.
        parallel: how many may run at a time; ``None``: as many as Slurm lets.

    Raises:
        InputError: Slurm refuses, or has not answered for ten minutes; or a mistake in a run's input.
        RunFailedError: runs failed; carries the ends of their logs.
    """
    jobs = read_jobs(folder)
    queue = SlurmQueue()
    there = queue()
    new = [run for run in runs if jobs.get(run.key) not in there]
    if new:
        numbers = submit(new, folder, parameters, parallel)
        jobs |= {run.key: number for run, number in zip(new, numbers, strict=True)}
        write_jobs(folder, jobs)
        queue.submitted(numbers)
        print(f'{len(new)} jobs submitted: {", ".join(numbers)}', flush=True)
    left_at: dict[str, float] = {}
    statuses: dict[str, RunStatus] = {}

    def states() -> list[RunStatus]:
        return list(statuses.values())

    try:
        with shown(title, states) as show:
            while True:
                there = queue()
                for run in runs:
                    found = read_status(run.work_dir, jobs[run.key], there)
                    if found.state == 'failed':
                        since = left_at.setdefault(run.key, time.monotonic())
                        if time.monotonic() - since < _GRACE_SECONDS:
                            found = replace(found, state='running', note='ending')
                    else:
                        left_at.pop(run.key, None)  # queued again by Slurm
                    statuses[run.key] = found
                show()
                if all(found.state in ('done', 'failed') for found in statuses.values()):
                    break
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        print(STAY, flush=True)
        raise
    failed = [run for run in runs if statuses[run.key].state == 'failed']
    for run in failed:
        raise_mistake(run, last_words(run.work_dir, jobs[run.key]))
    raise_failed([(run, last_words(run.work_dir, jobs[run.key], lines=12)) for run in failed], len(runs))


def slurm_parameters(text: str, gpus: int) -> dict[str, Any]:
    """Read ``--slurm partition=main,account=me,time=2-00:00:00,...``: options of sbatch in their long form.

    Args:
        text: the options; a part without ``=`` belongs to the value before it.
        gpus: GPUs of one run; 0 asks for none.

    Returns:
        Parameters of submitit's ``SlurmExecutor``; without ``time`` one day.

    Raises:
        InputError: not of that form, or a time that Slurm would not know.
    """
    given: dict[str, str] = {}
    last = None
    for part in filter(None, text.split(',')):
        name, equals, value = part.partition('=')
        if equals:
            last = name.strip().replace('-', '_')
            given[last] = value
        elif last is None:
            raise InputError(f'--slurm {text}: KEY=VALUE,... is needed, such as partition=main,account=me')
        else:
            given[last] += f',{part}'
    found: dict[str, Any] = {'time': _minutes(given.pop('time', str(_DAY_MINUTES)))}
    if 'cpus_per_task' in given:
        cores = given.pop('cpus_per_task')
        found['cpus_per_task'] = _number('cpus-per-task', cores)
        # Since Slurm 22.05 srun no longer takes this over from sbatch.
        found['srun_args'] = [f'--cpus-per-task={cores}']
    if gpus and not {'gres', 'gpus', 'gpus_per_node', 'gpus_per_task'} & set(given):
        found['gpus_per_node'] = gpus
    if given:
        found['additional_parameters'] = {name.replace('_', '-'): value for name, value in given.items()}
    return found


def submit(
    runs: Sequence[SweepRun], folder: Path, parameters: Mapping[str, Any], parallel: int | None
) -> list[str]:
    """Submit runs as one job array; returns their job numbers. Arguments as of :func:`run_slurm`."""
    array = {'array_parallelism': parallel or len(runs)}
    try:
        executor = SlurmExecutor(folder / JOBS, max_num_timeout=_REQUEUES)
        executor.update_parameters(
            job_name=f'transfer_{folder.name}', nodes=1, ntasks_per_node=1, **parameters, **array
        )
        with executor.batch():
            submitted = [executor.submit(FineTuning(run.job)) for run in runs]
        return [job.job_id for job in submitted]
    except (RuntimeError, FailedJobError, FailedSubmissionError, OSError) as error:
        hint = '; a cluster without GPUs needs --gpus-per-job 0' if 'gpus_per_node' in parameters else ''
        raise InputError(f'Slurm takes no jobs: {" ".join(str(error).split())[-400:]}{hint}') from None


def _minutes(text: str) -> int:
    """Slurm's times: minutes, ``minutes:seconds``, ``h:m:s``, ``days-h``, ``days-h:m``, ``days-h:m:s``."""
    match = _TIME.fullmatch(text)
    if match is None:
        raise InputError(f'--slurm time={text}: Slurm knows minutes, H:MM:SS or D-HH:MM:SS')
    parts = [int(part) for part in match['parts'].split(':')]
    if match['days'] is not None:
        hours, minutes, seconds = [*parts, 0, 0][:3]
        hours += 24 * int(match['days'])
    else:
        hours, minutes, seconds = ([0, *parts, 0] if len(parts) < 3 else parts)[:3]
    return max(1, hours * 60 + minutes + (seconds > 0))


def _number(name: str, text: str) -> int:
    if not text.isdigit() or not int(text):
        raise InputError(f'--slurm {name}={text}: a number is needed')
    return int(text)
