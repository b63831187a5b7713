"""Training in generations, and the configs of the systems that are taught by another run."""

import json
from pathlib import Path

import pytest
import torch
from cifar_common import write_cifar
from mmengine.registry import MODELS

from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.cli import InputError
from sd_pretrain.generations import first_config
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.teacher_source import check_teacher_source, teacher_spec

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / 'configs' / 'cifar100'
TAUGHT = sorted(
    path.name
    for family in ('ban', 'kd', 'refinery', 'tolerant')
    for path in CONFIGS.glob(f'{family}_*.py')
    if not path.name.startswith('tolerant_first')
)
# Temperature, weight of the labels, weight of the teacher, both logits divided.
LOSSES = {
    'ban': (1, 1, 1, False),
    'kd': (4, 0.1, 0.9, True),
    'refinery': (1, 0, 1, False),
    'tolerant': (1, 1, 1, False),
}
SHORT = [
    'model.num_classes=4',
    'total_batch_size=10',
    'custom_hooks.0.ends=[1]',
    'train_cfg.max_epochs=1',
    'param_scheduler.0.periods=[1]',
    'default_hooks.logger.interval=1',
]


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp('cifar'))


def test_each_family_is_there():
    assert {name.split('_')[0] for name in TAUGHT} == set(LOSSES)


@pytest.mark.parametrize('name', TAUGHT)
def test_a_taught_config_agrees_with_its_first_generation(name, tmp_path):
    """Same data and schedule; the checkpoint that it names is where that run leaves its last snapshot."""
    cfg, first = load_config(CONFIGS / name), load_config(first_config(CONFIGS / name))
    hook = mini_generations(cfg)
    lambda_t, symmetric = hook.get('lambda_t', 1), hook.get('symmetric', False)
    assert (hook.temperature, hook.lambda_s, lambda_t, symmetric) == LOSSES[name.split('_')[0]]
    assert hook.teacher.checkpoint == f'{first.work_dir}/snapshot_{len(mini_generations(first).ends)}.pth'
    assert (cfg.train_cfg, cfg.total_batch_size) == (first.train_cfg, first.total_batch_size)
    assert not mini_generations(first).distill
    # The network of the first generation is what the teacher is said to be.
    snapshot = TimmClassifier(first.model.network, num_classes=100).state_dict()
    torch.save({'meta': {'arch': first.model.network}, 'state_dict': snapshot}, tmp_path / 'teacher.pth')
    teacher = {**hook.teacher, 'checkpoint': str(tmp_path / 'teacher.pth')}
    check_teacher_source(teacher, cfg.model, cfg.train_cfg.max_epochs)
    assert teacher_spec(teacher)['from_epoch'] == 0


@pytest.mark.parametrize('net', ['resnet20', 'resnet56', 'resnet110', 'densenet100'])
def test_only_the_first_generation_of_a_tolerant_teacher_is_tolerant(net):
    first, later = (load_config(CONFIGS / f'tolerant_{part}{net}.py') for part in ('first_', ''))
    assert MODELS.build(first.model).tolerance == {'weight': 0.5, 'classes': 5}
    assert 'tolerance' not in later.model


@pytest.fixture(scope='module')
def train(run_tool, jobs_here):
    """``train(*arguments)`` is tools/train_generations.py, its trainings in this process."""

    def run(*arguments):
        with jobs_here():
            return run_tool('train_generations.py', *arguments, '--cfg-options', *SHORT)

    return run


@pytest.fixture(scope='module')
def trained(train, cifar, tmp_path_factory):
    """Work dir of two generations of the tolerant teacher, in a folder that --cfg-options would part."""
    work_dir = tmp_path_factory.mktemp('generations') / 'my disk, 2'
    places = ['--data-root', cifar.parent, '--work-dir', work_dir]
    config = CONFIGS / 'tolerant_resnet20.py'
    assert train(config, 2, *places) == 0
    return work_dir, [config, 3, *places]


def log_of(work_dir):
    return ''.join(path.read_text() for path in work_dir.glob('*/*.log'))


def lines(work_dir):
    return [
        json.loads(line)
        for path in work_dir.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
        if 'loss' in json.loads(line)
    ]


def test_the_first_is_tolerant_and_the_second_taught_by_it(trained):
    first, second = (lines(trained[0] / f'generation_{k}') for k in (1, 2))
    for row in first:
        assert 'loss_kl' not in row
        assert row['loss'] == pytest.approx(row['loss_ce'] + row['loss_tolerance'])
    assert all('loss_tolerance' not in row and row['loss_kl'] > 0 for row in second)
    said = f'From epoch 1 on {trained[0]}/generation_1/snapshot_1.pth teaches'
    assert said in log_of(trained[0] / 'generation_2')


def test_the_table_has_each_generation_s_error(trained):
    content = json.loads((trained[0] / 'generations.json').read_text())
    table = (trained[0] / 'generations.md').read_text().splitlines()
    for k, row in enumerate(content['generations'], 1):
        result = json.loads((trained[0] / f'generation_{k}' / 'result.json').read_text())
        assert (row['top1'], row['seed']) == (result['top1'], k - 1)
        assert table[k + 1].startswith(f'| {k} | tolerant_')
        assert f'| {100 - 100 * result["top1"]:.2f} |' in table[k + 1]
    assert len(content['generations']) == 2


def test_more_generations_go_on_from_those_that_are_there(train, trained):
    work_dir, arguments = trained
    before = (work_dir / 'generation_2' / 'snapshot_1.pth').stat().st_mtime_ns
    assert train(*arguments) == 0
    assert (work_dir / 'generation_2' / 'snapshot_1.pth').stat().st_mtime_ns == before
    assert f'on {work_dir}/generation_2/snapshot_1.pth teaches' in log_of(work_dir / 'generation_3')


def test_after_another_architecture_the_student_s_own_teaches(train, cifar, tmp_path):
    (tmp_path / 'large.py').write_text(f"_base_ = '{CONFIGS}/bl_resnet32.py'\n")
    teacher = "dict(checkpoint='none.pth', network='cifar_resnet32')"
    (tmp_path / 'kd.py').write_text(
        f"_base_ = '{CONFIGS}/bl_resnet20.py'\npatriarch = 'large.py'\n"
        f"custom_hooks = [dict(type='SnapshotDistillationHook', ends=_base_.ends, teacher={teacher})]\n"
    )
    places = ['--data-root', cifar.parent, '--work-dir', tmp_path / 'work']
    assert train(tmp_path / 'kd.py', 3, *places) == 0
    archs = [
        torch.load(tmp_path / f'work/generation_{k}/snapshot_1.pth', weights_only=True)['meta']['arch']
        for k in (1, 2, 3)
    ]
    assert archs == ['cifar_resnet32', 'cifar_resnet20', 'cifar_resnet20']


def test_mistakes(run_tool, tmp_path, capsys):
    assert run_tool('train_generations.py', CONFIGS / 'bl_resnet20.py', 2) == 2
    assert 'no config of taught generations' in capsys.readouterr().err
    assert run_tool('train_generations.py', CONFIGS / 'ban_resnet20.py', 0) == 2
    assert 'at least 1 generation' in capsys.readouterr().err
    (tmp_path / 'odd.py').write_text(f"_base_ = '{CONFIGS}/ban_resnet20.py'\npatriarch = 'gone.py'\n")
    with pytest.raises(InputError, match=r'gone.py, which is not there'):
        first_config(tmp_path / 'odd.py')


@pytest.mark.parametrize(
    'tolerance', [{}, {'weight': -1}, {'weight': 1, 'classes': 1}, {'weight': 1, 'eta': 2}]
)
def test_tolerance_that_cannot_be_used(tolerance):
    with pytest.raises(InputError, match='model.tolerance takes weight'):
        TimmClassifier('cifar_resnet20', num_classes=4, tolerance=tolerance)
