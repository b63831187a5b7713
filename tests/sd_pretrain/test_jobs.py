"""Jobs: progress read off log lines, failures passed on, the others stopped."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.jobs import JobProgress, run_jobs
from sd_pretrain.process import Job, is_locked, start, stop

TRAIN_LINE = (
    '11/23 02:45:00 - mmengine - INFO - Epoch(train)  [3][10/40]  lr: 1.0000e-02  '
    'eta: 0:01:30  time: 0.5000  data_time: 0.0100  loss: 1.2345'
)


def python_job(tmp_path, name, code):
    return Job(name, [sys.executable, '-c', code], tmp_path / f'{name}.log')


def test_progress_of_a_resumed_run_is_that_of_the_whole_training():
    progress = JobProgress(started=0.0)
    progress.read('train_cfg = dict(max_epochs=5, val_interval=1)')
    progress.read(TRAIN_LINE)
    assert (progress.fraction, progress.resumed_at) == (pytest.approx(2.25 / 5), 2 / 5)
    assert str(progress) == 'epoch [3][10/40]  loss 1.234  eta 1:30'
    progress.read('11/23 02:45:30 - mmengine - INFO - Epoch(train) [3]  train/top1: 11.0640')
    progress.read(TRAIN_LINE.replace('[10/40]', '[20/40]').replace('0:01:30', '1 day, 0:00:00'))
    assert (progress.fraction, progress.resumed_at) == (pytest.approx(2.5 / 5), 2 / 5)


def test_progress_of_a_run_by_iterations():
    progress = JobProgress(started=0.0)
    for done in (50, 60, 70):
        progress.read(TRAIN_LINE.replace('Epoch(train)  [3][10/40]', f'Iter(train) [ {done}/100]'))
    assert (progress.fraction, progress.resumed_at) == (0.7, 0.5)


def test_output_goes_to_the_log_and_every_job_runs(tmp_path, capsys):
    jobs = [python_job(tmp_path, name, f'print("hello from {name}")') for name in ('BL', 'SD', 'SE')]
    run_jobs('three', jobs, [{}, {}])
    assert [job.log.read_text() for job in jobs] == [f'hello from {n}\n' for n in ('BL', 'SD', 'SE')]
    assert 'three' in capsys.readouterr().out


def test_a_job_takes_the_place_that_became_free(tmp_path):
    """The first of four is in its place until the others have been in the second."""
    until = (
        f'import pathlib, time\nwhile not pathlib.Path({str(tmp_path / "end")!r}).exists(): time.sleep(0.1)'
    )
    end = f'import pathlib; pathlib.Path({str(tmp_path / "end")!r}).touch()'
    codes = {'A': until, 'B': '', 'C': '', 'D': end}
    jobs = [
        python_job(tmp_path, name, f'import os; print(os.environ["PLACE"])\n{code}')
        for name, code in codes.items()
    ]
    run_jobs('four', jobs, [{'PLACE': 'one'}, {'PLACE': 'two'}])
    assert [job.log.read_text().strip() for job in jobs] == ['one', 'two', 'two', 'two']


def test_exit_code_2_is_the_users_error(tmp_path):
    code = 'import sys; print("error: no such folder: x", file=sys.stderr); sys.exit(2)'
    with pytest.raises(InputError, match='^BL: no such folder: x$'):
        run_jobs('one', [python_job(tmp_path, 'BL', code)])


def test_a_failure_shows_the_log_and_stops_the_others(tmp_path):
    marker = tmp_path / 'finished'
    slow = python_job(
        tmp_path, 'slow', f'import time, pathlib; time.sleep(30); pathlib.Path({str(marker)!r}).touch()'
    )
    started = time.monotonic()
    with pytest.raises(RunFailedError, match='ValueError: broken'):
        run_jobs('two', [python_job(tmp_path, 'bad', 'raise ValueError("broken")'), slow], [{}, {}])
    assert time.monotonic() - started < 30 and not marker.exists()


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_no_job_outlives_its_caller(tmp_path, number):
    """Slurm's time limit, a closed terminal, Ctrl-C: the jobs have sessions of their own and must be told."""
    log = tmp_path / 'slow.log'
    job = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
    code = (
        # In a suite that runs in the background, or under nohup, they are ignored, which children inherit.
        'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); '
        'signal.signal(signal.SIGHUP, signal.SIG_DFL); '
        'import sys; from pathlib import Path; from sd_pretrain.jobs import run_jobs; '
        'from sd_pretrain.process import Job; '
        f'run_jobs("one", [Job("slow", [sys.executable, "-c", {job!r}], Path({str(log)!r}))])'
    )
    repo = Path(__file__).resolve().parents[2]
    caller = subprocess.Popen(
        [sys.executable, '-c', code],
        cwd=repo,
        env={**os.environ, 'PYTHONPATH': str(repo)},
        stderr=subprocess.PIPE,
    )
    while not (log.is_file() and log.read_text().endswith('\n')):
        assert caller.poll() is None
        time.sleep(0.1)
    caller.send_signal(number)
    caller.communicate()
    assert caller.returncode != 0
    with pytest.raises(ProcessLookupError):
        os.kill(int(log.read_text()), 0)


def test_two_callers_do_not_write_into_one_work_dir(tmp_path):
    job = python_job(tmp_path, 'BL', 'import time; print("first", flush=True); time.sleep(60)')
    first = start(job)
    try:
        assert is_locked(job.log)
        with pytest.raises(InputError, match=f'another process is at work in {tmp_path}'):
            run_jobs('again', [job])
    finally:
        stop(first)
    assert not is_locked(job.log)
    run_jobs('now', [python_job(tmp_path, 'BL', 'print("second")')])
    assert job.log.read_text() == 'second\n'


@pytest.mark.skipif(sys.platform != 'linux', reason="the kernel tells children of their parent's death")
def test_a_job_dies_with_a_killed_caller(tmp_path):
    log = tmp_path / 'slow.log'
    job = 'import os, time; print(os.getpid(), flush=True); time.sleep(60)'
    code = (
        'import sys; from pathlib import Path; from sd_pretrain.process import Job, start; '
        f'start(Job("slow", [sys.executable, "-c", {job!r}], Path({str(log)!r}))).wait()'
    )
    caller = subprocess.Popen([sys.executable, '-c', code], cwd=Path(__file__).resolve().parents[2])
    while not (log.is_file() and log.read_text().endswith('\n')):
        assert caller.poll() is None
        time.sleep(0.1)
    caller.kill()
    caller.wait()
    deadline = time.monotonic() + 30
    while is_locked(log):
        assert time.monotonic() < deadline, 'the job goes on without its caller'
        time.sleep(0.1)
