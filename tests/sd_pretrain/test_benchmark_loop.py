"""The benchmark of hooks and logging: it stands where a real run would, and its table is whole."""

import argparse
import json

import pytest
from mmengine.logging import HistoryBuffer

from sd_pretrain import benchmark_loop
from sd_pretrain.device_log import DeviceHistory
from sd_pretrain.idle_loop import EPOCH_LENGTH, paused_runner


def state(runner):
    hub = runner.message_hub
    return {
        'iteration': runner.iter,
        'lr': pytest.approx(runner.optim_wrapper.get_lr()['lr'][0], rel=1e-9),
        'steps': [(one.last_step, one._global_step) for one in runner.param_schedulers],
        'histories': {key: (type(value), len(value.data[0])) for key, value in hub.log_scalars.items()},
    }


@pytest.mark.parametrize('ours', [False, True], ids=['mmengine', 'ours'])
def test_a_run_that_was_put_there_stands_where_one_that_went_there_does(tmp_path, ours):
    went = paused_runner(ours, 0, tmp_path / 'went')
    went.train_loop.advance(301)
    put = paused_runner(ours, 300, tmp_path / 'put')
    put.train_loop.advance(1)
    assert state(went) == state(put)
    kind = DeviceHistory if ours else HistoryBuffer
    assert set(state(put)['histories'].values()) == {(kind, 301)}


@pytest.mark.parametrize('ours', [False, True], ids=['mmengine', 'ours'])
def test_late_in_a_run_there_is_a_teacher_and_the_log_goes_on(tmp_path, ours):
    runner = paused_runner(ours, 400_000, tmp_path / 'late')
    assert (runner.model.teacher is not None) == ours
    runner.train_loop.advance(200)
    lengths = {len(value.data[0]) for value in runner.message_hub.log_scalars.values()}
    assert lengths == ({EPOCH_LENGTH} if ours else {400_200, 400_200 - 45 * EPOCH_LENGTH})
    (log,) = (tmp_path / 'late').glob('*/vis_data/scalars.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row['iter'] for row in rows] == [400_100, 400_200]
    assert {'lr', 'loss', 'loss_ce', 'loss_kl', 'time', 'data_time'} < set(rows[0])


def test_the_table(monkeypatch):
    monkeypatch.setattr(benchmark_loop, 'LATE', 240_000)
    parser = argparse.ArgumentParser()
    benchmark_loop.add_arguments(parser)
    args = argparse.Namespace(**vars(parser.parse_args([])), quick=True, rounds=2, device='cpu')
    (section,) = benchmark_loop.measure(args)
    assert [row[0] for row in section.rows] == ["mmengine's default hooks", 'ours', 'mmengine / ours']
    assert {len(values) for values in section.data['milliseconds'].values()} == {2}
    assert '| ours |' in section.markdown()
    json.dumps(section.data)
