"""Two gloo processes on the CPU through tools/dist_train.sh."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sd_pretrain.snapshot_hook import TEACHER_KEY

ROOT = Path(__file__).resolve().parents[2]

# Runs before SnapshotDistillationHook (ABOVE_NORMAL) and after the run: what each process holds.
SPY = """
import torch
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.registry import HOOKS


@HOOKS.register_module()
class Spy(Hook):
    priority = 'ABOVE_NORMAL'

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 2:
            self.student = {key: value.clone() for key, value in runner.model.module.state_dict().items()}

    def after_train(self, runner):
        seen = {'student': self.student, 'teacher': runner.model.module.teacher.state_dict()}
        torch.save(seen, f'{runner.work_dir}/rank{get_rank()}.pth')
"""

CONFIG = """
_base_ = '{base}'
custom_imports = dict(imports=[*_base_.custom_imports.imports, 'rank_spy'])
param_scheduler = [dict(type='CosineRestartLR', periods=[1, 1], restart_weights=[1, 1], eta_min=0,
                        by_epoch=True, convert_to_iter_based=True)]
custom_hooks = [
    dict(type='SnapshotDistillationHook', ends=[1, 2], distill=True, temperature=2.0),
    dict(type='Spy'),
]
train_cfg = dict(max_epochs=2)
"""


def dist_train(*arguments, tool='dist_train.sh', **environment):
    environment = {**os.environ, 'VIRTUAL_ENV': sys.prefix, 'OMP_NUM_THREADS': '1', **environment}
    environment['CUDA_VISIBLE_DEVICES'] = ''
    command = ['bash', str(ROOT / 'tools' / tool), *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def two_ranks(tiny_config, image_folder, tmp_path_factory):
    folder = tmp_path_factory.mktemp('dist')
    (folder / 'rank_spy.py').write_text(SPY)
    (folder / 'dist_tiny.py').write_text(CONFIG.format(base=tiny_config))
    arguments = [folder / 'dist_tiny.py', 2, '--data-root', image_folder, '--work-dir', folder / 'work']
    done = dist_train(*arguments, PYTHONPATH=str(folder))
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return folder / 'work'


def test_both_processes_have_the_same_teacher(two_ranks):
    first, second = (torch.load(two_ranks / f'rank{rank}.pth') for rank in (0, 1))
    key = 'bn1.running_mean'
    students = [rank['student'][f'network.{key}'] for rank in (first, second)]
    assert not torch.equal(*students), 'the processes should have seen other images'
    assert first['teacher'].keys() == second['teacher'].keys()
    for name, value in first['teacher'].items():
        assert torch.equal(value, second['teacher'][name]), name
    torch.testing.assert_close(first['teacher'][key], (students[0] + students[1]) / 2)


def test_the_run_leaves_what_a_single_process_leaves(two_ranks):
    names = {path.name for path in two_ranks.iterdir()}
    assert names >= {'snapshot_1.pth', 'snapshot_2.pth', 'epoch_1.pth', 'epoch_2.pth', 'result.json'}
    teacher = torch.load(two_ranks / 'rank0.pth')['teacher']
    snapshot = torch.load(two_ranks / 'snapshot_1.pth', weights_only=True)['state_dict']
    checkpoint = torch.load(two_ranks / 'epoch_2.pth', weights_only=False)
    assert all(key.startswith('network.') for key in checkpoint['state_dict'])
    for name, value in teacher.items():
        assert torch.equal(value, snapshot[f'network.{name}']), name
        assert torch.equal(value, checkpoint[TEACHER_KEY]['state_dict'][name]), name
    assert 0 <= json.loads((two_ranks / 'result.json').read_text())['top1'] <= 1


def test_two_processes_accumulate_gradients(tiny_config, image_folder, tmp_path):
    arguments = [tiny_config, 2, '--data-root', image_folder, '--work-dir', tmp_path / 'work']
    done = dist_train(*arguments, '--cfg-options', 'optim_wrapper.accumulative_counts=3')
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    assert (tmp_path / 'work' / 'result.json').is_file()


def test_mistakes_are_one_line_before_any_process_starts(tmp_path, tiny_config):
    done = dist_train(tiny_config, 2, '--data-root', tmp_path / 'nowhere', '--work-dir', tmp_path / 'work')
    assert done.returncode == 2
    assert 'no data root' in done.stderr.splitlines()[-1]
    assert 'Traceback' not in done.stderr
    done = dist_train(tiny_config, 'two')
    assert done.returncode == 2
    assert 'usage' in done.stderr


def test_a_mistake_found_while_training_is_one_line_and_exit_code_2(tmp_path, tiny_config, image_folder):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    damaged = root / 'ILSVRC2012' / 'train' / 'n00000001' / '3.JPEG'
    damaged.write_bytes(damaged.read_bytes()[:100])
    done = dist_train(tiny_config, 2, '--data-root', root, '--work-dir', tmp_path / 'work')
    assert done.returncode == 2, done.stderr[-2000:]
    errors = [line for line in done.stderr.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and str(damaged) in errors[0]
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'environment, message',
    [
        ({'NNODES': '2x'}, "number of machines, found '2x'"),
        ({'NNODES': '2', 'MASTER_ADDR': '', 'NODE_RANK': '0'}, 'needs MASTER_ADDR'),
        ({'NNODES': '2', 'MASTER_ADDR': 'host', 'NODE_RANK': ''}, 'and NODE_RANK, 0 to 1'),
    ],
)
def test_several_machines_are_told_apart(tiny_config, environment, message):
    done = dist_train(tiny_config, 2, **environment)
    assert done.returncode == 2
    assert message in done.stderr


@pytest.mark.parametrize('gpus', ['0', 'all'])
def test_slurm_launcher_with_a_wrong_number(tiny_config, gpus):
    done = dist_train('partition', 'name', tiny_config, tool='slurm_train.sh', GPUS=gpus)
    assert done.returncode == 2
    assert f"found '{gpus}'" in done.stderr


@pytest.mark.skipif(shutil.which('srun') is not None, reason='would ask Slurm for a job')
def test_slurm_launcher_without_slurm(tiny_config):
    done = dist_train('partition', 'name', tiny_config, tool='slurm_train.sh')
    assert done.returncode == 2
    assert 'no srun here' in done.stderr


@pytest.mark.parametrize('number, said', [(signal.SIGINT, 'interrupted\n'), (signal.SIGTERM, '')])
def test_signals_end_it_without_a_traceback(tmp_path, number, said):
    script = tmp_path / 'train.py'
    script.write_text(
        'import os, time\n'
        'from sd_pretrain.cli import run_main\n'
        # At once, for two processes write to one pipe.
        "run_main(lambda: (os.write(1, b'up\\n'), time.sleep(60)))\n"
    )
    command = [sys.executable, '-m', 'sd_pretrain.torchrun', '--standalone', '--nproc_per_node=2', script]
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    run = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert [run.stdout.readline() for _ in range(2)] == ['up\n'] * 2
    run.send_signal(number)
    assert run.communicate(timeout=60)[1] == said
    assert run.returncode == 128 + number
