"""Several pretrainings as jobs: stopped, forked, resumed."""

import json
import re

import pytest
import torch

from sd_pretrain.cli import InputError
from sd_pretrain.pretrainings import Pretraining, fork, run_pretrainings

SE = ('custom_hooks.0.distill=False',)


@pytest.fixture(scope='module')
def forked(tiny_config, image_folder, tmp_path_factory):
    """SD unbroken, and SE and SD forked from one first mini-generation that was trained as SE."""
    folder = tmp_path_factory.mktemp('forked')
    # Sums are split by threads: with another number of them the last bits differ.
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setenv('OMP_NUM_THREADS', '1')
    config = str(tiny_config)
    first = Pretraining('first', config, folder / 'first', SE, stop_after=2)
    run_pretrainings('first', [first, Pretraining('whole', config, folder / 'whole')], data_root=image_folder)
    forks = [
        Pretraining('SE', config, folder / 'se', SE, fork_of=first.work_dir),
        Pretraining('SD', config, folder / 'sd', fork_of=first.work_dir),
    ]
    run_pretrainings('forks', forks, data_root=image_folder, parallel=2)
    monkeypatch.undo()
    return folder, forks


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def same(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_a_stopped_run_is_unfinished_and_has_its_snapshot(forked):
    first = forked[0] / 'first'
    assert not (first / 'result.json').exists()
    assert (first / 'epoch_2.pth').exists() and not (first / 'epoch_3.pth').exists()
    assert 'Stopped after epoch 2 of 3;' in (first / 'stdout.log').read_text()


def test_forked_sd_equals_the_unbroken_one_bit_for_bit(forked):
    folder = forked[0]
    for name in ('snapshot_1.pth', 'snapshot_2.pth'):
        assert same(weights(folder / 'whole' / name), weights(folder / 'sd' / name)), name
    assert json.loads((folder / 'sd' / 'result.json').read_text())['checkpoint'] == 'snapshot_2.pth'


def test_se_shares_the_first_mini_generation_and_not_the_second(forked):
    folder = forked[0]
    assert same(weights(folder / 'sd' / 'snapshot_1.pth'), weights(folder / 'se' / 'snapshot_1.pth'))
    assert not same(weights(folder / 'sd' / 'snapshot_2.pth'), weights(folder / 'se' / 'snapshot_2.pth'))


def test_the_log_of_a_fork_is_that_of_the_whole_run(forked):
    lines = [
        json.loads(line)
        for path in sorted((forked[0] / 'sd').glob('*/vis_data/scalars.json'))
        for line in path.read_text().splitlines()
    ]
    assert [line['step'] for line in lines if 'accuracy/top1' in line] == [1, 2, 3]


def test_finished_runs_are_left_alone(forked, image_folder, jobs_here, capsys):
    folder, forks = forked
    before = (folder / 'sd' / 'snapshot_2.pth').stat().st_mtime_ns
    with jobs_here():
        run_pretrainings('again', forks, data_root=image_folder, parallel=2)
    assert (folder / 'sd' / 'snapshot_2.pth').stat().st_mtime_ns == before
    assert capsys.readouterr().out.count('Finished already') == 2


def test_runs_of_several_gpus_do_not_share_them(monkeypatch, tmp_path):
    monkeypatch.setattr('torch.cuda.device_count', lambda: 4)
    monkeypatch.setenv('CUDA_VISIBLE_DEVICES', '0,1,2,3')
    given = []
    monkeypatch.setattr('sd_pretrain.pretrainings.run_jobs', lambda title, jobs, places: given.extend(places))
    runs = [Pretraining(name, 'bl.py', tmp_path / name) for name in ('BL', 'SE')]
    run_pretrainings('two', runs, gpus=2, parallel=2)
    assert [one['CUDA_VISIBLE_DEVICES'] for one in given] == ['0,1', '2,3']


def test_a_fork_needs_something_to_begin_with(tmp_path):
    with pytest.raises(InputError, match='holds no run to fork'):
        fork(tmp_path, tmp_path / 'new')


def test_stop_where_no_checkpoint_is_written(tiny_config, image_folder, tmp_path, jobs_here, capsys):
    options = ('default_hooks.checkpoint.interval=2',)
    run = Pretraining('odd', str(tiny_config), tmp_path / 'work', options, stop_after=1)
    with jobs_here(), pytest.raises(RuntimeError):
        run_pretrainings('odd', [run], data_root=image_folder)
    assert re.search('error: --stop-after 1: .* a multiple of 2', capsys.readouterr().err)


@pytest.mark.parametrize(
    'tool, arguments, instead',
    [
        ('table2.py', ['--quick'], '--seeds'),
        ('table3.py', ['--quick', '--seeds', 3], '--seeds'),
        ('table4.py', ['--data-root', 'none'], '--seeds'),
        ('train_generations.py', ['configs/cifar100/ban_resnet20.py', 2], '--seed'),
    ],
)
def test_one_seed_for_all_runs_is_refused(run_tool, capsys, tool, arguments, instead):
    """Runs of several seeds would be copies of one, and their spread 0."""
    assert run_tool(tool, *arguments, '--cfg-options', 'total_batch_size=8', 'randomness.seed=7') == 2
    assert capsys.readouterr().err.endswith(f'with the same seed; give {instead}\n')
