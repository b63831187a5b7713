"""Errors of snapshots and ensembles, against numbers worked out by hand and against tools/test.py."""

import json
import math

import pytest
import torch

from sd_pretrain.cli import InputError
from sd_pretrain.evaluate import ensemble, errors, run_errors, snapshot_logits
from sd_pretrain.prepare import load_config

A, B = math.log(9), math.log(4)


def test_errors_by_hand():
    """Ranks of the true classes: 1, 3, 6, 5."""
    scores = torch.tensor(
        [
            [9.0, 1, 2, 3, 4, 5],
            [9.0, 8, 7, 3, 4, 5],
            [9.0, 1, 2, 3, 4, 0],
            [9.0, 1, 2, 3, 4, 0],
        ]
    )
    assert errors(scores, torch.tensor([0, 2, 5, 1])) == {'top1': 75.0, 'top5': 25.0}
    assert errors(scores[:, :3], torch.tensor([0, 2, 0, 0])) == {'top1': 25.0, 'top5': 0.0}


def test_probabilities_are_averaged_by_default():
    """Softmax of (ln 9, 0) is (0.9, 0.1), of (0, ln 4) it is (0.2, 0.8)."""
    both = [torch.tensor([[A, 0.0]]), torch.tensor([[0.0, B]])]
    assert ensemble(both).tolist() == [pytest.approx([0.55, 0.45])]


def test_snapshot_k_counts_with_temperature_to_the_k_minus_1():
    """T = 2: the second logits become (0, 2 ln 4), so (1/17, 16/17); the third (0, 4 ln 9), so 1 in 6562."""
    three = [torch.tensor([[A, 0.0]]), torch.tensor([[0.0, B]]), torch.tensor([[0.0, A]])]
    first = (0.9 + 1 / 17 + 1 / 6562) / 3
    assert ensemble(three, 2.0).tolist() == [pytest.approx([first, 1 - first])]


def test_logits_can_be_averaged_instead():
    both = [torch.tensor([[A, 0.0]]), torch.tensor([[0.0, B]])]
    assert ensemble(both, 3.0, 'logits').tolist() == [pytest.approx([A / 2, 3 * B / 2])]
    with pytest.raises(ValueError, match='votes'):
        ensemble(both, combine='votes')


def test_the_factor_decides_an_image():
    """SE takes the first class, which one snapshot is sure of; with T = 3 the second is surer still."""
    both = [torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    label = torch.tensor([1])
    assert errors(ensemble(both), label)['top1'] == 100
    assert errors(ensemble(both, 3.0), label)['top1'] == 0


@pytest.fixture(scope='module')
def run(run_tool, tiny_config, image_folder, tmp_path_factory):
    """A finished SD run of two snapshots."""
    work_dir = tmp_path_factory.mktemp('run')
    places = ['--work-dir', work_dir, '--data-root', image_folder]
    assert run_tool('train.py', tiny_config, *places) == 0
    return work_dir


def config(run, tiny_config, image_folder):
    return load_config(tiny_config, image_folder, run)


@pytest.mark.parametrize('k', [1, 2])
def test_errors_are_those_of_tools_test(run, run_tool, tiny_config, image_folder, tmp_path, capsys, k):
    path = run / f'snapshot_{k}.pth'
    places = ['--work-dir', tmp_path, '--data-root', image_folder]
    assert run_tool('test.py', tiny_config, path, *places) == 0
    line = capsys.readouterr().out.splitlines()[-1]
    (logits,), labels = snapshot_logits(config(run, tiny_config, image_folder), [path])
    assert logits.shape == (8, 4)
    assert labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
    found = errors(logits, labels)
    assert line.startswith(f'top-1 {100 - found["top1"]:.2f}%, top-5 {100 - found["top5"]:.2f}%')


def test_run_errors_agree_with_the_run_itself(run, tiny_config, image_folder):
    found = run_errors(config(run, tiny_config, image_folder), 2.0)
    result = json.loads((run / 'result.json').read_text())
    assert found['snapshots'][1]['top1'] == pytest.approx(100 - 100 * result['top1'])
    log = next(run.glob('*/vis_data/scalars.json')).read_text().splitlines()
    by_epoch = {
        row['step']: 100 - row['accuracy/top1'] for row in map(json.loads, log) if 'accuracy/top1' in row
    }
    assert sorted(by_epoch) == [1, 2, 3]
    assert found['best'] == {'top1': min(by_epoch.values()), 'epoch': min(by_epoch, key=by_epoch.get)}
    logits, labels = snapshot_logits(
        config(run, tiny_config, image_folder), [run / f'snapshot_{k}.pth' for k in (1, 2)]
    )
    assert found['ensemble'] == errors(logits[0].softmax(1) + (2 * logits[1]).softmax(1), labels)
    assert found['ensemble_of_logits'] == errors(logits[0] + 2 * logits[1], labels)


def test_an_evaluated_run_is_evaluated_again_only_if_a_snapshot_is_another(
    run, tiny_config, image_folder, monkeypatch
):
    cfg = config(run, tiny_config, image_folder)
    kept = run_errors(cfg, 2.0)
    with monkeypatch.context() as patch:
        patch.setattr('sd_pretrain.evaluate.snapshot_logits', None)
        assert run_errors(cfg, 2.0) == kept
    path = run / 'snapshot_2.pth'
    stored = path.read_bytes()
    try:
        path.write_bytes((run / 'snapshot_1.pth').read_bytes())
        again = run_errors(cfg, 2.0)
        assert again['snapshots'][1] == again['snapshots'][0] == kept['snapshots'][0]
        path.unlink()
        with pytest.raises(InputError, match=r'snapshot_2\.pth has been deleted'):
            run_errors(cfg, 2.0)
    finally:
        path.write_bytes(stored)
