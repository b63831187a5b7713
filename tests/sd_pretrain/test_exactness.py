"""A run that was stopped at an epoch end and resumed equals the unbroken one, bit for bit."""

import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader

from sd_pretrain.chance import seed_samples
from sd_pretrain.curves import read_curves
from sd_pretrain.imagenet import ImageNetFolder
from sd_pretrain.snapshot_hook import TEACHER_KEY

ROOT = Path(__file__).resolve().parents[2]

LOGGED = ('epoch', 'iter', 'step', 'lr', 'loss', 'loss_ce', 'loss_kl')


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
@pytest.mark.parametrize('run', [('bl',), ('se',), ('sd',), ('file',), ('sd', '--amp')], ids=' '.join)
def test_a_resumed_run_equals_the_unbroken_one(four_epoch_run, run, stop):
    unbroken = four_epoch_run(*run)
    resumed = four_epoch_run(*run, '--resume', unbroken / f'epoch_{stop}.pth')
    assert_same_run(unbroken, resumed, stop)
    weights = [load(unbroken, epoch)['state_dict']['network.fc.weight'] for epoch in (stop, 4)]
    assert not torch.equal(*weights)


@pytest.mark.parametrize('counts, exact', [(2, True), (3, False)])
def test_a_run_that_accumulates_gradients_beyond_an_epoch_says_that_it_is_not_resumed_exactly(
    four_epoch_run, counts, exact
):
    options = ['--cfg-options', f'optim_wrapper.accumulative_counts={counts}']
    unbroken = four_epoch_run('bl', *options)
    resumed = four_epoch_run('bl', '--resume', unbroken / 'epoch_1.pth', *options)
    weights = [load(run, 4)['state_dict']['network.fc.weight'] for run in (unbroken, resumed)]
    assert torch.equal(*weights) == exact
    for run in (unbroken, resumed):
        log = next(run.glob('*/*.log')).read_text()
        assert (f'accumulative_counts={counts} does not divide the 2 iterations of an epoch' in log) != exact


@pytest.mark.parametrize('workers', [('1', 'True'), ('2', 'False')], ids=['persistent', 'new each epoch'])
def test_loader_workers_change_nothing(four_epoch_run, workers, monkeypatch):
    monkeypatch.setattr(os, 'sched_getaffinity', lambda pid: {0, 1}, raising=False)
    number, persistent = workers
    options = [f'train_dataloader.num_workers={number}', f'train_dataloader.persistent_workers={persistent}']
    unbroken = four_epoch_run('sd')
    assert_same_run(
        unbroken,
        four_epoch_run('sd', '--resume', unbroken / 'epoch_2.pth', '--cfg-options', *options),
        stop=2,
    )


def test_an_unpinned_seed_is_taken_over(four_epoch_run):
    options = ['--cfg-options', 'randomness.seed=None']
    unbroken = four_epoch_run('bl', *options)
    assert_same_run(unbroken, four_epoch_run('bl', '--resume', unbroken / 'epoch_3.pth', *options), stop=3)


@pytest.mark.parametrize('epoch, same', [(0, True), (2, False)])
def test_each_epoch_crops_anew(image_folder, epoch, same):
    dataset = ImageNetFolder(str(image_folder / 'ILSVRC2012'), size=32)
    state = torch.get_rng_state()
    dataset.set_epoch(7, 0)
    first = dataset.__getitems__([3, 5])[1]['inputs']
    dataset.set_epoch(7, epoch)
    assert torch.equal(dataset.__getitems__([5])[0]['inputs'], first) == same
    assert torch.equal(torch.get_rng_state(), state)


class Drawing:
    """Samples of all three generators that a pipeline may draw from."""

    def __len__(self):
        return 4

    def __getitem__(self, index):
        return random.random(), np.random.rand(), torch.rand(()).item()


def own_generators():
    """Of torch's, a loader draws itself."""
    return random.getstate(), np.random.get_state()[1].tolist()


@pytest.mark.parametrize('workers', [0, 2])
def test_any_dataset_draws_by_seed_epoch_and_sample_alone(workers):
    dataset = ConcatDataset([Drawing(), Drawing()])
    seed_samples(dataset)
    loader = DataLoader(
        dataset, batch_size=3, collate_fn=list, num_workers=workers, persistent_workers=workers > 0
    )
    before, epochs = own_generators(), []
    for epoch in (0, 1, 0):
        dataset.set_epoch(7, epoch)
        epochs.append([sample for batch in loader for sample in batch])
    assert own_generators() == before
    assert epochs[0] == epochs[2]
    for drawn in zip(*epochs[0], *epochs[1], strict=True):
        assert len(set(drawn)) == 16, 'each sample of each epoch has numbers of its own'
    for index in (6, 1):
        assert dataset.__getitems__([index]) == [epochs[0][index]]


def test_a_fork_of_the_first_mini_generation_equals_a_run_of_its_own(
    run_tool, four_epoch_run, four_epochs, image_folder, tmp_path, capfd
):
    """SE and SD are the same run before anything is taught; later they are not."""
    se, sd = four_epoch_run('se'), four_epoch_run('sd')
    forked = four_epoch_run('sd', '--resume', se / 'epoch_1.pth', '--cfg-options', 'fork=True')
    assert_same_run(sd, forked, stop=1)
    places = ['--work-dir', tmp_path / 'new', '--data-root', image_folder]
    late = ['--resume', se / 'epoch_3.pth', '--cfg-options', 'fork=True']
    assert run_tool('train.py', four_epochs['sd'], *late, *places) == 2
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
def two_ranks(four_epochs, image_folder, seven_images, tmp_path_factory):
    """Work dirs ``{algorithm}_amp{0,1}_{stop}`` of two gloo processes that both went through all runs."""
    folder = tmp_path_factory.mktemp('two')
    (folder / 'script.py').write_text(TWO_RANKS)
    hook = "custom_hooks = [*_base_.custom_hooks, dict(type='Spy')]"
    for name in ('sd', 'file'):
        (folder / f'{name}.py').write_text(f"_base_ = '{four_epochs[name]}'\n{hook}\n")
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
def test_two_processes_hold_the_same_student_and_teacher(
    two_ranks, four_epochs, algorithm, taught_from, stop
):
    """After each epoch end, thus after each snapshot, and as soon as a resume begins."""
    work_dir = two_ranks / f'{algorithm}_amp0_{stop}'
    names = [*(['start'] if stop else []), *range(stop + 1, 5)]
    taught = []
    for name in names:
        first, second = (torch.load(work_dir / f'rank{rank}_{name}.pth') for rank in (0, 1))
        assert_same(first, second, f'{name}')
        taught.append(first['teacher'] is not None)
        if algorithm == 'file' and taught[-1]:
            wanted = torch.load(four_epochs['file'].with_name('teacher.pth'), weights_only=True)['state_dict']
            assert_same(first['teacher'], {key.removeprefix('network.'): wanted[key] for key in wanted})
    # The file is read as its first epoch begins, which at the start of a resume is still to come.
    at_start = algorithm == 'sd' and stop >= taught_from
    assert taught == [at_start if name == 'start' else name >= taught_from for name in names]


def test_two_processes_differ_from_one(two_ranks, four_epoch_run):
    """Each has images and randomness of its own: nothing above holds merely because all is constant."""
    one, two = (logged(path)[0]['loss_ce'] for path in (four_epoch_run('sd'), two_ranks / 'sd_amp0_0'))
    assert one != two


def test_two_processes_resumed_do_the_validation_that_was_killed(two_ranks):
    """The first epoch has its checkpoint, and no validation in the log."""
    assert read_curves(two_ranks / 'killed').test_error == read_curves(two_ranks / 'sd_amp0_0').test_error


def test_evaluation_by_two_processes_counts_each_image_once(
    two_ranks, four_epochs, seven_images, run_tool, tmp_path, capsys
):
    """A batch of training is not theirs to divide."""
    found = torch.load(two_ranks / 'accuracy0.pth', weights_only=False)
    places = ['--data-root', seven_images, '--work-dir', tmp_path]
    assert run_tool('test.py', four_epochs['sd'], two_ranks / 'sd_amp0_0' / 'snapshot_2.pth', *places) == 0
    said = f'top-1 {found["accuracy/top1"]:.2f}%, top-5 {found["accuracy/top5"]:.2f}%'
    assert said in capsys.readouterr().out
