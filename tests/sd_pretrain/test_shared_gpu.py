import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sd_pretrain import pretrainings, shared_gpu
from sd_pretrain.launch import places
from sd_pretrain.shared_gpu import CONTROL, sharing

TWO = [{'CUDA_VISIBLE_DEVICES': '5'}, {'CUDA_VISIBLE_DEVICES': '5', 'OMP_NUM_THREADS': '2'}]
# Notes how it is called. NVIDIA's own needs a driver.
STAND_IN = """#!/bin/sh
echo "$*|$CUDA_VISIBLE_DEVICES|$(test -d "$CUDA_MPS_PIPE_DIRECTORY" && echo there)|$(cat)" >> "$NOTES"
"""


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Reads how a service was called that seems to be installed, and that nobody runs."""
    program, notes = tmp_path / 'bin' / CONTROL, tmp_path / 'notes'
    program.parent.mkdir()
    program.write_text(STAND_IN)
    program.chmod(0o755)
    monkeypatch.setenv('PATH', str(program.parent), prepend=os.pathsep)
    monkeypatch.setenv('NOTES', str(notes))
    monkeypatch.delenv('CUDA_MPS_PIPE_DIRECTORY', raising=False)
    monkeypatch.setattr(shared_gpu, '_USERS_OWN', tmp_path / 'nobodys')
    return lambda: notes.read_text().splitlines() if notes.is_file() else []


def test_runs_on_one_gpu_get_a_service_that_ends_with_them(calls, monkeypatch):
    asked = []
    monkeypatch.setattr(shared_gpu, '_serves', lambda place: asked.append(place) or True)
    with sharing(TWO) as given:
        folder = Path(given[0]['CUDA_MPS_PIPE_DIRECTORY'])
        service = {'CUDA_MPS_PIPE_DIRECTORY': str(folder), 'CUDA_MPS_LOG_DIRECTORY': str(folder)}
        # GPU 5 is the only one that the service sees: number 0 to its clients.
        assert given == [{**place, **service, 'CUDA_VISIBLE_DEVICES': '0'} for place in TWO]
        assert calls() == ['-d|5|there|'] and folder.is_dir()
    assert asked == [given[0]]
    assert [call.split('|')[::3] for call in calls()[1:]] == [['', 'quit -t 5']]
    assert not folder.exists()


def test_gpus_are_numbered_as_the_service_sees_them(calls, monkeypatch):
    monkeypatch.setattr(shared_gpu, '_serves', lambda place: True)
    with sharing([{'CUDA_VISIBLE_DEVICES': one} for one in ('6', '4', '6')]) as given:
        assert [one['CUDA_VISIBLE_DEVICES'] for one in given] == ['0', '1', '0']
    assert calls()[0].startswith('-d|6,4|')


def test_the_service_ends_when_a_run_fails(calls, monkeypatch):
    monkeypatch.setattr(shared_gpu, '_serves', lambda place: True)
    with pytest.raises(KeyError, match='a run'), sharing(TWO):
        raise KeyError('a run')
    assert 'quit' in calls()[-1]


def test_a_service_that_serves_nobody_is_ended_and_not_used(calls, monkeypatch):
    monkeypatch.setattr(shared_gpu, '_CLIENT', 'raise SystemExit(1)')
    with sharing(TWO) as given:
        assert given == TWO
    assert [call.split('|')[::3] for call in calls()] == [['-d', ''], ['', 'quit -t 5']]


@pytest.mark.parametrize(
    'ours', [[], [{}, {}], TWO[:1], [{'CUDA_VISIBLE_DEVICES': '0,1'}, {'CUDA_VISIBLE_DEVICES': '2,3'}]]
)
def test_nothing_is_started_where_no_gpu_is_shared(ours, calls):
    with sharing(ours) as given:
        assert given == ours
    assert not calls()


@pytest.mark.parametrize('how', ['says where', 'runs it', 'has none'])
def test_what_the_user_has_stays(how, calls, tmp_path, monkeypatch):
    if how == 'says where':
        monkeypatch.setenv('CUDA_MPS_PIPE_DIRECTORY', str(tmp_path))
    elif how == 'runs it':
        (tmp_path / 'nobodys').mkdir()
    else:
        monkeypatch.setenv('PATH', str(tmp_path))
    with sharing(TWO) as given:
        assert given == TWO
    assert not calls()


def test_a_process_without_a_driver_is_no_client():
    """The code that asks: it runs to its end, and never says yes."""
    done = subprocess.run(
        [sys.executable, '-c', shared_gpu._CLIENT],
        env={**os.environ, 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert not done.stderr or 'libcuda.so.1' in done.stderr


@pytest.mark.cuda
def test_cuda_processes_compute_by_the_service(monkeypatch):
    if shutil.which(CONTROL) is None or shared_gpu._USERS_OWN.exists():
        pytest.skip('no MPS here, or one that is in use')
    monkeypatch.delenv('CUDA_MPS_PIPE_DIRECTORY', raising=False)
    with sharing(places(2, 1)[:1] * 2) as given:
        assert 'CUDA_MPS_PIPE_DIRECTORY' in given[0]
        code = 'import torch; print(int(torch.ones(1000, device="cuda").sum()))'
        for place in given:
            environment = {**os.environ, **place}
            computed = subprocess.run(
                [sys.executable, '-c', code], env=environment, capture_output=True, text=True
            )
            assert computed.stdout == '1000\n', computed.stderr
        served = subprocess.run(
            [CONTROL], input='get_server_list\n', env=environment, capture_output=True, text=True
        )
        assert served.stdout.strip().isdigit()


def test_pretrainings_side_by_side_share_by_it(calls, tmp_path, monkeypatch):
    monkeypatch.setattr(shared_gpu, '_serves', lambda place: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 1)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '3')
    seen = []
    monkeypatch.setattr(pretrainings, 'run_jobs', lambda title, jobs, given: seen.extend(given))
    runs = [pretrainings.Pretraining(str(k), 'config.py', tmp_path / str(k)) for k in range(3)]
    pretrainings.run_pretrainings('three', runs, parallel=4)
    assert [one['CUDA_VISIBLE_DEVICES'] for one in seen] == ['0', '0', '0']
    assert len({one['CUDA_MPS_PIPE_DIRECTORY'] for one in seen}) == 1
    seen.clear()
    pretrainings.run_pretrainings('one', runs[:1], parallel=4)
    assert 'CUDA_MPS_PIPE_DIRECTORY' not in seen[0]
