"""A run that was stopped at an epoch end and resumed equals the unbroken one, bit for bit."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch

from sd_pretrain.curves import read_curves
from sd_pretrain.exact_resume import check_settings
from sd_pretrain.imagenet import ImageNetFolder
from sd_pretrain.snapshot_hook import TEACHER_KEY

ROOT = Path(__file__).resolve().parents[2]

# Dropout draws from the process's generator, rotation and jitter from the preprocessor's, crops from the
# dataset's: all three kinds of randomness are there.
FOUR_EPOCHS = """
_base_ = '{base}'
total_batch_size = 12
model = dict(network_args=dict(drop_rate=0.2))
param_scheduler = [dict(type='CosineRestartLR', periods={periods}, restart_weights={weights}, eta_min=0,
                        by_epoch=True, convert_to_iter_based=True)]
custom_hooks = [dict(type='SnapshotDistillationHook', ends={ends}, distill={distill}{loss})]
train_cfg = dict(max_epochs=4)
"""
ALGORITHMS = {
    'bl': dict(ends=[4], periods=[4], weights=[1], distill=False, loss=''),
    'se': dict(ends=[2, 4], periods=[2, 2], weights=[1, 1], distill=False, loss=''),
    'sd': dict(ends=[2, 4], periods=[2, 2], weights=[1, 1], distill=True, loss=', temperature=2.0'),
    # Taught out of a file, after the first epoch.
    'file': dict(
        ends=[4], periods=[4], weights=[1], distill=True, loss=', temperature=2.0, teacher={teacher}'
    ),
}
LOGGED = ('epoch', 'iter', 'step', 'lr', 'loss', 'loss_ce', 'loss_kl')


@pytest.fixture(scope='module')
def configs(tiny_config, tmp_path_factory):
    """Configs of BL, SE, SD and a teacher out of a file: four epochs of two iterations."""
    folder = tmp_path_factory.mktemp('exact')
    torch.manual_seed(7)
    teacher = timm.create_model('test_resnet', num_classes=4).state_dict()
    weights = {f'network.{key}': value for key, value in teacher.items()}
    torch.save({'meta': {'arch': 'test_resnet'}, 'state_dict': weights}, folder / 'teacher.pth')
    spec = str({'checkpoint': str(folder / 'teacher.pth'), 'from_epoch': 1})
    for name, settings in ALGORITHMS.items():
        settings = settings | {'loss': settings['loss'].format(teacher=spec)}
        (folder / f'{name}.py').write_text(FOUR_EPOCHS.format(base=tiny_config, **settings))
    return {name: folder / f'{name}.py' for name in ALGORITHMS}


@pytest.fixture(scope='module')
def trained(run_tool, configs, image_folder, tmp_path_factory):
    """``trained(algorithm, *arguments)`` gives the work dir; equal runs are made once."""
    done = {}

    def train(algorithm, *arguments):
        key = (algorithm, *arguments)
        if key not in done:
            done[key] = work_dir = tmp_path_factory.mktemp(algorithm)
            places = ['--work-dir', work_dir, '--data-root', image_folder]
            assert run_tool('train.py', configs[algorithm], *arguments, *places) == 0
        return done[key]

    return train


def load(work_dir, epoch):
    return torch.load(work_dir / f'epoch_{epoch}.pth', weights_only=False)


def logged(work_dir):
    """What the run has logged of each iteration, in order."""
    rows = []
    for path in sorted(work_dir.glob('*/vis_data/scalars.json')):
        rows += [json.loads(line) for line in path.read_text().splitlines()]
    return [{key: row.get(key) for key in LOGGED} for row in rows if 'loss' in row]


def assert_same(one, other, where=''):
    """Equal to the last bit, through dicts and lists."""
    assert type(one) is type(other), where
    if isinstance(one, dict):
        assert one.keys() == other.keys(), where
        for key in one:
            assert_same(one[key], other[key], f'{where}.{key}')
    elif isinstance(one, list | tuple):
        assert len(one) == len(other), where
        for index, pair in enumerate(zip(one, other, strict=True)):
            assert_same(*pair, f'{where}[{index}]')
    elif isinstance(one, torch.Tensor):
        assert torch.equal(one, other), where
    else:
        assert one == other, where


def assert_same_run(unbroken, resumed, stop):
    """Weights, BN buffers, momentum, schedule, teacher and logs of a run resumed after epoch ``stop``."""
    for epoch in range(stop + 1, 5):
        one, other = load(unbroken, epoch), load(resumed, epoch)
        assert (TEACHER_KEY in one) == (TEACHER_KEY in other)
        for key in ('state_dict', 'optimizer', 'param_schedulers', TEACHER_KEY):
            assert_same(one.get(key), other.get(key), f'epoch {epoch}: {key}')
    assert not (resumed / f'epoch_{stop}.pth').exists()
    assert_same(logged(unbroken)[2 * stop :], logged(resumed), 'log')
    assert len(logged(resumed)) == 2 * (4 - stop)


@pytest.mark.parametrize('stop', [1, 2, 3], ids=['before', 'at', 'after'])
@pytest.mark.parametrize('run', [*((name,) for name in ALGORITHMS), ('sd', '--amp')], ids=' '.join)
def test_a_resumed_run_equals_the_unbroken_one(trained, run, stop):
    unbroken = trained(*run)
    resumed = trained(*run, '--resume', unbroken / f'epoch_{stop}.pth')
    assert_same_run(unbroken, resumed, stop)
    weights = [load(unbroken, epoch)['state_dict']['network.fc.weight'] for epoch in (stop, 4)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize('workers', [('1', 'True'), ('2', 'False')], ids=['persistent', 'new each epoch'])
def test_loader_workers_change_nothing(trained, workers, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1}, raising=False)
    number, persistent = workers
    options = [f'train_dataloader.num_workers={number}', f'train_dataloader.persistent_workers={persistent}']
    unbroken = trained('sd')
    assert_same_run(
        unbroken,
        trained('sd', '--resume', unbroken / 'epoch_2.pth', '--cfg-options', *options),
        stop=2,
    )


def test_an_unpinned_seed_is_taken_over(trained):
    options = ['--cfg-options', 'randomness.seed=None']
    unbroken = trained('bl', *options)
    assert_same_run(unbroken, trained('bl', '--resume', unbroken / 'epoch_3.pth', *options), stop=3)


@pytest.mark.parametrize('epoch, same', [(0, True), (2, False)])
def test_each_epoch_crops_anew(image_folder, epoch, same):
    dataset = ImageNetFolder(str(image_folder / 'ILSVRC2012'), size=32)
    state = torch.get_rng_state()
    dataset.set_epoch(7, 0)
    first = dataset.__getitems__([3, 5])[1]['inputs']
    dataset.set_epoch(7, epoch)
    assert torch.equal(dataset.__getitems__([5])[0]['inputs'], first) == same
    assert torch.equal(torch.get_rng_state(), state)


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
            ['train_cfg.max_epochs=6', 'custom_hooks.0.ends=[2,6]', 'param_scheduler.0.periods=[2,4]'],
            ['train_cfg.max_epochs was 4, now 6'],
        ),
    ],
)
def test_a_resume_with_other_settings_is_refused(
    run_tool, trained, configs, image_folder, tmp_path, capfd, options, differences
):
    checkpoint = trained('sd') / 'epoch_2.pth'
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    arguments = [configs['sd'], '--resume', checkpoint, *places, '--cfg-options', *options]
    assert run_tool('train.py', *arguments) == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(f'error: {checkpoint} is of a run with other settings: ')
    assert all(difference in line for difference in differences), line
    assert not (tmp_path / 'new').exists()


def test_a_checkpoint_of_an_earlier_state_says_nothing_of_images(trained):
    now = load(trained('sd'), 2)['meta']['run_settings']
    later = ('optim_wrapper.type', 'train_dataloader.dataset.', 'data_preprocessor.')
    before = {key: value for key, value in now.items() if not key.startswith(later)}
    assert len(now) - len(before) > 5
    check_settings(now, {'meta': {'run_settings': before, 'epoch': 2}}, 'epoch_2.pth')


def test_a_resume_from_within_an_epoch_is_refused(run_tool, configs, image_folder, tmp_path, capfd):
    places = ['--work-dir', tmp_path / 'work', '--data-root', image_folder, '--stop-after', '2']
    checkpoints = ['default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=1']
    assert run_tool('train.py', configs['sd'], *places, '--cfg-options', *checkpoints) == 0
    assert run_tool('train.py', configs['sd'], *places, '--resume', tmp_path / 'work' / 'iter_3.pth') == 2
    line = capfd.readouterr().err.splitlines()[-1]
    assert line.startswith(
        'error: iteration 3, of the checkpoint to resume from, is not the end of 1 epochs of 2'
    )


def test_a_resume_with_another_number_of_processes_is_refused(
    run_tool, trained, configs, image_folder, tmp_path, capfd, monkeypatch
):
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 0)
    monkeypatch.setattr(os, 'cpu_count', lambda: 2)
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    resume = ['--resume', trained('sd') / 'epoch_2.pth', '--check', '--gpus', 2]
    assert run_tool('train.py', configs['sd'], *resume, *places) == 2
    assert 'number of processes was 1, now 2;' in capfd.readouterr().err


def test_a_fork_of_the_first_mini_generation_equals_a_run_of_its_own(
    run_tool, trained, configs, image_folder, tmp_path, capfd
):
    """SE and SD are the same run before anything is taught; later they are not."""
    se, sd = trained('se'), trained('sd')
    forked = trained('sd', '--resume', se / 'epoch_1.pth', '--cfg-options', 'fork=True')
    assert_same_run(sd, forked, stop=1)
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    late = ['--resume', se / 'epoch_3.pth', '--cfg-options', 'fork=True']
    assert run_tool('train.py', configs['sd'], *late, *places) == 2
    assert 'distill was False, now True' in capfd.readouterr().err


# Each process goes through all runs, unbroken and then from each checkpoint, and keeps what it holds at each
# epoch end; then through one whose first validation was killed, and through an evaluation.
TWO_RANKS = """
import shutil, sys
from os import environ
from pathlib import Path
import torch
from mmengine.hooks import Hook
from mmengine.logging import MessageHub, MMLogger
from mmengine.registry import HOOKS, DefaultScope
from mmengine.visualization import Visualizer
from sd_pretrain.train import test, train

RANK = environ['RANK']


@HOOKS.register_module()
class Spy(Hook):
    priority = 'VERY_LOW'

    def keep(self, runner, name):
        model = runner.model.module
        teacher = model.teacher and model.teacher.state_dict()
        student = {key: value.clone() for key, value in model.state_dict().items()}
        optimizer = runner.optim_wrapper.state_dict()
        path = f'{runner.work_dir}/rank{RANK}_{name}.pth'
        torch.save({'teacher': teacher, 'student': student, 'optimizer': optimizer}, path)

    def before_train(self, runner):
        self.keep(runner, 'start')

    def after_train_epoch(self, runner):
        self.keep(runner, runner.epoch + 1)


def run(function, *args, **settings):
    for shared in (MMLogger, MessageHub, Visualizer, DefaultScope):
        shared._instance_dict.clear()
    return function(*args, launcher='pytorch', **settings)


# One process group for all runs: a second one in the same processes hangs.
torch.distributed.init_process_group('gloo')
torch.distributed.init_process_group = torch.distributed.destroy_process_group = lambda *args: None
data_root, seven_images, folder = sys.argv[1:]
for algorithm, amp in (('sd', False), ('sd', True), ('file', False)):
    for stop in (0, 1, 2, 3):
        work_dir = f'{folder}/{algorithm}_amp{amp:d}_{stop}'
        resume = f'{folder}/{algorithm}_amp{amp:d}_0/epoch_{stop}.pth' if stop else None
        workers = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': True}
        run(train, f'{folder}/{algorithm}.py', work_dir=work_dir, data_root=data_root, resume=resume, amp=amp,
            options=workers if stop == 2 else {})
unbroken, killed = Path(folder, 'sd_amp0_0'), Path(folder, 'killed')
if RANK == '0':
    log = next(unbroken.glob('*/vis_data/scalars.json'))
    (killed / log.relative_to(unbroken)).parent.mkdir(parents=True)
    text = log.read_text()
    (killed / log.relative_to(unbroken)).write_text(text[: text.index('{"accuracy')])
    for name in ('epoch_1.pth', 'last_checkpoint'):
        shutil.copy(unbroken / name, killed)
    (killed / 'last_checkpoint').write_text('epoch_1.pth')
torch.distributed.barrier()
run(train, f'{folder}/sd.py', work_dir=killed, data_root=data_root, resume='auto')
found = run(test, f'{folder}/sd.py', unbroken / 'snapshot_2.pth', work_dir=f'{folder}/test',
            data_root=seven_images, options={'total_batch_size': 3})
torch.save(found, f'{folder}/accuracy{RANK}.pth')
"""


@pytest.fixture(scope='module')
def seven_images(image_folder, tmp_path_factory):
    """A data root of seven validation images, and none to train on: one is padding for two processes."""
    root = tmp_path_factory.mktemp('seven')
    val = shutil.copytree(image_folder / 'ILSVRC2012' / 'val', root / 'ILSVRC2012' / 'val')
    (val / 'n00000000' / '0.JPEG').unlink()
    return root


@pytest.fixture(scope='module')
def two_ranks(configs, image_folder, seven_images, tmp_path_factory):
    """Work dirs ``{algorithm}_amp{0,1}_{stop}`` of two gloo processes that both went through all runs."""
    folder = tmp_path_factory.mktemp('two')
    (folder / 'script.py').write_text(TWO_RANKS)
    hook = "custom_hooks = [*_base_.custom_hooks, dict(type='Spy')]"
    for name in ('sd', 'file'):
        (folder / f'{name}.py').write_text(f"_base_ = '{configs[name]}'\n{hook}\n")
    command = [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2']
    done = subprocess.run(
        [*command, folder / 'script.py', image_folder, seven_images, folder],
        env={**os.environ, 'PYTHONPATH': str(ROOT), 'OMP_NUM_THREADS': '1', 'CUDA_VISIBLE_DEVICES': ''},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return folder


@pytest.mark.parametrize('stop', [1, 2, 3], ids=['before', 'at', 'after'])
@pytest.mark.parametrize('run', ['sd_amp0', 'sd_amp1', 'file_amp0'])
def test_two_processes_resume_exactly(two_ranks, run, stop):
    unbroken, resumed = (two_ranks / f'{run}_{start}' for start in (0, stop))
    assert_same_run(unbroken, resumed, stop)
    for rank in (0, 1):
        for epoch in range(stop + 1, 5):
            one, other = (torch.load(path / f'rank{rank}_{epoch}.pth') for path in (unbroken, resumed))
            assert_same(one, other, f'rank {rank}, epoch {epoch}')


@pytest.mark.parametrize('stop', [0, 1, 2, 3])
@pytest.mark.parametrize('algorithm, taught_from', [('sd', 2), ('file', 2)])
def test_two_processes_hold_the_same_student_and_teacher(two_ranks, configs, algorithm, taught_from, stop):
    """After each epoch end, thus after each snapshot, and as soon as a resume begins."""
    work_dir = two_ranks / f'{algorithm}_amp0_{stop}'
    names = [*(['start'] if stop else []), *range(stop + 1, 5)]
    taught = []
    for name in names:
        first, second = (torch.load(work_dir / f'rank{rank}_{name}.pth') for rank in (0, 1))
        assert_same(first, second, f'{name}')
        taught.append(first['teacher'] is not None)
        if algorithm == 'file' and taught[-1]:
            wanted = torch.load(configs['file'].with_name('teacher.pth'), weights_only=True)['state_dict']
            assert_same(first['teacher'], {key.removeprefix('network.'): wanted[key] for key in wanted})
    # The file is read as its first epoch begins, which at the start of a resume is still to come.
    at_start = algorithm == 'sd' and stop >= taught_from
    assert taught == [at_start if name == 'start' else name >= taught_from for name in names]


def test_two_processes_differ_from_one(two_ranks, trained):
    """Each has images and randomness of its own: nothing above holds merely because all is constant."""
    one, two = (logged(path)[0]['loss_ce'] for path in (trained('sd'), two_ranks / 'sd_amp0_0'))
    assert one != two


def test_two_processes_resumed_do_the_validation_that_was_killed(two_ranks):
    """The first epoch has its checkpoint, and no validation in the log."""
    assert read_curves(two_ranks / 'killed').test_error == read_curves(two_ranks / 'sd_amp0_0').test_error


def test_evaluation_by_two_processes_counts_each_image_once(
    two_ranks, configs, seven_images, run_tool, tmp_path, capsys
):
    """A batch of training is not theirs to divide."""
    found = torch.load(two_ranks / 'accuracy0.pth', weights_only=False)
    places = ['--data-root', seven_images, '--work-dir', tmp_path]
    assert run_tool('test.py', configs['sd'], two_ranks / 'sd_amp0_0' / 'snapshot_2.pth', *places) == 0
    said = f'top-1 {found["accuracy/top1"]:.2f}%, top-5 {found["accuracy/top5"]:.2f}%'
    assert said in capsys.readouterr().out
