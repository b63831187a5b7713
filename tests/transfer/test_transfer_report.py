"""The report of a transfer work dir: commands and curves over several calls, costs, words for tasks."""

import json
from pathlib import Path

import numpy as np
import pytest

from sd_pretrain.cli import InputError
from transfer.bootstrap import Detections
from transfer.predictions import save_predictions
from transfer.results import collect
from transfer.transfer_report import costs, draw_samples, note_transfer, recall_curves, report_transfer


def probe(name, seed, values, **more):
    return {
        'name': name,
        'task': 'probe',
        'dataset': 'voc07',
        'seed': seed,
        'config': 'configs/probe/svm-knn_r18-frozen_voc07.py',
        'arch': 'resnet18',
        'backbone': f'{name}.pth',
        'sha256': 64 * name[0],
        'metrics': {'mAP_linear': sum(values) / 2},
        'per_class': {'cat': values[0], 'dog': values[1]},
        'seconds': 1800.0,
        'config_sha256': 4 * '0123456789abcdef',
        'lists_sha256': 4 * 'fedcba9876543210',
        **more,
    }


@pytest.fixture
def results():
    return [
        probe(name, seed, (start * (1 + 0.01 * seed), start * (1 + 0.02 * seed)))
        for name, start in (('BL', 0.5), ('SD', 0.6))
        for seed in range(3)
    ]


def report(work_dir, results, *noted):
    content = note_transfer(work_dir, results, *noted)
    report_transfer(work_dir, results, content)
    return content


def test_commands_and_curves_stay_over_later_calls(results, tmp_path):
    log = tmp_path / 'pretrain' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"lr": 0.1, "loss": 2.5, "epoch": 1, "iter": 1, "step": 1}\n')
    report(tmp_path, results, ['tools/transfer.sh probe voc07'], {'BL': tmp_path / 'pretrain'})
    content = report(tmp_path, results, ['tools/transfer.sh seg voc12', 'tools/transfer.sh probe voc07'])
    noted = json.loads((tmp_path / 'transfer.json').read_text())
    assert noted['commands'] == ['tools/transfer.sh probe voc07', 'tools/transfer.sh seg voc12']
    assert noted['curves'] == {'BL': str(tmp_path / 'pretrain')}
    # The same pretraining by another name, as one of several.
    renamed = note_transfer(tmp_path, results, [], {'BL 1': tmp_path / 'pretrain'})
    assert renamed['curves'] == {'BL 1': str(tmp_path / 'pretrain')}
    assert content['data'] == 'real' and [one['verdict'] for one in content['comparisons']] == ['better']
    page = (tmp_path / 'report.html').read_text()
    assert all(f'<code>{command}</code>' in page for command in noted['commands'])
    assert 'Training loss' in page and 'SD, linear probe: better in' in page
    assert (
        page.index('SD better') < page.index('All of it is about these checkpoints') < page.index('<table>')
    )
    assert 'segmentation:' not in page
    assert 'svm-knn_r18-frozen_voc07.py, config sha256 0123456789abcdef, image lists fedcba' in page
    assert 'seeds 0, 1, 2' in page
    (tmp_path / 'transfer.json').write_text('{"comm')
    with pytest.raises(InputError, match=r'transfer\.json does not parse'):
        report(tmp_path, results, [])


def test_a_pretraining_without_its_log_has_no_curves(results, tmp_path):
    log = tmp_path / 'BL' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"lr": 0.1, "loss": 2.5, "epoch": 1, "iter": 1, "step": 1}\n')
    copied = tmp_path / 'SD'
    copied.mkdir()
    (copied / 'snapshot_2.pth').write_bytes(b'')
    for named in ({'BL': log.parents[2], 'SD': copied}, {}):
        report(tmp_path, results, [], named)
        page = (tmp_path / 'report.html').read_text()
        assert 'Training loss' in page and 'At the end BL: loss 2.500.' in page


def finished(work_dir, name, **more):
    """A finished detection whose last checkpoint was deleted, and with it the chance of pictures."""
    run = work_dir / 'det_voc07' / name / 'seed0'
    run.mkdir(parents=True)
    (run / 'x.py').write_text('')
    metrics = {'mAP_11point': 0.7, 'mAP_area': 0.7}
    result = probe(name, 0, (0.5, 0.5), task='det', config='configs/det/x.py', checkpoint='epoch_10.pth')
    result |= {'metrics': metrics, **more}
    (run / 'result.json').write_text(json.dumps(result))
    return result | {'work_dir': str(run)}


def test_recall_curves_have_the_names_of_the_configs_own_classes(tmp_path):
    per_class = {'person': 1.0, 'cat': 0.5}
    one = finished(tmp_path, 'BL', per_class=per_class)
    boxes = np.array([[1, 0, 0], [0, 0, 2]])  # none of the class between
    found = Detections(
        np.array([0, 1]), np.array([0, 2]), np.array([0.9, 0.8]), np.array([True, True]), boxes
    )
    save_predictions(one['work_dir'], found, ['000001', '000002'])
    of_other_images = one | {'dataset': 'voc0712', 'work_dir': str(tmp_path)}  # without predictions
    curves = recall_curves([of_other_images, one])['BL']
    assert {name: curve.mean().round(2) for name, curve in curves.items()} == {'person': 1.0, 'cat': 0.5}


def test_without_checkpoints_the_report_says_why_it_has_no_pictures(tmp_path):
    results = [finished(tmp_path, name) for name in ('BL', 'SD')]
    report(tmp_path, results, [])
    page = (tmp_path / 'report.html').read_text()
    assert f'There are no pictures: {tmp_path}/det_voc07/BL/seed0 lacks epoch_10.pth.' in page
    assert 'delete' not in page and 'Boxes are shown' not in page and 'href="#samples"' in page


def test_pictures_whose_images_were_moved_are_explained(write_tiny_voc, tmp_path):
    root = write_tiny_voc(tmp_path / 'data')
    runs = [finished(tmp_path, name) for name in ('BL', 'SD')]
    for one in runs:
        place = {'data_root': str(root / 'VOCdevkit/VOC2007'), 'ann_file': 'ImageSets/Main/test.txt'}
        test = {'type': 'VOCDataset', 'data_prefix': {'sub_data_root': ''}, **place}
        Path(one['work_dir'], 'x.py').write_text(f'test_dataloader = dict(dataset={test})\n')
        Path(one['work_dir'], 'epoch_10.pth').write_bytes(b'')
    (root / 'VOCdevkit').rename(root / 'elsewhere')
    said = draw_samples(runs)
    assert said['det'].startswith('There are no pictures: the VOCDataset of ')
    assert 'FileNotFoundError' in said['det'] and 'test.txt' in said['det']


def test_the_verdicts_are_printed_before_anything_is_drawn(results, tmp_path, monkeypatch, capsys):
    from tools import run_transfer
    from transfer import results as stored
    from transfer import runner, transfer_report

    def draw(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(runner, 'run_transfer', lambda *_: results)
    monkeypatch.setattr(stored, 'collect', lambda *_, **__: results)
    monkeypatch.setattr(transfer_report, 'draw_samples', draw)
    with pytest.raises(KeyboardInterrupt):
        run_transfer.main(['probe', 'voc07', 'BL=none', 'SD=none', '--work-dir', str(tmp_path)])
    said = capsys.readouterr().out
    assert 'SD better' in said and 'backbone' in said
    assert (tmp_path / 'transfer.json').is_file()


def test_a_baseline_that_is_not_there_is_refused(run_tool, tmp_path, capsys):
    run = tmp_path / 'seg_voc12' / 'BL' / 'seed0'
    run.mkdir(parents=True)
    (run / 'result.json').write_text(json.dumps({'name': 'BL', 'task': 'seg', 'seed': 0, 'metrics': {}}))
    assert run_tool('report.py', tmp_path, '--baseline', 'BK') == 2
    assert capsys.readouterr().err == "error: no results of the baseline 'BK'; there are BL\n"


def test_a_report_written_again_has_the_same_baseline(run_tool, tmp_path):
    for name in ('NEW', 'OLD', 'BL', 'ALSO'):
        finished(tmp_path, name)
    assert next(iter(collect(tmp_path)))['name'] == 'BL', 'without a report'
    note_transfer(tmp_path, collect(tmp_path, first=['OLD', 'NEW']), [])
    assert [one['name'] for one in collect(tmp_path)] == ['OLD', 'NEW', 'BL', 'ALSO']
    assert [one['name'] for one in collect(tmp_path, first=['ALSO'])] == ['ALSO', 'OLD', 'NEW', 'BL']
    assert run_tool('report.py', tmp_path) == 0
    assert json.loads((tmp_path / 'transfer.json').read_text())['backbones'][0]['name'] == 'OLD'


def test_costs():
    runs = [
        probe('BL', seed, (0.5, 0.5), gpus=2, memory_mib=memory) for seed, memory in enumerate((2048, 4096))
    ]
    on_cpu = probe('SD', 0, (0.5, 0.5), gpus=0)
    before = probe('SE', 0, (0.5, 0.5))
    found = [tuple(one.values()) for one in costs([*runs, on_cpu, before])]
    assert found == [
        ('BL', 'probe voc07', 2, 3600.0, 2.0, 4096),
        ('SD', 'probe voc07', 1, 1800.0, 0.0, None),
        ('SE', 'probe voc07', 1, 1800.0, None, None),
    ]
