"""Run several pretrainings, side by side or one after the other: each is one call of ``tools/train.py``."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sd_pretrain.cli import InputError
from sd_pretrain.jobs import run_jobs
from sd_pretrain.launch import places
from sd_pretrain.process import Job
from sd_pretrain.shared_gpu import sharing
from sd_pretrain.work_dir import LAST

_ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Pretraining:
    """One pretraining.

    Args:
        name: what it is called on screen.
        config: path of its config.
        work_dir: its work dir; a finished run there stays, a broken-off one goes on.
        options: ``KEY=VALUE`` for ``--cfg-options``.
        fork_of: work dir of a run that was stopped at the end of the first mini-generation, which this one
            shares: it begins as a copy of that folder, log and snapshot included.
        stop_after: stop, resumable, once this many epochs are done.
    """

    name: str
    config: str
    work_dir: Path
    options: tuple[str, ...] = ()
    fork_of: Path | None = None
    stop_after: int | None = None


def run_pretrainings(
    title: str,
    runs: Sequence[Pretraining],
    *,
    data_root: str | Path | None = None,
    gpus: int = 1,
    parallel: int = 1,
    amp: bool = False,
) -> None:
    """Run what is not done yet, and show how far each is.

    Args:
        title: what to print above the bars.
        runs: the pretrainings.
        data_root: ``--data-root`` of ``tools/train.py``.
        gpus: processes of one run, each on a GPU of its own (without any GPU: on the CPU).
        parallel: runs side by side, each on GPUs of its own; more runs with ``gpus=1`` than there are GPUs
            share them, which small networks gain from.
        amp: train in bfloat16.

    Raises:
        InputError: a mistake that a run has found, or that there is nothing to fork from.
        RunFailedError: a run failed; carries the end of its log.
    """
    for run in runs:
        if run.fork_of is not None:
            fork(run.fork_of, run.work_dir)
    jobs = [pretraining_job(run, data_root=data_root, gpus=gpus, amp=amp) for run in runs]
    with sharing(places(parallel, gpus)[: len(jobs)]) as given:
        run_jobs(title, jobs, given)


def pretraining_job(
    run: Pretraining, *, data_root: str | Path | None = None, gpus: int = 1, amp: bool = False
) -> Job:
    """The process of a pretraining; the arguments are those of :func:`run_pretrainings`."""
    options = [*run.options, *(['fork=True'] if run.fork_of is not None else [])]
    arguments = [
        *['--work-dir', str(run.work_dir), '--resume'],
        *(['--data-root', str(data_root)] if data_root else []),
        *(['--amp'] if amp else []),
        *(['--stop-after', str(run.stop_after)] if run.stop_after else []),
        *(['--cfg-options', *options] if options else []),
    ]
    if gpus > 1:
        argv = ['bash', str(_ROOT / 'tools' / 'dist_train.sh'), run.config, str(gpus), *arguments]
    else:
        argv = [sys.executable, str(_ROOT / 'tools' / 'train.py'), run.config, *arguments]
    return Job(run.name, argv, run.work_dir / 'stdout.log', _packages())


def fork(source: Path, target: Path) -> None:
    """Begin a work dir as a copy of a stopped one; a ``target`` that has begun already stays as it is.

    Raises:
        InputError: ``source`` has no checkpoint to go on from.
    """
    if (target / LAST).is_file() or (target / 'result.json').is_file():
        return
    if not (source / LAST).is_file():
        raise InputError(f'{source} holds no run to fork {target} from: it has no {LAST}')
    # What makes it a work dir that can be resumed comes last.
    shutil.copytree(
        source, target, ignore=shutil.ignore_patterns(LAST, 'stdout.log', '*.part'), dirs_exist_ok=True
    )
    shutil.copy(source / LAST, target / LAST)


def _packages() -> dict[str, str]:
    """The environment in which a tool finds the packages beside it, installed or not."""
    return {'PYTHONPATH': os.pathsep.join(filter(None, [str(_ROOT), os.environ.get('PYTHONPATH')]))}
