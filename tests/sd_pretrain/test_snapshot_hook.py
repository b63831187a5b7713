"""Each hook point in turn, on a runner that has what the hook looks at; real runs are in test_train.py."""

import logging
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import ConfigDict
from mmengine.optim.scheduler import CosineRestartLR

from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.cli import InputError
from sd_pretrain.snapshot_hook import TEACHER_KEY, SnapshotDistillationHook
from sd_pretrain.teacher import FrozenTeacher

EPOCH = 5  # iterations


@pytest.fixture
def runner(tmp_path):
    torch.manual_seed(0)
    model = TimmClassifier('test_resnet', num_classes=4)
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    weights = [1, 1, 1]
    scheduler = CosineRestartLR(sgd, periods=[10, 5, 5], restart_weights=weights, eta_min=0, by_epoch=False)
    return SimpleNamespace(
        model=model,
        work_dir=str(tmp_path),
        max_epochs=4,
        iter=0,
        train_dataloader=range(EPOCH),
        param_schedulers=[scheduler],
        cfg=ConfigDict({'optim_wrapper': {'optimizer': {'lr': 0.1}}}),
        logger=logging.getLogger('test'),
    )


def iterate(hook, runner, until):
    """Run the hook through iterations up to ``until``; the student changes in each."""
    while runner.iter < until:
        with torch.no_grad():
            runner.model.network.fc.bias += 1
        hook.after_train_iter(runner, runner.iter % EPOCH)
        runner.iter += 1


def taught_by(runner):
    """How many iterations the teacher has seen, by what ``iterate`` has done to its bias."""
    start = runner.start
    return round((runner.model.teacher.network.fc.bias - start)[0].item())


@pytest.fixture
def hook(runner):
    runner.start = runner.model.network.fc.bias.detach().clone()
    hook = SnapshotDistillationHook(ends=[2, 3, 4], temperature=2.0)
    hook.before_train(runner)
    return hook


def test_the_teacher_is_taken_at_the_end_of_each_mini_generation(hook, runner, tmp_path):
    iterate(hook, runner, 9)
    assert runner.model.teacher is None
    assert list(tmp_path.iterdir()) == []
    iterate(hook, runner, 10)
    assert taught_by(runner) == 10
    iterate(hook, runner, 14)
    assert taught_by(runner) == 10
    iterate(hook, runner, 15)
    assert taught_by(runner) == 15
    iterate(hook, runner, 20)
    assert taught_by(runner) == 15
    assert sorted(path.name for path in tmp_path.iterdir()) == [f'snapshot_{k}.pth' for k in (1, 2, 3)]


def test_a_snapshot_is_tensors_of_the_student_and_a_small_meta(hook, runner, tmp_path):
    iterate(hook, runner, 15)
    snapshot = torch.load(tmp_path / 'snapshot_2.pth', weights_only=True)
    assert snapshot['meta'] == {
        'schema': 1,
        'arch': 'test_resnet',
        'network_args': {},
        'mini_generation': 2,
        'epoch': 3,
        'iter': 15,
    }
    assert snapshot['state_dict'].keys() == runner.model.state_dict().keys()
    for key, value in runner.model.state_dict().items():
        assert torch.equal(snapshot['state_dict'][key], value), key


def test_without_distillation_there_are_snapshots_and_no_teacher(runner, tmp_path):
    hook = SnapshotDistillationHook(ends=[2, 3, 4], distill=False)
    hook.before_train(runner)
    iterate(hook, runner, 20)
    assert runner.model.teacher is None
    assert len(list(tmp_path.iterdir())) == 3


def test_checkpoints_hold_the_teacher_once_there_is_one(hook, runner):
    iterate(hook, runner, 5)
    checkpoint = {}
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint == {}
    iterate(hook, runner, 12)
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint[TEACHER_KEY]['iteration'] == 10
    bias = checkpoint[TEACHER_KEY]['state_dict']['fc.bias']
    torch.testing.assert_close(bias, runner.start + 10)


def resume(runner, iteration, checkpoint):
    runner.iter = iteration
    hook = SnapshotDistillationHook(ends=[2, 3, 4], temperature=3.0)
    hook.after_load_checkpoint(runner, checkpoint)
    hook.before_train(runner)
    return hook


def test_resume_brings_the_same_teacher_back(hook, runner):
    iterate(hook, runner, 10)
    checkpoint, images = {}, torch.randn(2, 3, 32, 32)
    hook.before_save_checkpoint(runner, checkpoint)
    logits = runner.model.teacher(images)
    runner.model.attach_teacher(None)
    resumed = resume(runner, 10, checkpoint)
    assert torch.equal(runner.model.teacher(images), logits)
    again = {}
    resumed.before_save_checkpoint(runner, again)
    assert again[TEACHER_KEY]['iteration'] == 10


@pytest.mark.parametrize('iteration', [10, 11], ids=['at the boundary', 'after it'])
def test_options_reach_the_teacher_also_on_resume(runner, iteration):
    runner.iter = iteration
    options = {'precision': 'float32', 'cuda_graph': False}
    hook = SnapshotDistillationHook(ends=[2, 3, 4], teacher_options=options)
    saved = {'iteration': 10, 'state_dict': FrozenTeacher(runner.model.network).state_dict()}
    hook.after_load_checkpoint(runner, {TEACHER_KEY: saved})
    hook.before_train(runner)
    assert (runner.model.teacher.precision, runner.model.teacher.cuda_graph) == ('float32', False)


@pytest.mark.parametrize(
    'iteration, saved, message', [(11, None, 'has none'), (16, 10, 'has that of iteration 10')]
)
def test_resume_without_the_teacher_that_is_due(runner, iteration, saved, message):
    teacher = saved and {'iteration': saved, 'state_dict': FrozenTeacher(runner.model.network).state_dict()}
    with pytest.raises(InputError, match=message):
        resume(runner, iteration, {TEACHER_KEY: teacher} if saved else {})


def test_resume_right_at_a_boundary_is_taught_by_the_student_it_loads(runner):
    """As where SD goes on with an epoch_N.pth of SE, which holds no teacher."""
    images = torch.randn(2, 3, 32, 32)
    hook = resume(runner, 15, {})
    assert torch.equal(runner.model.teacher(images), FrozenTeacher(runner.model.network)(images))
    checkpoint = {}
    hook.before_save_checkpoint(runner, checkpoint)
    assert checkpoint[TEACHER_KEY]['iteration'] == 15


@pytest.mark.parametrize('iteration', [0, 5, 20])
def test_no_teacher_is_asked_for_in_the_first_mini_generation_or_after_the_run(runner, iteration):
    resume(runner, iteration, {})
    assert runner.model.teacher is None


def test_weights_that_are_merely_loaded_bring_no_teacher(runner):
    teacher = {'iteration': 10, 'state_dict': FrozenTeacher(runner.model.network).state_dict()}
    resume(runner, 0, {TEACHER_KEY: teacher})
    assert runner.model.teacher is None


@pytest.mark.parametrize(
    'ends, message',
    [([2, 3, 5], r'beyond the run: ends \[2, 3, 5\], run length 4'), ([2, 4], r'\[10, 15, 20\].*\[10, 20\]')],
)
def test_ends_that_do_not_fit_the_run_or_the_scheduler(runner, ends, message):
    with pytest.raises(InputError, match=message):
        SnapshotDistillationHook(ends=ends).before_train(runner)


def test_less_than_one_batch_of_data(runner):
    runner.train_dataloader = []
    with pytest.raises(InputError, match='less than one batch'):
        SnapshotDistillationHook(ends=[2, 3, 4]).before_train(runner)
