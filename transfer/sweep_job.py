"""What a submitit worker runs: one fine-tuning, as a process of its own that is stopped and resumed with it.

Workers unpickle :class:`FineTuning` by reference: they import this module and little else.
"""

from __future__ import annotations

import os
import subprocess
import time
from dataclasses import dataclass, replace

from submitit.helpers import DelayedSubmission

from sd_pretrain.process import Job, ended_by_signals, start, stop

# A requeued job may start before the last process of its former life has let go of the log.
_LOCK_SECONDS = 60.0


@dataclass(frozen=True)
class FineTuning:
    """A fine-tuning to be submitted; its process resumes what is in its work dir, so it can start anytime."""

    job: Job

    def __call__(self) -> None:
        """Run to the end.

        Raises:
            ChildProcessError: the process failed.
            BlockingIOError: another process is at work in the work dir.
        """
        job = replace(self.job, env=_slurm_threads() | self.job.env)
        with ended_by_signals():
            process = _start(job)
            try:
                code = process.wait()
            finally:
                stop(process)
        if code:
            raise ChildProcessError(f'{job.name} ended with exit code {code}; its log is {job.log}')

    def checkpoint(self) -> DelayedSubmission:
        """What to queue again when the time limit or a pre-emption ends this: the same."""
        return DelayedSubmission(self)


def _start(job: Job) -> subprocess.Popen[bytes]:
    deadline = time.monotonic() + _LOCK_SECONDS
    while True:
        try:
            return start(job)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)


def _slurm_threads() -> dict[str, str]:
    cores = os.environ.get('SLURM_CPUS_PER_TASK')
    return {'OMP_NUM_THREADS': cores} if cores and 'OMP_NUM_THREADS' not in os.environ else {}
