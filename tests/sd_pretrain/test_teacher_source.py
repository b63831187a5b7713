"""A checkpoint of another run as the teacher, on tiny runs of the CIFAR networks."""

import json
import os
import shutil

import pytest
import torch
from cifar_common import CONFIGS, EPOCHS, SHORT, checkpoint, same_weights, tiny_training, write_cifar
from mmengine.dataset import DefaultSampler
from mmengine.registry import MODELS

from sd_pretrain.cifar import Cifar100, CropFlipBatchSampler
from sd_pretrain.cli import InputError
from sd_pretrain.losses import sd_loss
from sd_pretrain.prepare import load_config
from sd_pretrain.run_record import fingerprint
from sd_pretrain.snapshot_hook import TEACHER_KEY, SnapshotDistillationHook
from sd_pretrain.teacher import FrozenTeacher
from sd_pretrain.teacher_source import identified, load_teacher, teacher_spec, weights_sha256


def lesson(checkpoint, from_epoch=1):
    return [
        'custom_hooks.0.distill=True',
        'custom_hooks.0.temperature=2.0',
        f'custom_hooks.0.teacher.checkpoint={checkpoint}',
        f'custom_hooks.0.teacher.from_epoch={from_epoch}',
    ]


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp('cifar'))


@pytest.fixture(scope='module')
def train(run_tool, cifar):
    return tiny_training(run_tool, cifar)


@pytest.fixture(scope='module')
def teacher(train, tmp_path_factory):
    """Work dir of a ResNet-20 of another seed."""
    work_dir = tmp_path_factory.mktemp('teacher')
    assert train(work_dir, 'randomness.seed=5') == 0
    return work_dir


@pytest.fixture(scope='module')
def taught(train, teacher, tmp_path_factory):
    """Work dir of a run that ``teacher`` teaches from the second epoch on."""
    work_dir = tmp_path_factory.mktemp('taught')
    assert train(work_dir, *lesson(teacher / 'snapshot_1.pth')) == 0
    return work_dir


def losses(work_dir):
    lines = [
        json.loads(line)
        for path in sorted(work_dir.glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    return [(line['loss_ce'], line.get('loss_kl')) for line in lines if 'loss' in line]


def first_batch(cifar, student, epoch):
    """The images and labels that an epoch of a run with seed 0 begins with."""
    data = Cifar100(str(cifar), padding=4, device='cpu')
    sampler = CropFlipBatchSampler(DefaultSampler(data, seed=0), 8)
    sampler.sampler.set_epoch(epoch)
    return student.data_preprocessor(data.__getitems__(next(iter(sampler))))


def test_it_teaches_from_its_epoch_on_with_its_logits(taught, teacher, train, cifar):
    """The first taught batch has the loss of Eqn 2, computed here out of both checkpoints."""
    kl = [row[1] for row in losses(taught)]
    assert [value is not None for value in kl] == [False] * 3 + [True] * 6
    cfg = load_config(CONFIGS / 'bl_resnet20.py', options={'model.num_classes': 4})
    student, other = (
        MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}) for _ in range(2)
    )
    student.load_state_dict(checkpoint(taught, 1)['state_dict'])
    other.load_state_dict(torch.load(teacher / 'snapshot_1.pth', weights_only=True)['state_dict'])
    batch = first_batch(cifar, student, epoch=1)
    student.train()
    teacher_logits = FrozenTeacher(other.network)(batch['inputs'])
    expected = sd_loss(student(batch['inputs']), teacher_logits, batch['labels'], 2.0)
    assert kl[3] == pytest.approx(expected['loss_kl'].item(), rel=1e-5)


def test_the_student_alone_is_saved_and_trained(taught, teacher):
    last = checkpoint(taught, EPOCHS)
    assert TEACHER_KEY not in last
    assert last['state_dict'].keys() == checkpoint(teacher, EPOCHS)['state_dict'].keys()
    parameters = [key for key in last['state_dict'] if 'running' not in key and 'num_batches' not in key]
    assert len(last['optimizer']['state']) == len(parameters)


@pytest.mark.parametrize('stop', [1, 2], ids=['before', 'after'])
def test_a_resumed_run_equals_the_unbroken_one(train, taught, teacher, tmp_path, stop):
    """The teacher may have moved meanwhile, and lie in an epoch_N.pth: its weights are what counts."""
    moved = tmp_path / 'moved.pth'
    shutil.copy(teacher / f'epoch_{EPOCHS}.pth', moved)
    assert train(tmp_path / 'new', *lesson(moved), resume=taught / f'epoch_{stop}.pth') == 0
    unbroken, resumed = checkpoint(taught, EPOCHS), checkpoint(tmp_path / 'new', EPOCHS)
    assert same_weights(unbroken, resumed)
    assert losses(taught)[3 * stop :] == losses(tmp_path / 'new')
    momentum = [state['optimizer']['state'] for state in (unbroken, resumed)]
    assert all(
        torch.equal(momentum[0][key]['momentum_buffer'], momentum[1][key]['momentum_buffer'])
        for key in momentum[0]
    )


@pytest.mark.parametrize('what', ['teacher', 'epoch', 'none'])
def test_a_resume_with_another_teacher_is_refused(train, taught, teacher, tmp_path, capfd, what):
    options = {
        'teacher': lesson(teacher / 'epoch_1.pth'),
        'epoch': lesson(teacher / 'snapshot_1.pth', from_epoch=2),
        'none': [],
    }[what]
    assert train(tmp_path / 'new', *options, resume=taught / 'epoch_2.pth') == 2
    found = {
        'teacher': 'teacher.checkpoint was weights sha256',
        'epoch': 'teacher.from_epoch was 1, now 2',
        'none': 'teacher.checkpoint was weights sha256',
    }[what]
    assert found in capfd.readouterr().err


def settings_of(path):
    options = {'custom_hooks.0.teacher.checkpoint': str(path)}
    return fingerprint(load_config(CONFIGS / 'ban_resnet20.py', options=options))


def test_the_identity_of_a_run_holds_the_weights_and_not_the_place(teacher, tmp_path):
    copy = shutil.copy(teacher / 'snapshot_1.pth', tmp_path / 'copy.pth')
    assert settings_of(copy) == settings_of(teacher / 'snapshot_1.pth')
    assert settings_of(teacher / 'epoch_1.pth') != settings_of(copy)
    content = torch.load(copy, weights_only=True)
    expected = f'weights sha256 {weights_sha256(content["state_dict"])}'
    assert identified({'checkpoint': str(copy)})['checkpoint'] == expected
    content['state_dict']['network.fc.bias'][0] += 1
    torch.save(content, copy)
    assert settings_of(copy) != settings_of(teacher / 'snapshot_1.pth')


@pytest.mark.parametrize('case', ['gone', 'code', 'classes', 'depth', 'too late', 'unknown network'])
def test_teachers_that_cannot_teach_are_refused_before_the_run(
    run_tool, cifar, teacher, tmp_path, capfd, case
):
    path, options = teacher / 'snapshot_1.pth', []
    if case == 'gone':
        path = tmp_path / 'gone.pth'
    elif case == 'code':
        path = tmp_path / 'code.pth'
        torch.save({'state_dict': {}, 'hook': os.system}, path)
    elif case == 'classes':
        options = ['model.num_classes=3']
    elif case == 'depth':
        options = ['model.network=cifar_resnet32']
    elif case == 'unknown network':
        options = ['custom_hooks.0.teacher.network=resnet_of_nobody']
    epoch = EPOCHS if case == 'too late' else 1
    places = ['--check', '--work-dir', tmp_path / 'work', '--data-root', cifar.parent]
    arguments = ['--cfg-options', *SHORT, *lesson(path, epoch), *options]
    assert run_tool('train.py', CONFIGS / 'bl_resnet20.py', *places, *arguments) == 2
    message = {
        'gone': f'the teacher: no checkpoint {path}',
        'code': 'refused, nothing of it was executed',
        'classes': 'has 4 classes, the student has 3',
        'depth': 'is a cifar_resnet20, expected was a cifar_resnet32',
        'too late': 'after epoch 3 of a run of 3 epochs',
        'unknown network': 'is a cifar_resnet20, expected was a resnet_of_nobody',
    }[case]
    assert message in capfd.readouterr().err
    assert not (tmp_path / 'work').exists()


def test_weights_of_another_shape_without_a_name(teacher, tmp_path):
    content = torch.load(teacher / 'snapshot_1.pth', weights_only=True)
    torch.save({'state_dict': content['state_dict']}, tmp_path / 'nameless.pth')
    network = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match='is no cifar_resnet32 .* weights differ, first'):
        load_teacher({'checkpoint': str(tmp_path / 'nameless.pth')}, 'cifar_resnet32', network, {}, 4)


@pytest.mark.parametrize(
    'teacher, message',
    [
        ('a.pth', "found 'a.pth'"),
        ({'checkpoint': 'a.pth', 'epoch': 3}, r"found \['epoch'\]"),
        ({}, 'needs checkpoint'),
        ({'checkpoint': 'a.pth', 'from_epoch': -1}, 'found -1'),
    ],
)
def test_settings_of_a_teacher_that_make_no_sense(teacher, message):
    with pytest.raises(InputError, match=message):
        SnapshotDistillationHook(ends=[1], teacher=teacher)


def test_defaults():
    assert teacher_spec({'checkpoint': 'a.pth'}) == {
        'checkpoint': 'a.pth',
        'from_epoch': 0,
        'network': None,
        'network_args': None,
    }


def test_another_architecture_teaches_symmetrically(train, cifar, tmp_path):
    """Knowledge distillation, by its config: the divergence of both softened logits, times T^2 and 0.9."""
    assert train(tmp_path / 'large', config='bl_resnet32.py') == 0
    options = [
        f'custom_hooks.0.teacher.checkpoint={tmp_path / "large/snapshot_1.pth"}',
        'custom_hooks.0.teacher.network=cifar_resnet32',
        'model.init_seed=3',
    ]
    assert train(tmp_path / 'small', *options, config='kd_resnet110_resnet20.py') == 0
    kl = [row[1] for row in losses(tmp_path / 'small')]
    assert None not in kl
    cfg = load_config(CONFIGS / 'bl_resnet20.py', options={'model.num_classes': 4, 'model.init_seed': 3})
    student = MODELS.build({**cfg.model, 'data_preprocessor': cfg.data_preprocessor}).train()
    large = MODELS.build({**cfg.model, 'network': 'cifar_resnet32'})
    large.load_state_dict(torch.load(tmp_path / 'large/snapshot_1.pth', weights_only=True)['state_dict'])
    images = first_batch(cifar, student, epoch=0)['inputs']
    logits = (student(images), FrozenTeacher(large.network)(images).float())
    soft, target = ((one / 4).log_softmax(1) for one in logits)
    divergence = (target.exp() * (target - soft)).sum(1).mean()
    assert kl[0] == pytest.approx(0.9 * 4**2 * divergence.item(), rel=1e-5)
    result = json.loads((tmp_path / 'small/result.json').read_text())
    small = torch.load(tmp_path / 'small' / result['checkpoint'], weights_only=True)
    assert small['meta']['arch'] == 'cifar_resnet20'


def test_a_label_refinery_never_sees_the_labels(train, teacher, tmp_path):
    option = f'custom_hooks.0.teacher.checkpoint={teacher / "snapshot_1.pth"}'
    assert train(tmp_path, option, config='refinery_resnet20.py') == 0
    assert all(ce == 0 and kl > 0 for ce, kl in losses(tmp_path))
