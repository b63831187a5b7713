"""Jobs: progress read off log lines, failures passed on, the others stopped."""

import sys
import time

import pytest

from sd_pretrain.cli import InputError
from transfer.jobs import Job, JobProgress, run_jobs

TRAIN_LINE = (
    '11/23 02:45:00 - mmengine - INFO - Epoch(train)  [3][10/40]  lr: 1.0000e-02  '
    'eta: 0:01:30  time: 0.5000  data_time: 0.0100  loss: 1.2345'
)


def python_job(tmp_path, name, code):
    return Job(name, [sys.executable, '-c', code], tmp_path / f'{name}.log')


def test_progress_is_elapsed_over_elapsed_plus_eta():
    progress = JobProgress(started=100.0)
    progress.read(TRAIN_LINE, now=130.0)
    assert progress.fraction == pytest.approx(30 / (30 + 90))
    assert str(progress) == 'epoch [3][10/40]  loss 1.234  eta 1:30'


def test_progress_never_goes_back():
    progress = JobProgress(started=0.0)
    progress.read(TRAIN_LINE, now=270.0)
    progress.read(TRAIN_LINE.replace('0:01:30', '1 day, 0:00:00'), now=271.0)
    assert progress.fraction == pytest.approx(0.75)


def test_output_goes_to_the_log_and_every_job_runs(tmp_path, capsys):
    jobs = [python_job(tmp_path, name, f'print("hello from {name}")') for name in ('BL', 'SD', 'SE')]
    run_jobs('three', jobs, parallel=2)
    assert [job.log.read_text() for job in jobs] == [f'hello from {n}\n' for n in ('BL', 'SD', 'SE')]
    assert 'three' in capsys.readouterr().out


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
    with pytest.raises(RuntimeError, match='ValueError: broken'):
        run_jobs('two', [python_job(tmp_path, 'bad', 'raise ValueError("broken")'), slow], parallel=2)
    assert time.monotonic() - started < 30 and not marker.exists()
