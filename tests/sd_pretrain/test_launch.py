import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError
from sd_pretrain.launch import check_gpus, cpu_share, places

ROOT = Path(__file__).resolve().parents[2]
_IMPORT = re.compile(r'(import|from) \w')


@pytest.mark.parametrize(
    'environment, expected',
    [
        ({}, 4),  # this test's own 16 CPUs, 4 processes, no GPU
        ({'SLURM_CPUS_PER_TASK': '6'}, 6),  # srun: one process a task
        ({'SLURM_CPUS_PER_TASK': '16', 'LOCAL_WORLD_SIZE': '8'}, 2),  # torchrun within one task
    ],
)
def test_cpus_of_one_process(monkeypatch, environment, expected):
    for name in ('SLURM_CPUS_PER_TASK', 'LOCAL_WORLD_SIZE'):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    assert cpu_share(4) == expected


@pytest.mark.parametrize('gpus, expected', [(1, 4), (4, 1)])
@pytest.mark.parametrize('tool', ['table2', 'table3'])
def test_as_many_runs_side_by_side_as_there_are_gpus_for(run_tool, monkeypatch, tool, gpus, expected):
    """Four small networks share a GPU; a run of several has them to itself."""
    monkeypatch.setattr('torch.cuda.is_available', lambda: True)
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    asked = []

    def run(*what, **settings):
        asked.append(settings['parallel'] if settings else what[0].parallel)
        raise InputError('enough')

    monkeypatch.setattr(f'sd_pretrain.{tool}.run_{tool}', run)
    assert run_tool(f'{tool}.py', '--gpus', gpus) == 2
    assert asked == [expected]


def test_too_many_runs_side_by_side(monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    check_gpus(2, 2)
    check_gpus(1, 9, share=True)
    with pytest.raises(InputError, match=r'6 GPUs asked for by 3 runs of 2 side by side, .* \(--parallel\)'):
        check_gpus(2, 3)


@pytest.mark.parametrize(
    'parallel, gpus, visible, expected',
    [
        (2, 2, None, ['0,1', '2,3']),
        (2, 2, '4,5,6,7', ['4,5', '6,7']),
        (3, 1, '4,5,6,7', ['4', '5', '6']),
        (6, 1, None, ['0', '1', '2', '3', '0', '1']),
    ],
)
def test_every_place_has_gpus_of_its_own_as_far_as_they_go(monkeypatch, parallel, gpus, visible, expected):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    monkeypatch.delenv('CUDA_VISIBLE_DEVICES')
    if visible:
        monkeypatch.setenv('CUDA_VISIBLE_DEVICES', visible)
    assert [one['CUDA_VISIBLE_DEVICES'] for one in places(parallel, gpus)] == expected


def test_places_without_gpus_share_the_cores_unless_the_user_says(monkeypatch):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 0)
    monkeypatch.delenv('OMP_NUM_THREADS', raising=False)
    # Nine of them are for this process, whatever the machine has.
    monkeypatch.setattr(os, 'cpu_count', lambda: 99)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: set(range(9)), raising=False)
    assert places(2, 2) == [{'OMP_NUM_THREADS': '2'}] * 2
    monkeypatch.setenv('OMP_NUM_THREADS', '3')
    assert places(2, 1) == [{}, {}]


@pytest.mark.parametrize(
    'command, user, expected',
    [
        (['tools/train.py'], {}, '10000'),
        (['-m', 'transfer.finetune'], {}, '10000'),
        (['tools/train.py'], {'GOMP_SPINCOUNT': '7'}, '7'),
    ],
    ids=['train', 'finetune', 'user'],
)
def test_waiting_threads_soon_leave_their_core_to_others(command, user, expected):
    env = {key: value for key, value in os.environ.items() if not key.startswith(('GOMP_', 'OMP_'))}
    env |= user | {'OMP_DISPLAY_ENV': 'VERBOSE', 'PYTHONPATH': str(ROOT)}
    found = subprocess.run(
        [sys.executable, *command, '--help'], env=env, cwd=ROOT, capture_output=True, text=True
    )
    # What OpenMP itself says that it has read.
    assert f"GOMP_SPINCOUNT = '{expected}'" in found.stderr


@pytest.mark.parametrize('path', sorted((ROOT / 'tools').glob('*.py')), ids=lambda path: path.stem)
def test_no_tool_loads_pytorch_before_the_packages_say_how_it_waits(path):
    imports = [line.split()[1].split('.')[0] for line in path.read_text().splitlines() if _IMPORT.match(line)]
    assert not {'torch', 'torchvision', 'timm', 'mmengine'} & set(imports)


def test_a_shell_tool_starts_from_any_folder(tmp_path):
    command = ['bash', str(ROOT / 'tools' / 'table2.sh'), '--help']
    env = {**os.environ, 'VIRTUAL_ENV': sys.prefix}
    done = subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 'usage: tools/table2.sh' in done.stdout


@pytest.mark.parametrize('tool', ['table2', 'table3', 'table4', 'table5', 'train_generations'])
def test_shell_tools_differ_in_their_name_alone(tool):
    lines = (ROOT / 'tools' / f'{tool}.sh').read_text().splitlines()
    assert lines[0] == '#!/usr/bin/env bash' and lines[1].startswith('# ')
    assert lines[2:] == ['source "$(dirname "$0")/env.sh"', f'exec "$PYTHON" tools/{tool}.py "$@"']
