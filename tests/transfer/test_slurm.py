"""A sweep on a real Slurm of one node: submit, scancel, go on with the same command, collect."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torchvision.models import resnet18

from sd_pretrain.cli import InputError
from sd_pretrain.process import Job
from transfer import status
from transfer.slurm import run_slurm, slurm_parameters, submit
from transfer.sweep import SweepRun

REPO = Path(__file__).resolve().parents[2]
SCRIPT = Path(__file__).parent / 'one_node_slurm.sh'
PACKAGES = {'slurmctld': 'slurm-wlm', 'slurmd': 'slurm-wlm', 'munged': 'munge'}


@pytest.fixture(scope='module')
def slurm(tmp_path_factory):
    if os.geteuid():
        pytest.skip('Slurm: its daemons need root')
    missing = sorted({package for program, package in PACKAGES.items() if not shutil.which(program)})
    # Installing is for machines that are there for tests.
    if missing and os.environ.get('SD_TEST_APT') and shutil.which('apt-get'):
        subprocess.run(['apt-get', 'update'], capture_output=True)
        subprocess.run(['apt-get', 'install', '-y', '--no-install-recommends', *missing], capture_output=True)
    if not all(map(shutil.which, PACKAGES)):
        pytest.skip(f'Slurm: {" and ".join(missing)} not installed (SD_TEST_APT=1 installs them)')
    folder = tmp_path_factory.mktemp('slurm')
    subprocess.run([SCRIPT, 'start', folder], check=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv('SLURM_CONF', str(folder / 'slurm.conf'))
        patch.chdir(REPO)
        yield folder
    subprocess.run([SCRIPT, 'stop', folder], check=True)


def wait_for(condition, seconds=180):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def test_a_sweep_is_cancelled_half_way_and_completed(slurm, write_tiny_voc, tmp_path):
    torch.manual_seed(0)
    torch.save(resnet18().state_dict(), tmp_path / 'a.pth')
    data = write_tiny_voc(tmp_path / 'data')
    command = [
        *[sys.executable, 'tools/run_transfer.py', 'seg', 'voc12', '--demo', '--data-root', str(data)],
        *['--work-dir', str(tmp_path / 'w'), '--seeds', '2', f'A={tmp_path / "a.pth"}'],
        *['--slurm', 'partition=main,cpus-per-task=1,time=30', '--gpus-per-job', '0'],
        *['--cfg-options', 'train_cfg.max_epochs=8', 'total_batch_size=2'],
    ]
    environment = {**os.environ, 'PYTHONPATH': str(REPO)}
    folder = tmp_path / 'w' / 'seg_voc12'
    first = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    run = folder / 'A' / 'seed0'
    wait_for(lambda: (run / 'epoch_2.pth').is_file() or first.poll() is not None)
    assert first.poll() is None, first.communicate()
    jobs = status.read_jobs(folder)
    assert [place.split('_')[1] for place in jobs.values()] == ['0', '1'], 'one array'
    assert status.sweep_status(folder)[0].state == 'running'
    subprocess.run(['scancel', jobs['A/seed0']], check=True)
    out, err = first.communicate(timeout=240)
    assert first.returncode == 1 and '1 of 2 runs failed; the same command goes on' in err, out + err
    assert [one.state for one in status.sweep_status(folder)] == ['failed', 'done']
    other = (folder / 'A/seed1/result.json').read_text()

    again = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert again.returncode == 0, again.stdout + again.stderr
    assert 'A/seed1: finished before' in again.stdout and '1 jobs submitted' in again.stdout
    assert (folder / 'A/seed1/result.json').read_text() == other
    assert json.loads((run / 'result.json').read_text())['seed'] == 0
    assert 'resumed epoch:' in (run / 'stdout.log').read_text()
    assert 'seed 0' in again.stdout and 'seed 1' in again.stdout


def test_jobs_in_the_queue_are_found_again(slurm, tmp_path, capsys):
    folder = tmp_path / 'det_x'
    asked = slurm_parameters('partition=main', 0)
    code = f'sleep 4; echo "{{}}" > {folder}/A/seed0/result.json'
    run = SweepRun(folder / 'A/seed0', Job('A', ['sh', '-c', code], folder / 'A/seed0' / status.LOG))
    status.write_jobs(folder, {run.key: submit([run], folder, asked, None)[0]})
    run_slurm('again', [run], folder, asked, None)
    assert 'submitted' not in capsys.readouterr().out
    assert status.sweep_status(folder)[0].state == 'done'


def test_a_partition_that_is_not_there_is_named(slurm, tmp_path):
    folder = tmp_path / 'det_x'
    run = SweepRun(folder / 'A/seed0', Job('A', ['true'], folder / 'A/seed0' / status.LOG))
    with pytest.raises(InputError, match=r'Slurm takes no jobs: .*partition'):
        run_slurm('one', [run], folder, slurm_parameters('partition=nowhere', 0), None)
    with pytest.raises(InputError, match=r'--gpus-per-job 0'):
        run_slurm('one', [run], folder, slurm_parameters('partition=main', 1), None)
