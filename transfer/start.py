"""Start the runs that a plan has left to do: how many at a time, where, and with which command."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sd_pretrain.launch import places
from sd_pretrain.process import Job
from transfer.slurm import run_slurm, slurm_parameters
from transfer.status import LOG
from transfer.sweep import SweepRun, run_local

if TYPE_CHECKING:
    from transfer.runner import Options, Run


def runs_at_a_time(options: Options) -> int:
    """Runs at a time on this machine."""
    if options.parallel is not None:
        return options.parallel
    return max(1, torch.cuda.device_count() // max(1, options.gpus))


def start(title: str, runs: Sequence[Run], folder: Path, options: Options) -> None:
    """Run what is to do, and wait for it (:mod:`transfer.sweep`, :mod:`transfer.slurm`)."""
    found = [SweepRun(run.work_dir, _job(run, options)) for run in runs]
    if options.slurm is None:
        # submitit hides all GPUs from a worker that has not asked for one: so they are always named here.
        run_local(title, found, folder, places(runs_at_a_time(options), options.gpus))
    else:
        run_slurm(title, found, folder, slurm_parameters(options.slurm, options.gpus), options.parallel)


def _job(run: Run, options: Options) -> Job:
    module = ['-m', run.module, *run.arguments]
    if options.gpus > 1:
        spread = ['--standalone', f'--nproc_per_node={options.gpus}']
        module = ['-m', 'sd_pretrain.torchrun', *spread, *module]
    return Job(f'{run.name} seed {run.seed}', [sys.executable, *module], run.work_dir / LOG)


def dry_lines(runs: Sequence[Run], options: Options) -> list[str]:
    """Say what would be run, as shell commands, and what Slurm would be asked for."""
    states = {'nothing': 'from the beginning', 'part': 'goes on'}
    lines = []
    for run in runs:
        job = _job(run, options)
        lines += [f'{job.name} ({states[run.state]}):', f'  {shlex.join(job.argv)}']
    if options.slurm is not None:
        asked = slurm_parameters(options.slurm, options.gpus)
        lines.append('sbatch: ' + ', '.join(f'{name}={value}' for name, value in asked.items()))
    return lines
