"""Methods: several pretrainings under one name, each fine-tuned with a seed of its own."""

import json
import re

import pytest
import torch
from probe_common import TINY
from torchvision.models import resnet18, resnet34

from sd_pretrain.cli import InputError
from transfer import runner
from transfer.evidence import compare
from transfer.results import collect, require_comparable
from transfer.table import format_table, rows
from transfer.table5_json import build_table5, table5_markdown, table5_rows
from transfer.tasks import DATASETS


def results(name, *values, pretrainings=True):
    return [
        {
            'name': name,
            'task': 'seg',
            'dataset': 'voc12',
            'seed': seed,
            'sha256': f'{name}{seed if pretrainings else ""}',
            'backbone': f'{name}{seed}.pth',
            'pretraining': seed + 1 if pretrainings else None,
            'metrics': {'mIoU': value},
        }
        for seed, value in enumerate(values)
    ]


METHODS = [*results('BL', 0.70, 0.71, 0.73), *results('SD', 0.72, 0.74, 0.75)]
CHECKPOINT = results('TV', 0.60, 0.61, 0.63, pretrainings=False)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    return write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data', train=20, test=20)


@pytest.fixture(scope='module')
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp('checkpoints')
    for seed, (name, make) in enumerate({'a0': resnet18, 'a1': resnet18, 'b': resnet34}.items()):
        torch.manual_seed(seed)
        torch.save({'state_dict': make().state_dict()}, folder / f'{name}.pth')
    content = torch.load(folder / 'a0.pth', weights_only=True)
    torch.save(content | {'epoch': 90}, folder / 'again.pth')  # other bytes, the same weights
    return {path.stem: str(path) for path in folder.iterdir()}


def planned(named, data_root, tmp_path, *seeds):
    options = runner.Options(seeds=seeds, demo=True, data_root=str(data_root))
    return runner.plan(DATASETS['probe', 'voc07'], named, tmp_path / 'w', options)


def test_each_seed_has_its_pretraining(files, data_root, tmp_path, in_repo):
    runs = planned({'A': [files['a0'], files['a1']], 'R': 'none'}, data_root, tmp_path, 0, 7)
    found = [(run.name, run.seed, run.identity['pretraining']) for run in runs]
    assert found == [('A', 0, 1), ('A', 7, 2), ('R', 0, None), ('R', 7, None)]
    for run, name in zip(runs, ('a0', 'a1'), strict=False):
        given = dict(zip(run.arguments, run.arguments[1:], strict=False))
        assert given['--backbone'] == files[name] and given['--pretraining'] == str(run.seed // 7 + 1)


@pytest.mark.parametrize(
    ('named', 'message'),
    [
        (['a0', 'a1', 'b'], 'A has 3 pretrainings, .* there are 2 seeds: say --seeds 3; a name with more '),
        (['a0', 'again'], 'A has .*a0.pth and .*again.pth, the same weights: that is one pretraining'),
        (['a0', 'b'], 'A has pretrainings of several networks: resnet18, resnet34'),
        (['a0', 'none'], 'A has pretrainings of several networks: none, resnet18'),
    ],
)
def test_what_is_no_method_is_refused(named, message, files, data_root, tmp_path, in_repo):
    several = [files.get(name, name) for name in named]
    with pytest.raises(InputError, match=message):
        planned({'A': several}, data_root, tmp_path, 0, 1)


def test_verdicts_count_pretrainings():
    (found,) = compare(METHODS)
    assert found.interval.runs == (3, 3) and ', 3+3 pretrainings' in found.verdict.text
    close = [*results('BL', 0.70, 0.71, 0.73), *results('SD', 0.71, 0.70, 0.74)]
    (open_one,) = compare(close)
    assert 'pretrainings each would resolve' in open_one.verdict.text
    (against,) = compare([*CHECKPOINT, *METHODS[3:]])
    assert ', 3 pretrainings and 3 runs' in against.verdict.text
    (open_two,) = compare([*results('BL', 0.70, 0.71, 0.73, pretrainings=False), *close[3:]])
    assert re.search(r'about (\d+) pretrainings and as many runs would resolve', open_two.verdict.text)
    # One that is left of a method is a checkpoint.
    (alone,) = compare([METHODS[0], METHODS[3]])
    assert 'pretraining' not in alone.verdict.text
    (plain,) = compare([*CHECKPOINT, *results('T', 0.61, 0.63, 0.63, pretrainings=False)])
    assert ', 3+3 runs' in plain.verdict.text


def test_tables_say_what_a_seed_is():
    note = 'SD: each seed has a pretraining of its own'
    assert note in format_table([*CHECKPOINT, *METHODS[3:]])
    assert note not in format_table([*CHECKPOINT, METHODS[3]])
    table5 = build_table5([*METHODS, *CHECKPOINT], data='real', stages=[])
    assert [row.pretrainings for row in table5_rows(table5)] == [True, True, False]
    # One alone says nothing of how far several lie apart.
    assert [row.pretrainings for row in rows([METHODS[0], METHODS[3]])] == [False, False]
    text = table5_markdown(json.loads(json.dumps(table5)))
    assert '| SD, seed 2 | `SD2.pth` | `SD2` |' in text and '| TV | `TV0.pth` | `TV` |' in text


@pytest.mark.parametrize(
    ('more', 'message'),
    [
        ({'seed': 3, 'pretraining': None}, r'two of its seeds \(0, 1, 2, 3\) are of the same one'),
        ({'task': 'det', 'sha256': 'x'}, "'BL 0' come from two backbones: BL0 and x"),
        ({'name': 'TV', 'sha256': 'x', 'pretraining': None}, "'TV' come from two backbones"),
    ],
)
def test_other_backbones_are_not_mixed_in(more, message):
    every = [*METHODS, *CHECKPOINT]
    require_comparable(every)
    with pytest.raises(InputError, match=message):
        require_comparable([*every, METHODS[0] | more])


def test_from_checkpoints_to_a_report(files, data_root, tmp_path, run_tool, capsys, in_repo):
    named = [f'{name}={files[file]}' for name, file in (('A', 'a0'), ('A', 'a1'), ('B', 'a1'), ('B', 'a0'))]
    how = ['--demo', '--data-root', data_root, '--work-dir', tmp_path / 'w', '--cfg-options', *TINY]
    assert run_tool('run_transfer.py', 'probe', 'voc07', *named, *how) == 0
    # With one checkpoint, another seed changes nothing of a linear probe; here it changes the checkpoint.
    lines = capsys.readouterr().out.splitlines()
    said = [line for line in lines if line.startswith('B not resolved: +0.0 mAP linear')]
    assert len(said) == 1 and ', 2+2 pretrainings' in said[0]
    found = {(one['name'], one['seed']): one['metrics']['mAP_linear'] for one in collect(tmp_path / 'w')}
    assert found['A', 0] == found['B', 1] != found['A', 1] == found['B', 0]
    page = ' '.join((tmp_path / 'w/report.html').read_text().split())
    assert 'Each run of A and B has a pretraining of its own: how far those lie apart is in it.' in page
    assert 'is about these checkpoints' not in page
    assert 'A, seed 0' in page and 'B, seed 1' in page

    # A run of one checkpoint that is there is one of the method.
    assert run_tool('run_transfer.py', 'probe', 'voc07', named[0], *how) == 0
    assert 'seed0: finished before' in capsys.readouterr().out
    assert run_tool('run_transfer.py', 'probe', 'voc07', named[0], '--seeds', '2', *how) == 2
    assert 'holds another run: backbone was' in capsys.readouterr().err
