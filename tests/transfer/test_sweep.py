"""Sweeps on this machine through submitit, their status, and what --slurm asks sbatch for."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError, RunFailedError
from sd_pretrain.process import Job, is_locked, start, stop
from transfer import slurm, status
from transfer.slurm import run_slurm, slurm_parameters
from transfer.sweep import SweepRun, run_local

REPO = Path(__file__).resolve().parents[2]
# A run as the sweep sees it: it logs, counts its starts, notes its place, and writes its result last.
RUN = """
import json, os, pathlib, sys, time
here = pathlib.Path(sys.argv[1])
with (here / 'starts').open('a') as file:
    file.write(os.environ.get('PLACE', '-') + os.environ['SD_RUNS_SIDE_BY_SIDE'] + '\\n')
print('running', flush=True)
exec(sys.argv[2])
(here / 'result.json').write_text(json.dumps({'seconds': 2.0}))
"""


def a_run(folder, name, code='pass', seed=0):
    work_dir = folder / name / f'seed{seed}'
    argv = [sys.executable, '-c', RUN, str(work_dir), code]
    return SweepRun(work_dir, Job(f'{name} seed {seed}', argv, work_dir / status.LOG))


def starts(run):
    return (run.work_dir / 'starts').read_text().split()


@pytest.fixture(autouse=True)
def _in_repo(monkeypatch):
    monkeypatch.chdir(REPO)


def test_every_run_has_a_place_to_itself(tmp_path, capsys):
    lock = f'pathlib.Path({str(tmp_path)!r}, os.environ["PLACE"])'
    lone = f'lock = {lock}; lock.mkdir(); time.sleep(1); lock.rmdir()'
    runs = [a_run(tmp_path / 'det_x', name, lone) for name in 'ABC']
    run_local('three', runs, tmp_path / 'det_x', [{'PLACE': 'one'}, {'PLACE': 'two'}])
    assert sorted(starts(run)[0] for run in runs[:2]) == ['one2', 'two2']
    assert len(starts(runs[2])) == 1
    said = capsys.readouterr().out
    assert said.startswith('three\n') and all(f'{name} seed 0: done in 2 s' in said for name in 'ABC')
    assert [run.state for run in status.sweep_status(tmp_path / 'det_x')] == ['done'] * 3


def test_a_failure_leaves_the_others_alone_and_the_next_call_goes_on(tmp_path):
    # The first attempt dies.
    dies = 'if (here / "starts").read_text().count("\\n") == 1: raise ValueError("out of memory")'
    runs = [a_run(tmp_path, 'A', dies), a_run(tmp_path, 'B')]
    with pytest.raises(
        RunFailedError, match=r'(?s)1 of 2 runs failed; the same command .*ValueError: out of'
    ):
        run_local('two', runs, tmp_path, [{}])
    states = {run.name: run for run in status.sweep_status(tmp_path)}
    assert states['B seed 0'].state == 'done'
    assert states['A seed 0'].state == 'failed' and 'ValueError: out of memory' in states['A seed 0'].note
    run_local('the rest', runs[:1], tmp_path, [{}])
    assert [len(starts(run)) for run in runs] == [2, 1]


def test_a_mistake_stops_the_others(tmp_path):
    wrong = a_run(tmp_path, 'A', 'print("error: cannot read image 7.jpg", file=sys.stderr); sys.exit(2)')
    slow = a_run(tmp_path, 'B', 'time.sleep(120)')
    never = a_run(tmp_path, 'C')
    with pytest.raises(InputError, match=r'^A seed 0: cannot read image 7\.jpg$'):
        run_local('three', [wrong, slow, never], tmp_path, [{}, {}])
    assert not is_locked(slow.job.log) and not (slow.work_dir / 'result.json').exists()
    assert not never.work_dir.exists()


def test_a_run_that_is_at_work_elsewhere_is_left_alone(tmp_path):
    run = a_run(tmp_path, 'A', 'time.sleep(120)')
    elsewhere = start(run.job)
    try:
        with pytest.raises(InputError, match='A seed 0: another process is at work in'):
            run_local('again', [run], tmp_path, [{}])
        assert status.read_status(run.work_dir, None, {}).state == 'running'
    finally:
        stop(elsewhere)


@pytest.mark.parametrize('number', [signal.SIGTERM, signal.SIGINT])
def test_nothing_outlives_the_sweep(tmp_path, number):
    run = a_run(tmp_path, 'A', 'time.sleep(120)')
    code = (
        'import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from pathlib import Path; '
        'from sd_pretrain.process import Job; from transfer.sweep import SweepRun, run_local; '
        f'job = Job("A", {run.job.argv!r}, Path({str(run.job.log)!r})); '
        f'run_local("one", [SweepRun(Path({str(run.work_dir)!r}), job)], Path({str(tmp_path)!r}), [{{}}])'
    )
    caller = subprocess.Popen(
        [sys.executable, '-c', code],
        env={**os.environ, 'PYTHONPATH': str(REPO)},
        stdout=subprocess.DEVNULL,
        stderr=(tmp_path / 'stderr').open('w'),
        start_new_session=True,
    )
    while not (run.job.log.is_file() and 'running' in run.job.log.read_text()):
        assert caller.poll() is None
        time.sleep(0.1)
    assert is_locked(run.job.log)
    # As a terminal sends Ctrl-C: to the whole group.
    os.killpg(caller.pid, number)
    assert caller.wait() != 0
    deadline = time.monotonic() + 30
    while is_locked(run.job.log):
        assert time.monotonic() < deadline, 'the run goes on without its sweep'
        time.sleep(0.1)
    assert not (run.work_dir / 'result.json').exists()
    assert 'submitit' not in (tmp_path / 'stderr').read_text()


def test_status_of_each_kind_of_run(tmp_path):
    folder = tmp_path / 'seg_voc12'
    status.write_jobs(folder, {f'A/seed{seed}': f'7_{seed}' for seed in range(4)} | {'B/seed0': None})
    (folder / 'A/seed0').mkdir(parents=True)
    (folder / 'A/seed0/result.json').write_text(json.dumps({'seconds': 100}))
    started = time.strftime('%Y%m%d_%H%M%S', time.localtime(time.time() - 60))
    (folder / 'A/seed1' / started).mkdir(parents=True)
    (folder / 'A/seed1/stdout.log').write_text(
        'train_cfg = dict(max_epochs=3)\n'
        # It goes on, since a minute, from its second epoch.
        '11/23 02:45:00 - mmengine - INFO - Epoch(train)  [3][20/40]  lr: 1.0000e-02  eta: 0:01:00  '
        'time: 0.5000  loss: 1.2345\n'
    )
    (folder / status.JOBS / '7_3_0_log.err').write_text('No module named torch\n')
    queue = {'7_1': ('RUNNING', 'None'), '7_2': ('PENDING', 'Resources')}
    found = [status.read_status(folder / run, job, queue) for run, job in status.read_jobs(folder).items()]
    assert [run.state for run in found] == ['done', 'running', 'waiting', 'failed', 'waiting']
    done, running, pending, failed, _ = found
    assert [run.will_change for run in found] == [False, True, True, False, False]
    assert done.seconds == 100
    assert running.fraction == pytest.approx(2.5 / 3)
    assert running.note == 'epoch [3][20/40]  loss 1.234  eta 1:00'
    assert pending.note == 'pending: Resources'
    assert failed.note == 'ended: No module named torch'
    # A sixth of a run and two whole ones are open, one at a time, of 100 and about 360 seconds.
    assert status.seconds_left(found) == pytest.approx(230 * (2 + 1 / 6), rel=0.02)
    assert status.summary(found) == '1 done, 1 running, 1 failed, 2 waiting; about 8 min left'
    (folder / 'A/seed1/result.json').write_text('{"sec')
    assert 'does not parse' in status.read_status(folder / 'A/seed1', None, {}).note


def test_status_tool(run_tool, tmp_path, capsys):
    assert run_tool('status.py', tmp_path) == 2
    assert capsys.readouterr().err.startswith(f'error: no runs in {tmp_path}')
    work_dir = tmp_path / 'det_voc07' / 'BL' / 'seed0'
    work_dir.mkdir(parents=True)
    (work_dir / 'result.json').write_text('{"seconds": 3.0}')
    assert run_tool('status.py', tmp_path, '--watch') == 0
    said = capsys.readouterr().out
    assert 'det_voc07' in said and 'BL seed 0' in said and '1 done, 0 running' in said


def test_what_slurm_is_asked_for():
    assert slurm_parameters('partition=main,account=me,exclude=n1,n2,time=2-12:30:00', gpus=2) == {
        'time': 60 * 60 + 30,
        'gpus_per_node': 2,
        'additional_parameters': {'partition': 'main', 'account': 'me', 'exclude': 'n1,n2'},
    }
    assert slurm_parameters('gres=gpu:a100:1', gpus=1) == {
        'time': 24 * 60,
        'additional_parameters': {'gres': 'gpu:a100:1'},
    }
    cores = slurm_parameters('cpus-per-task=8', gpus=0)
    assert cores == {'time': 24 * 60, 'cpus_per_task': 8, 'srun_args': ['--cpus-per-task=8']}
    minutes = {'90': 90, '90:30': 91, '1:30:00': 90, '1-0': 1440, '1-0:30': 1470, '0:10': 1}
    assert {text: slurm_parameters(f'time={text}', 0)['time'] for text in minutes} == minutes
    for wrong, message in (
        ('main', 'KEY=VALUE'),
        ('time=soon', 'time=soon'),
        ('cpus_per_task=many', 'a number is needed'),
    ):
        with pytest.raises(InputError, match=message):
            slurm_parameters(wrong, 1)


@pytest.fixture
def answers(tmp_path, monkeypatch):
    """Put a squeue into the path that gives these answers in turn; it fails where the answer is ``None``."""

    def answer(*texts):
        folder = tmp_path / 'answers'
        folder.mkdir()
        for index, text in enumerate(texts, 1):
            if text is not None:
                (folder / str(index)).write_text(text)
        program = tmp_path / 'bin' / 'squeue'
        program.parent.mkdir()
        program.write_text(
            f'#!/bin/sh\ncd {folder}\necho >> calls\nthis=$(wc -l < calls)\n'
            'if [ -f $this ]; then exec sh $this; fi\necho Socket timed out >&2; exit 1\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv('PATH', f'{program.parent}:{os.environ["PATH"]}')

    return answer


def test_a_queue_that_is_not_seen_for_some_minutes_is_the_one_last_seen(answers, monkeypatch):
    answers(None, 'echo "7_0|RUNNING|None"', None, 'echo "7_0|PENDING|Resources"', None)
    queue = status.SlurmQueue()
    with pytest.raises(InputError, match=r'Slurm does not answer \(squeue: Socket timed out\)'):
        queue()
    assert queue() == queue() == {'7_0': ('RUNNING', 'None')}
    assert queue() == {'7_0': ('PENDING', 'Resources')}
    monkeypatch.setattr(status, '_PATIENCE_SECONDS', -1.0)
    with pytest.raises(InputError, match=r'Socket timed out.* the jobs stay in the queue: the same command'):
        queue()


def slurm_sweep(tmp_path, monkeypatch, grace):
    """Run one job of number 7_0; the seconds of grace are for a job that has left the queue."""
    monkeypatch.setattr(slurm, '_POLL_SECONDS', 0.2)
    monkeypatch.setattr(slurm, '_GRACE_SECONDS', grace)
    monkeypatch.setattr(slurm, 'submit', lambda *_: ['7_0'])
    run = a_run(tmp_path / 'det_x', 'A')
    run.work_dir.mkdir(parents=True)
    run_slurm('one', [run], tmp_path / 'det_x', {}, None)


def test_a_squeue_that_fails_does_not_end_the_sweep(answers, tmp_path, monkeypatch, capsys):
    done = f'echo "{{}}" > {tmp_path}/det_x/A/seed0/result.json'
    # Fails right after the submission too, when no queue has been seen with the job in it.
    answers('true', None, 'echo "7_0|RUNNING|None"', None, None, done)
    slurm_sweep(tmp_path, monkeypatch, grace=0.0)
    assert 'A seed 0: done' in capsys.readouterr().out


def test_a_job_that_slurm_queues_again_and_again_has_grace_each_time(answers, tmp_path, monkeypatch, capsys):
    running, away = 'echo "7_0|RUNNING|None"', 'true'
    done = f'echo "{{}}" > {tmp_path}/det_x/A/seed0/result.json'
    answers('true', running, away, *8 * [running], away, done)
    slurm_sweep(tmp_path, monkeypatch, grace=1.2)
    assert 'A seed 0: done' in capsys.readouterr().out
