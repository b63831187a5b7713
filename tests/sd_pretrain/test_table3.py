"""Table 3 on a tiny CIFAR-100, end to end: what is shared, what is measured, what is not done again."""

import json
import shutil

import pytest
import torch
from cifar_common import write_cifar

from sd_pretrain.cli import InputError
from sd_pretrain.evaluate import errors, snapshot_logits
from sd_pretrain.experiments import parse_options, schedule_options
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.table3 import ALGORITHMS, NETS, config, run_table3

TINY = (
    'model.num_classes=4',
    'total_batch_size=10',
    'train_dataloader.dataset.subset=20',
    'val_dataloader.dataset.subset=8',
    'test_dataloader.dataset.subset=8',
)


@pytest.fixture(scope='module', autouse=True)
def one_epoch_each():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('sd_pretrain.table3.QUICK_ENDS', (1, 2, 3, 4))
        yield


@pytest.fixture(scope='module')
def data(tmp_path_factory):
    return write_cifar(tmp_path_factory.mktemp('data')).parent


@pytest.fixture(scope='module')
def made(data, tmp_path_factory, jobs_here):
    """The work dir of ResNet-20 by all four algorithms, and the names of the jobs that it took."""
    work_dir = tmp_path_factory.mktemp('table3')
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, parallel=2, options=TINY)
    return work_dir, started


def weights(path):
    return torch.load(path, weights_only=True)['state_dict']


def same(first, second):
    return all(torch.equal(value, second[key]) for key, value in first.items())


def test_the_first_mini_generation_is_trained_once_and_baselines_go_along(made):
    assert made[1] == ['first', 'BL', 'BL', 'SE', 'SD T=2', 'SD T=3']


def test_se_and_sd_share_the_first_snapshot_and_no_other(made):
    folder = made[0] / 'resnet20' / 'seed0'
    for k in (1, 2):
        snapshots = [weights(folder / key / f'snapshot_{k}.pth') for key in ('se', 'sd_t2', 'sd_t3')]
        pairs = [(0, 1), (0, 2), (1, 2)]
        assert [same(snapshots[a], snapshots[b]) for a, b in pairs] == [k == 1] * 3
    assert same(weights(folder / 'first' / 'snapshot_1.pth'), weights(folder / 'se' / 'snapshot_1.pth'))


def test_baseline_and_first_mini_generation_start_from_the_same_weights(made, data, run_tool, tmp_path):
    """Both without a step: a learning rate of zero, and statistics that do not move."""
    freeze = ['optim_wrapper.optimizer.lr=0', 'optim_wrapper.optimizer.weight_decay=0', *TINY]
    for key, ends in (('bl', [1]), ('se', [1, 2])):
        algorithm = next(one for one in ALGORITHMS if one.key == key)
        options = [*schedule_options(ends), *freeze]
        places = ['--work-dir', tmp_path / key, '--data-root', data, '--stop-after', '1']
        assert run_tool('train.py', config('resnet20', algorithm), *places, '--cfg-options', *options) == 0
    start = [weights(tmp_path / key / 'snapshot_1.pth') for key in ('bl', 'se')]
    assert all(torch.equal(start[0][key], start[1][key]) for key in start[0] if 'running' not in key)


def test_json_has_every_error_and_the_papers(made):
    table = json.loads((made[0] / 'table3.json').read_text())
    assert (table['schema'], table['table'], table['data']) == (1, 3, 'cifar100 quick')
    assert [(row['net'], row['algorithm'], row['temperature']) for row in table['rows']] == [
        ('resnet20', 'BL', None),
        ('resnet20', 'SE', None),
        ('resnet20', 'SD', 2.0),
        ('resnet20', 'SD', 3.0),
    ]
    for row in table['rows']:
        values = row['values']
        bl = row['algorithm'] == 'BL'
        assert [values[f'L{k}']['mean'] is None for k in (1, 2, 3, 4)] == [bl, bl, bl, False]
        assert (values['ensemble']['mean'] is None) == bl
        assert values['best']['mean'] <= values['L4']['mean']
        assert values['L4']['mean'] * 8 % 100 == 0, 'one of 8 images'
    assert len({row['values']['L1']['mean'] for row in table['rows'][1:]}) == 1
    assert table['rows'][3]['values']['ensemble']['paper'] == 30.76
    text = (made[0] / 'table3.md').read_text()
    assert 'cannot be compared' in text
    assert f"paper's.\nSettings of ours: {'; '.join(TINY)}.\n" in text
    assert text.count('± ?') == 4, 'three differences, and what the sign means'


@pytest.mark.parametrize('key, temperature', [('se', None), ('sd_t2', 2.0), ('sd_t3', 3.0)])
def test_the_ensemble_is_of_logits_multiplied_by_the_rows_temperature(made, data, key, temperature):
    """By T^(k-1), as the caption of Table 3 says."""
    folder = made[0] / 'resnet20' / 'seed0' / key
    found = json.loads((folder / 'errors.json').read_text())
    assert found['temperature'] == temperature
    algorithm = next(one for one in ALGORITHMS if one.key == key)
    cfg = load_config(config('resnet20', algorithm), data, options=parse_options(TINY))
    logits, labels = snapshot_logits(cfg, [folder / f'snapshot_{k}.pth' for k in (1, 2, 3, 4)])
    scaled = [one.double() * (temperature or 1) ** power for power, one in enumerate(logits)]
    assert found['ensemble'] == errors(sum(one.softmax(1) for one in scaled), labels)


def test_a_second_call_trains_and_evaluates_nothing(made, data, jobs_here, monkeypatch):
    monkeypatch.setattr('sd_pretrain.evaluate.snapshot_logits', None)
    before = (made[0] / 'table3.json').read_text()
    with jobs_here() as started:
        run_table3(made[0], data, ['resnet20'], quick=True, options=TINY)
    assert started == []
    assert (made[0] / 'table3.json').read_text() == before


def test_a_broken_off_run_goes_on_and_other_seeds_are_added(made, data, jobs_here, tmp_path):
    """SD stopped before its last epoch; then a second seed, whose table has both."""
    work_dir = shutil.copytree(made[0], tmp_path / 'copy')
    sd = work_dir / 'resnet20' / 'seed0' / 'sd_t3'
    whole = weights(sd / 'snapshot_4.pth')
    for name in ('result.json', 'errors.json', 'snapshot_4.pth', 'epoch_4.pth'):
        (sd / name).unlink()
    (sd / 'last_checkpoint').write_text(str(sd / 'epoch_3.pth'))
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY)
    assert started == ['SD T=3']
    assert same(whole, weights(sd / 'snapshot_4.pth'))
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY, seeds=(1,))
    assert started == ['first', 'BL', 'SE', 'SD T=2', 'SD T=3']
    table = json.loads((work_dir / 'table3.json').read_text())
    assert all(list(row['values']['L4']['seeds']) == ['0', '1'] for row in table['rows'])
    first = [weights(work_dir / f'resnet20/seed{seed}/first/snapshot_1.pth') for seed in (0, 1)]
    assert not same(*first)


def test_the_table_so_far_has_the_snapshots_of_unfinished_runs(made, data, jobs_here, tmp_path):
    """SD at its third snapshot; SE not begun, so that it has the one that it shares."""
    work_dir = shutil.copytree(made[0], tmp_path / 'copy')
    whole = json.loads((work_dir / 'table3.json').read_text())['rows']
    folder = work_dir / 'resnet20' / 'seed0'
    for name in ('result.json', 'errors.json', 'snapshot_4.pth', 'epoch_4.pth'):
        (folder / 'sd_t3' / name).unlink()
    (folder / 'sd_t3' / 'last_checkpoint').write_text(str(folder / 'sd_t3' / 'epoch_3.pth'))
    shutil.rmtree(folder / 'se')
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY, so_far=True)
    assert started == []
    rows = json.loads((work_dir / 'table3.json').read_text())['rows']
    assert [rows[0], rows[2]] == [whole[0], whole[2]]
    for row, before, count in ((rows[1], whole[1], 1), (rows[3], whole[3], 3)):
        for k in (1, 2, 3, 4):
            there = row['values'][f'L{k}']['mean']
            assert there == (before['values'][f'L{k}']['mean'] if k <= count else None)
        assert row['values']['best']['mean'] is row['values']['ensemble']['mean'] is row['minus_bl'] is None
    sentence = 'Not finished: ResNet20 SE seed 0 (1 epochs done), ResNet20 SD T=3 seed 0 (3 epochs done).'
    assert sentence in (work_dir / 'table3.md').read_text()
    # What was kept of an unfinished run is not taken for that of the finished one.
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY)
    assert started == ['SE', 'SD T=3']
    again = json.loads((work_dir / 'table3.json').read_text())['rows']
    assert [row['values'] for row in again] == [row['values'] for row in whole]


def test_a_finished_run_without_a_snapshot_says_what_to_do(made, data, jobs_here, tmp_path):
    work_dir = shutil.copytree(made[0], tmp_path / 'copy')
    run = work_dir / 'resnet20' / 'seed0' / 'se'
    (run / 'snapshot_2.pth').unlink()
    message = rf'{run} is finished, but snapshot_2\.pth has been deleted; put it back, or delete'
    with jobs_here() as started, pytest.raises(InputError, match=message):
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY)
    assert started == []
    shutil.rmtree(run)
    with jobs_here() as started:
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY)
    assert started == ['SE']


def test_nothing_is_shown_where_nothing_has_been_run(data, tmp_path):
    with pytest.raises(InputError, match=r'work has no run\.json: nothing has been run'):
        run_table3(tmp_path / 'work', data, ['resnet20'], quick=True, options=TINY, so_far=True)
    assert not (tmp_path / 'work').exists()


def test_a_folder_of_another_name_is_no_seed(made, data, tmp_path):
    work_dir = shutil.copytree(made[0], tmp_path / 'copy')
    (work_dir / 'resnet20' / 'seed0_old').mkdir()
    run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY, so_far=True)


def test_the_tool_hands_its_arguments_to_every_run(made, data, run_tool, monkeypatch):
    """What the tool asks for is what made the work dir, compiled or not, and one argument more is refused."""
    options = ['--cfg-options', *TINY]
    arguments = ['--quick', '--work-dir', made[0], '--data-root', data, '--so-far', *options]
    assert run_tool('table3.py', '--compile', *arguments) == 0
    table = json.loads((made[0] / 'table3.json').read_text())
    assert len(table['rows']) == 4 and 'model.compile=True' in table['settings']['options']
    assert run_tool('table3.py', *arguments) == 0
    said = []
    monkeypatch.setattr('builtins.print', lambda *text, **_: said.append(' '.join(map(str, text))))
    assert run_tool('table3.py', '--amp', *arguments) == 2
    assert 'amp was False, is now True' in said[-1]


def test_mistakes_in_one_line(made, data, tmp_path):
    with pytest.raises(InputError, match=r'no backbone resnet21 in Table 3: --nets takes resnet20,'):
        run_table3(tmp_path, data, ['resnet20', 'resnet21'], quick=True)
    with pytest.raises(InputError, match='no backbone given'):  # before any download
        run_table3(tmp_path, tmp_path, [], quick=True)
    with pytest.raises(InputError, match='at least 1 GPU and 1 run at a time, found 1 and -1'):
        run_table3(tmp_path, data, ['resnet20'], quick=True, parallel=-1)
    with pytest.raises(InputError, match='not the full CIFAR-100'):
        run_table3(tmp_path, data, ['resnet20'])
    with pytest.raises(
        InputError,
        match='another run: options was model.num_classes=4, is now without; take another --work-dir',
    ):
        run_table3(made[0], data, ['resnet20'], quick=True, options=TINY[1:])
    hot = (*TINY, 'custom_hooks.0.temperature=4')
    with pytest.raises(
        InputError, match=r'set the temperature of the row SD T=2 of Table 3 to 4; train with'
    ):
        run_table3(tmp_path, data, ['resnet20'], quick=True, options=hot)
    (tmp_path / 'run.json').write_text('[')
    with pytest.raises(InputError, match=r'run\.json does not parse'):
        run_table3(tmp_path, data, ['resnet20'], quick=True, options=TINY)


def test_the_tool_says_a_mistake_in_one_line(run_tool, tmp_path, capsys):
    places = ['--data-root', tmp_path, '--work-dir', tmp_path / 'work']
    assert run_tool('table3.py', '--nets', 'resnet20,vgg', *places) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines == [f'error: no backbone vgg in Table 3: --nets takes {",".join(NETS)}']
    assert not list(tmp_path.iterdir())


def test_a_finished_run_of_other_settings_is_refused(made, data, tmp_path):
    work_dir = shutil.copytree(made[0], tmp_path / 'copy')
    path = work_dir / 'resnet20' / 'seed0' / 'se' / 'result.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'settings_sha256': 'another'}))
    with pytest.raises(InputError, match='seed0/se holds a finished run of other settings'):
        run_table3(work_dir, data, ['resnet20'], quick=True, options=TINY)


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('algorithm', ALGORITHMS, ids=lambda algorithm: algorithm.key)
def test_every_row_has_a_config_whose_schedule_can_be_shortened(net, algorithm):
    ends = [8] if algorithm.name == 'BL' else [2, 4, 6, 8]
    cfg = load_config(config(net, algorithm), options=parse_options(schedule_options(ends)))
    hook = mini_generations(cfg)
    assert (hook.ends, cfg.train_cfg.max_epochs) == (ends, 8)
    assert hook.get('temperature') == algorithm.temperature
    assert len(cfg.param_scheduler[0].restart_weights) == len(ends)
