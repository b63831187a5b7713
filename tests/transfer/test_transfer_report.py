"""The report of a transfer work dir: commands and curves over several calls, costs, words for tasks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from sd_pretrain.cli import InputError
from transfer.transfer_report import costs, report_transfer

REPO = Path(__file__).parents[2]


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


def test_commands_and_curves_stay_over_later_calls(results, tmp_path):
    log = tmp_path / 'pretrain' / '20260101_000000' / 'vis_data' / 'scalars.json'
    log.parent.mkdir(parents=True)
    log.write_text('{"lr": 0.1, "loss": 2.5, "epoch": 1, "iter": 1, "step": 1}\n')
    report_transfer(tmp_path, results, ['tools/transfer.sh probe voc07'], {'BL': tmp_path / 'pretrain'})
    content = report_transfer(
        tmp_path, results, ['tools/transfer.sh seg voc12', 'tools/transfer.sh probe voc07']
    )
    noted = json.loads((tmp_path / 'transfer.json').read_text())
    assert noted['commands'] == ['tools/transfer.sh probe voc07', 'tools/transfer.sh seg voc12']
    assert noted['curves'] == {'BL': str(tmp_path / 'pretrain')}
    assert content['data'] == 'real' and [one['verdict'] for one in content['comparisons']] == ['better']
    page = (tmp_path / 'report.html').read_text()
    assert all(f'<code>{command}</code>' in page for command in noted['commands'])
    assert 'Training loss' in page and 'SD, linear probe: better in' in page
    assert 'segmentation:' not in page
    assert 'svm-knn_r18-frozen_voc07.py, config sha256 0123456789abcdef, image lists fedcba' in page
    assert 'seeds 0, 1, 2' in page
    (tmp_path / 'transfer.json').write_text('{"comm')
    with pytest.raises(InputError, match=r'transfer\.json does not parse'):
        report_transfer(tmp_path, results, [])


def test_a_baseline_that_is_not_there_is_refused(tmp_path):
    run = tmp_path / 'seg_voc12' / 'BL' / 'seed0'
    run.mkdir(parents=True)
    (run / 'result.json').write_text(json.dumps({'name': 'BL', 'task': 'seg', 'seed': 0, 'metrics': {}}))
    tool = [sys.executable, 'tools/report.py', tmp_path, '--baseline', 'BK']
    environment = {**os.environ, 'PYTHONPATH': str(REPO)}
    said = subprocess.run(tool, cwd=REPO, capture_output=True, text=True, env=environment)
    assert said.returncode == 2
    assert said.stderr == "error: no results of the baseline 'BK'; there are BL\n"


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
