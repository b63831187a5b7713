"""Table 2: all its runs on a tiny set, once, and the table out of results that are known."""

import json
import shutil

import pytest
import torch
from cifar_common import write_cifar

from sd_pretrain.cli import InputError
from sd_pretrain.table2 import Repetition, Table2, pairs, run_table2
from sd_pretrain.table2_report import PAPER, write_table2

OPTIONS = [
    'model.num_classes=4',
    'total_batch_size=10',
    'train_dataloader.dataset.subset=20',
    'val_dataloader.dataset.subset=8',
    'default_hooks.logger.interval=1',
]


def arguments_of(data_root, work_dir):
    places = ['--data-root', data_root, '--work-dir', work_dir]
    return ['--quick', '--parallel', 2, *places, '--cfg-options', *OPTIONS]


@pytest.fixture(scope='module')
def cifar(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp('cifar'))


@pytest.fixture(scope='module')
def table2(run_tool, cifar, tmp_path_factory, jobs_here):
    """Work dir of the quick version, with a space and a comma in its path: 4 epochs of 2 iterations."""
    work_dir = tmp_path_factory.mktemp('table2') / 'my disk, 2'
    with jobs_here():
        assert run_tool('table2.py', *arguments_of(cifar.parent, work_dir)) == 0
    return work_dir


def weights(path):
    return torch.load(path, weights_only=False)['state_dict']


def same(one, other):
    return all(torch.equal(value, other[key]) for key, value in one.items())


def taught_epochs(work_dir):
    """Epochs whose iterations have a teacher, over the copied log and the run's own."""
    rows = [
        json.loads(line)
        for path in work_dir.glob('*/vis_data/scalars.json')
        for line in path.read_text().splitlines()
    ]
    return sorted({row['epoch'] for row in rows if 'loss_kl' in row})


def test_every_cell_of_the_paper_is_trained(table2):
    table = json.loads((table2 / 'table2.json').read_text())
    cells = {(cell['student'], cell['teacher']) for cell in table['cells']}
    assert cells == {(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)}
    for cell in table['cells']:
        path = table2 / f'seed_0/s_{cell["student"]}_by_t_{cell["teacher"]}/result.json'
        assert cell['top1'] == {'0': json.loads(path.read_text())['top1']}
    assert not table['comparable']
    assert (table['amp'], table['counts']) == (False, {'classes': 4, 'train': 20, 'val': 8})
    text = (table2 / 'table2.md').read_text()
    assert '**Quick: ' in text and f'Settings of ours: {"; ".join(OPTIONS)}.' in text


@pytest.mark.parametrize('student, teacher', [(0, 0), (1, 0), (1, 1), (2, 0), (2, 1), (2, 2)])
def test_a_student_is_taught_from_its_start_on_by_its_teacher(table2, student, teacher):
    work_dir = table2 / 'seed_0' / f's_{student}_by_t_{teacher}'
    assert taught_epochs(work_dir) == list(range(student + 1, 5))
    log = ''.join(path.read_text() for path in work_dir.glob('*/*.log'))
    assert f'From epoch {student + 1} on {table2}/seed_0/t_{teacher}/snapshot_1.pth teaches' in log


def test_teachers_share_the_beginning_and_nothing_else(table2):
    folder = table2 / 'seed_0'
    ends = {name: weights(folder / name / 'snapshot_1.pth') for name in ('m_4', 't_0', 't_1', 't_2')}
    names = list(ends)
    for index, name in enumerate(names):
        assert taught_epochs(folder / name) == []
        assert not any(same(ends[name], ends[other]) for other in names[index + 1 :])
    # M_#4 has gone through the common parts; each later part begins where the one before ended.
    assert (folder / 'm_4' / 'result.json').exists() and not (folder / 'common_2' / 'result.json').exists()
    assert same(weights(folder / 'common_1/epoch_1.pth'), weights(folder / 'common_2/epoch_1.pth'))


def test_what_is_shared_is_not_trained_again(table2):
    what = Table2(table2, quick=True, net='resnet20')
    path = table2 / 'seed_0' / 'common_2' / 'epoch_2.pth'
    before = path.stat().st_mtime_ns
    assert Repetition(what, 0).common(1, None) == Repetition(what, 0).common(2, 1) == []
    assert path.stat().st_mtime_ns == before
    assert [run.stop_after for run in Repetition(what, 1).common(1, None)] == [1]


def test_a_finished_teacher_without_its_snapshot_says_what_to_do(
    table2, run_tool, cifar, tmp_path, capsys, jobs_here
):
    work_dir = shutil.copytree(table2, tmp_path / 'copy')
    teacher = work_dir / 'seed_0' / 't_1'
    (teacher / 'snapshot_1.pth').unlink()
    with jobs_here():
        assert run_tool('table2.py', *arguments_of(cifar.parent, work_dir)) == 2
    said = f'{teacher} is finished, but snapshot_1.pth has been deleted; put it back, or delete {teacher} and'
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    'other, said',
    [('--amp', 'amp was False, is now True'), ('--temperature=3', 'temperature was 2.0, is now 3')],
)
def test_a_work_dir_is_for_one_table(table2, run_tool, cifar, capsys, other, said):
    assert run_tool('table2.py', other, *arguments_of(cifar.parent, table2)) == 2
    assert said in capsys.readouterr().err


def test_the_whole_table_wants_the_whole_data(cifar, tmp_path):
    with pytest.raises(InputError, match='not the full CIFAR-100'):
        run_table2(Table2(tmp_path / 'work', data_root=cifar.parent))
    assert not (tmp_path / 'work').exists()


def test_starts_are_none_a_quarter_and_half_of_the_run(tmp_path):
    assert Table2(tmp_path).starts == (0, 75, 150)
    assert Table2(tmp_path, net='resnet20').starts == (0, 41, 82)
    assert pairs((0, 75, 150)) == [(0, 0), (75, 0), (75, 75), (150, 0), (150, 75), (150, 150)]


def test_the_length_of_the_runs_is_what_the_options_say(tmp_path):
    assert Table2(tmp_path, options=('train_cfg.max_epochs=200',)).starts == (0, 50, 100)
    assert Table2(tmp_path, net='resnet20', quick=True).starts == (0, 1, 2)


def test_the_temperature_is_that_of_every_student(tmp_path):
    students = Repetition(Table2(tmp_path, net='resnet20', temperature=3.0), 0).students()
    assert len(students) == 6
    assert all('custom_hooks.0.temperature=3.0' in run.options for run in students)


def report(tmp_path, runs, **settings):
    """The Markdown of results ``runs[seed][name]``, in fractions."""
    folders = {
        seed: {name: tmp_path / f'{seed}' / name for name in by_name} for seed, by_name in runs.items()
    }
    for seed, by_name in runs.items():
        for name, top1 in by_name.items():
            folders[seed][name].mkdir(parents=True)
            (folders[seed][name] / 'result.json').write_text(json.dumps({'top1': top1}))
    path = write_table2(
        tmp_path,
        **{
            'net': 'densenet100',
            'epochs': 300,
            'starts': (0, 75, 150),
            'temperature': 2.0,
            'quick': False,
            'options': (),
            'amp': False,
            'counts': {},
            'repetitions': folders,
            **settings,
        },
    )
    return path.read_text()


def results(shift=0.0):
    starts = (0, 75, 150)
    cells = {f'S{starts[s]} T{starts[t]}': value / 100 + shift for (s, t), value in PAPER.items()}
    return {'M': 0.775, 'T0': 0.77, 'T75': 0.78, 'T150': 0.7795, **cells}


def test_one_run_says_that_its_uncertainty_is_unknown(tmp_path):
    text = report(tmp_path, {0: results()})
    assert '| #75 | 78.18 ± ? (78.18) | 78.02 ± ? (78.02) | — |' in text
    assert '| self | 77.00 ± ? | 78.00 ± ? | 77.95 ± ? |' in text
    assert 'The mean of the three teachers: 77.65 ± ? (77.65).' in text
    assert '| #75: by #0^T - by #75^T | +0.16 ± ? | +0.16 ± ? |' in text
    assert 'cannot be compared' not in text


def test_another_temperature_is_named_and_not_comparable(tmp_path):
    text = report(tmp_path, {0: results()}, temperature=3.0)
    assert 'T = 3 (the paper does not say for this table).' in text
    assert 'cannot be compared' in text


@pytest.mark.parametrize('settings', [{'amp': True}, {'options': ('a=1',)}])
def test_other_settings_are_named_and_not_comparable(tmp_path, settings):
    text = report(tmp_path, {0: results()}, **settings)
    assert f'Settings of ours: {"bfloat16 mixed precision" if "amp" in settings else "a=1"}.' in text
    assert 'cannot be compared' in text


def test_two_runs_give_means_and_standard_errors(tmp_path):
    # 78.13 and 78.53: mean 78.33, standard deviation 0.4 / sqrt(2), standard error 0.2.
    text = report(tmp_path, {0: results(), 1: results(0.004)})
    assert '| #0 | 78.33 ± 0.20 (78.13) | — | — |' in text
    # Both cells of a seed move alike, so their difference does not.
    assert '| #75: by #0^T - by #75^T | +0.16 ± 0.00 | +0.16 ± ? |' in text
    assert '| #0 by #0^T - self | +0.68 ± 0.20 | +0.48 ± ? |' in text


def test_mistakes(run_tool, tmp_path, capsys):
    assert run_tool('table2.py', '--seeds', 0) == 2
    assert '--seeds 0: at least one seed' in capsys.readouterr().err
    assert run_tool('table2.py', '--parallel', -1) == 2
    assert 'at least 1 GPU and 1 run at a time' in capsys.readouterr().err
    assert run_tool('table2.py', '--quick', '--temperature', 0) == 2
    assert 'must be positive, found 0.0' in capsys.readouterr().err
    assert run_tool('table2.py', '--quick', '--cfg-options', 'custom_hooks.0.temperature=3') == 2
    assert 'that of Table 2 is --temperature T' in capsys.readouterr().err
    places = ['--data-root', tmp_path / 'nowhere' / 'data', '--work-dir', tmp_path / 'work']
    monkeypatch = pytest.MonkeyPatch()
    with monkeypatch.context() as patched:
        # No download from within a test.
        for name in ('http_proxy', 'https_proxy'):
            patched.setenv(name, 'http://127.0.0.1:9')
        assert run_tool('table2.py', '--quick', *places) == 2
    assert 'nowhere/data/cifar-100-python, and it cannot be downloaded' in capsys.readouterr().err
