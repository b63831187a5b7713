"""What tools/train.py refuses in one line before it trains anything."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

from sd_pretrain.work_dir import alone_in


def test_check_only_writes_nothing(run_tool, tiny_config, image_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    assert run_tool('train.py', tiny_config, '--check', '--gpus', 2, *places) == 0
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'options, message',
    [
        (['model.num_classes=5'], 'has 4 classes, the config has model.num_classes=5'),
        (['model.network=resnet19'], "no network 'resnet19'"),
        (['custom_hooks.0.ends=[2,4]'], 'ends [2, 4], run length 3'),
        (
            ['custom_hooks.0.ends=[1,3]'],
            'end at [2, 3], the mini-generations of SnapshotDistillationHook at [1, 3] (epochs)',
        ),
        (['custom_hooks=[]'], '0 SnapshotDistillationHook'),
        (['custom_hooks.0.ends=3'], 'must be a list, such as [45, 90], found 3'),
        (
            ['custom_hooks.0.temprature=3'],
            'no setting temprature; it takes ends, distill, teacher, teacher_options, temperature',
        ),
        (['custom_hooks.0.temperature=0'], 'must be positive, found 0'),
        (
            ['custom_hooks.0.lambda_s=1+1/3'],
            "lambda_s of SnapshotDistillationHook must be a number, found '1+1",
        ),
        (
            ['custom_hooks.0.lambda_t=None'],
            'lambda_t of SnapshotDistillationHook must be a number, found None',
        ),
        (['val_evaluator.topk=[1]'], 'in val_evaluator a TopKAccuracy with topk=(1, 5)'),
        (['val_dataloader=None', 'val_evaluator=None', 'val_cfg=None'], 'needs a val_dataloader'),
        (['train_cfg.val_begin=4'], 'a val_begin of at most 3'),
        (['train_dataloader.batch_size=4'], 'follows from total_batch_size'),
        (['total_batch_size=64'], '24 training images are less than one batch of 64'),
    ],
)
def test_settings_that_do_not_fit(refused, tiny_config, options, message):
    assert message in refused(tiny_config, '--cfg-options', *options)


@pytest.mark.parametrize(
    'setting, message',
    [
        (
            "train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=9, val_interval=3)",
            'train_cfg has no max_epochs',
        ),
        (
            "custom_hooks = [*_base_.custom_hooks, dict(type='EMAHook')]",
            'EMAHook has averaged weights validated',
        ),
    ],
)
def test_loops_and_hooks_that_do_not_fit(refused, tiny_config, tmp_path, setting, message):
    config = tmp_path / 'changed.py'
    config.write_text(f"_base_ = '{tiny_config}'\n{setting}\n")
    assert message in refused(config)


def test_arguments_that_another_network_does_not_take(refused, tiny_config):
    line = refused(tiny_config, '--cfg-options', 'model.network=test_efficientnet')
    assert "no test_efficientnet with model.network_args={'zero_init_last': False}" in line
    assert 'network_args=dict(_delete_=True)' in line


def test_synchronised_batch_normalisation_keeps_the_activations(refused, tiny_config, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    config = tmp_path / 'efficient.py'
    model = "dict(network='test_efficientnet', network_args=dict(_delete_=True))"
    config.write_text(f"_base_ = '{tiny_config}'\nmodel = {model}\nsync_bn = 'torch'\n")
    line = refused(config, '--check', '--gpus', '2')
    assert 'plain batch normalisation of the BatchNormAct2d of test_efficientnet' in line


def test_missing_or_broken_config(refused, tmp_path):
    assert 'no config' in refused(tmp_path / 'none.py')
    (tmp_path / 'broken.py').write_text('model = dict(')
    assert 'cannot be read' in refused(tmp_path / 'broken.py')
    (tmp_path / 'other.py').write_text("model = dict(type='FasterRCNN')")
    assert 'no pretraining config' in refused(tmp_path / 'other.py')


def test_missing_data_root(refused, tmp_path):
    assert f'no data root {tmp_path / "nowhere"}' in refused(data_root=tmp_path / 'nowhere')
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize('workers', [0, 1])
def test_damaged_image_is_named_also_by_a_loader_worker(
    refused, tiny_config, image_folder, tmp_path, workers
):
    root = shutil.copytree(image_folder, tmp_path / 'data')
    damaged = root / 'ILSVRC2012' / 'train' / 'n00000003' / '2.JPEG'
    damaged.write_bytes(b'\xff\xd8 broken')
    options = ['--cfg-options', f'train_dataloader.num_workers={workers}']
    line = refused(tiny_config, *options, data_root=root)
    assert f'cannot read image {damaged}' in line


def test_more_gpus_than_there_are(refused, tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    assert '3 GPUs asked for, this machine has 2' in refused(tiny_config, '--check', '--gpus', '3')


def test_more_processes_than_cores_where_there_is_no_gpu(refused, tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    assert 'on its 4 cores ask for at most 4' in refused(tiny_config, '--check', '--gpus', '5')


def test_batch_that_cannot_be_divided(refused, tiny_config, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 4)
    assert 'cannot be divided over 3' in refused(tiny_config, '--check', '--gpus', '3')


def test_launcher_without_its_environment(refused, tiny_config, monkeypatch):
    monkeypatch.delenv('WORLD_SIZE', raising=False)
    assert '--launcher pytorch: ' in refused(tiny_config, '--launcher', 'pytorch')


_HOLDER = """
import os, sys
from sd_pretrain.work_dir import alone_in

with alone_in(sys.argv[1]):
    worker = os.fork()
    print(worker or '', flush=True)
    sys.stdin.read()
"""


def test_a_work_dir_that_another_training_is_at_work_in(refused, tiny_config, tmp_path):
    command = [sys.executable, '-c', _HOLDER, tmp_path / 'new']
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        worker = int(''.join(holder.stdout.readline() for _ in range(2)))
        assert f'another training is at work in {tmp_path}/new' in refused(tiny_config)
        holder.kill()
        holder.wait()
        # Its worker has not noticed yet.
        os.kill(worker, 0)
        with alone_in(tmp_path / 'new'):
            pass
    assert [path.name for path in (tmp_path / 'new').iterdir()] == ['.lock']
