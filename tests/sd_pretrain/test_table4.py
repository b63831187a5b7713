"""Table 4 on tiny image folders, end to end."""

import json
from pathlib import Path

import pytest
import torch

from sd_pretrain.cli import InputError
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.table4 import ALGORITHMS, NETS, config, run_table4

TINY = (
    'model.network=test_resnet',
    'model.num_classes=4',
    'total_batch_size=8',
    'train_dataloader.dataset.subset=16',
    'val_dataloader.dataset.subset=8',
    'test_dataloader.dataset.subset=8',
)


@pytest.fixture(scope='module')
def made(image_folder, tmp_path_factory, jobs_here):
    work_dir = tmp_path_factory.mktemp('table4')
    with jobs_here() as started:
        run_table4(work_dir, image_folder, ['r101'], demo=True, options=TINY)
    return work_dir, started


def test_one_first_mini_generation_for_se_and_sd(made):
    assert made[1] == ['first', 'BL', 'SE', 'SD T=2']
    first, second = (
        [
            torch.load(made[0] / f'r101/seed0/{key}/snapshot_{k}.pth', weights_only=True)['state_dict']
            for key in ('se', 'sd')
        ]
        for k in (1, 2)
    )
    assert all(torch.equal(first[0][key], first[1][key]) for key in first[0])
    assert not all(torch.equal(second[0][key], second[1][key]) for key in second[0])


def test_json_has_both_snapshots_and_the_fusion(made):
    table = json.loads((made[0] / 'table4.json').read_text())
    assert (table['table'], table['data']) == (4, 'demo')
    assert [row['algorithm'] for row in table['rows']] == ['BL', 'SE', 'SD']
    bl, se, sd = (row['values'] for row in table['rows'])
    assert [value['mean'] is None for value in bl.values()] == [True, True, False, False, True, True]
    assert all(value['mean'] is not None for value in (*se.values(), *sd.values()))
    assert (se['L1']['mean'], se['L1_top5']['mean']) == (sd['L1']['mean'], sd['L1_top5']['mean'])
    assert (se['ensemble']['paper'], sd['ensemble']['paper']) == (21.66, None)
    assert se['L2_top5']['mean'] == 0, 'four classes: top-5 counts every image'
    text = (made[0] / 'table4.md').read_text()
    assert 'Demo: 300 drawn images' in text
    assert f"paper's.\nSettings of ours: {'; '.join(TINY)}.\n" in text


def test_mistakes_in_one_line(image_folder, tmp_path):
    with pytest.raises(InputError, match='--nets takes r101,r152'):
        run_table4(tmp_path, image_folder, ['r50'], demo=True)
    with pytest.raises(InputError, match='not the full ILSVRC2012'):
        run_table4(tmp_path, image_folder)
    with pytest.raises(InputError, match='no data'):
        run_table4(tmp_path, tmp_path / 'nowhere', demo=True)


def test_the_tool_hands_its_arguments_on(run_tool, tmp_path, monkeypatch):
    given = []
    monkeypatch.setattr('torch.cuda.is_available', lambda: False)
    monkeypatch.setattr('sd_pretrain.launch.cpus', lambda: 4)
    monkeypatch.setattr('transfer.emoji_world.ensure', lambda root: False)
    monkeypatch.chdir(tmp_path)
    paths = [Path('table4.json'), Path('table4.md')]
    paths[1].touch()

    def run(*what, **settings):
        given.append((what, settings))
        return paths

    monkeypatch.setattr('sd_pretrain.table4.run_table4', run)
    assert run_tool('table4.py', '--demo') == 0
    places = ['--data-root', 'images', '--work-dir', 'here', '--nets', 'r152,', '--seeds', '0,7']
    settings = ['--gpus', 8, '--parallel', 3, '--amp', '--compile', '--so-far', '--cfg-options', 'a=1']
    assert run_tool('table4.py', *places, *settings) == 0
    plain = dict(seeds=(0,), demo=True, gpus=1, parallel=2, amp=False, options=(), so_far=False)
    options = ('model.compile=True', 'a=1')
    other = dict(seeds=(0, 7), demo=False, gpus=8, parallel=3, amp=True, options=options, so_far=True)
    assert given == [
        ((Path('work_dirs/table4_demo'), Path('work_dirs/demo_data'), ['r101', 'r152']), plain),
        ((Path('here'), Path('images'), ['r152']), other),
    ]


def test_the_demo_has_data_of_its_own(run_tool, tmp_path, capsys):
    assert run_tool('table4.py', '--demo', '--data-root', tmp_path) == 2
    assert 'leave one of --demo and --data-root out' in capsys.readouterr().err


@pytest.mark.parametrize('net', NETS)
@pytest.mark.parametrize('algorithm', ALGORITHMS, ids=lambda algorithm: algorithm.key)
def test_every_row_is_the_papers_recipe(net, algorithm):
    cfg = load_config(config(net, algorithm))
    hook = mini_generations(cfg)
    assert cfg.model.network == net.replace('r', 'resnet')
    assert hook.ends == ([90] if algorithm.name == 'BL' else [45, 90])
    assert hook.get('temperature') == algorithm.temperature
