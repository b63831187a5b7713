"""A resume that would not go on as the run began is refused, and says what differs."""

import os

import pytest
import torch

from sd_pretrain.exact_resume import check_settings


@pytest.mark.parametrize(
    'options, differences',
    [
        (['total_batch_size=8'], ['total_batch_size was 12, now 8']),
        (['model.network=test_vit'], ['model.network was test_resnet, now test_vit']),
        (['custom_hooks.0.temperature=3.0'], ['SnapshotDistillationHook.temperature was 2.0, now 3.0']),
        (['custom_hooks.0.distill=False'], ['SnapshotDistillationHook.distill was True, now False']),
        (['randomness.seed=1'], ['randomness.seed was 0, now 1']),
        (
            ['custom_hooks.0.ends=[1,4]', 'param_scheduler.0.periods=[1,3]'],
            ['periods was [2, 2], now [1, 3]', 'ends was [2, 4], now [1, 4]'],
        ),
        (
            [
                'custom_hooks.0.ends=[2,3,4]',
                'param_scheduler.0.periods=[2,1,1]',
                'param_scheduler.0.restart_weights=[1,1,1]',
            ],
            ['ends was [2, 4], now [2, 3, 4]'],
        ),
        (
            ['optim_wrapper.accumulative_counts=2', 'optim_wrapper.clip_grad.max_norm=1'],
            [
                'optim_wrapper.accumulative_counts was not set, now 2',
                "optim_wrapper.clip_grad was not set, now {'max_norm': 1}",
            ],
        ),
        (
            ['optim_wrapper.paramwise_cfg.norm_decay_mult=0', 'optim_wrapper.optimizer.lr=0.2'],
            ["paramwise_cfg was not set, now {'norm_decay_mult': 0}", "optimizer was not set, now {'type'"],
        ),
        (
            ['train_dataloader.dataset.size=40', 'data_preprocessor.jitter=0.9', '--amp'],
            [
                'train_dataloader.dataset.size was 32, now 40',
                'data_preprocessor.jitter was 0.1, now 0.9',
                'optim_wrapper.type was OptimWrapper, now Bf16OptimWrapper',
            ],
        ),
        (
            ['train_dataloader.sampler.shuffle=False', 'train_dataloader.drop_last=False'],
            [
                "sampler was {'type': 'DefaultSampler', 'shuffle': True}, now {'type': 'DefaultSampler', 's",
                'train_dataloader.drop_last was True, now False',
            ],
        ),
        (
            ['train_cfg.max_epochs=6', 'custom_hooks.0.ends=[2,6]', 'param_scheduler.0.periods=[2,4]'],
            ['train_cfg.max_epochs was 4, now 6'],
        ),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    run_tool, four_epoch_run, four_epochs, image_folder, tmp_path, capfd, options, differences
):
    checkpoint = four_epoch_run('sd') / 'epoch_2.pth'
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    arguments = [four_epochs['sd'], '--resume', checkpoint, *places, '--cfg-options', *options]
    assert run_tool('train.py', *arguments) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f'error: {checkpoint} is of a run with other settings: ')
    assert all(difference in line for difference in differences), line
    assert not (tmp_path / 'new').exists()


@pytest.mark.parametrize(
    'later, least',
    [
        (('optim_wrapper.type', 'train_dataloader.', 'data_preprocessor.'), 8),
        (('train_dataloader.sampler', 'train_dataloader.drop_last', 'train_dataloader.collate_fn'), 3),
    ],
)
def test_a_checkpoint_of_an_earlier_state_says_nothing_of_images(four_epoch_run, later, least):
    content = torch.load(four_epoch_run('sd') / 'epoch_2.pth', weights_only=False)
    now = content['meta']['run_settings']
    before = {key: value for key, value in now.items() if not key.startswith(later)}
    assert len(now) - len(before) >= least
    check_settings(now, {'meta': {'run_settings': before, 'epoch': 2}}, 'epoch_2.pth')


def test_a_resume_from_within_an_epoch_is_refused(run_tool, four_epochs, image_folder, tmp_path, capfd):
    places = ['--work-dir', tmp_path / 'work', '--data-root', image_folder, '--stop-after', '2']
    checkpoints = ['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=1']
    assert run_tool('train.py', four_epochs['sd'], *places, '--cfg-options', *checkpoints) == 0
    assert run_tool('train.py', four_epochs['sd'], *places, '--resume', tmp_path / 'work' / 'iter_3.pth') == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(
        'error: iteration 3, of the checkpoint to resume from, is not the end of 1 epochs of 2'
    )


def test_a_resume_with_another_number_of_processes_is_refused(
    run_tool, four_epoch_run, four_epochs, image_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    resume = ['--resume', four_epoch_run('sd') / 'epoch_2.pth', '--check', '--gpus', 2]
    assert run_tool('train.py', four_epochs['sd'], *resume, *places) == 2
    assert 'number of processes was 1, now 2;' in capfd.readouterr().err
