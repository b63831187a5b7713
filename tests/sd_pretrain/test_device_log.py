"""The log of a pretraining: what mmengine's own hooks would say, without a look at the device in between."""

import json
import math
import pickle
import re
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cifar_common import write_cifar
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer, MessageHub, MMLogger
from mmengine.registry import DefaultScope
from mmengine.runner import Runner
from mmengine.visualization import Visualizer
from torch.utils._python_dispatch import TorchDispatchMode

from sd_pretrain.device_log import DeviceHistory, DeviceLogHook
from sd_pretrain.prepare import fit_machine, load_config

# Two epochs of 12 and 12 iterations, the second one taught; logged every 5 and thus at 5, 10, 17 and 22.
OPTIONS = {
    'total_batch_size': 2,
    'train_cfg.max_epochs': 2,
    'custom_hooks.0.ends': [1, 2],
    'param_scheduler.0.periods': [1, 1],
    'default_hooks.logger.interval': 5,
}
WORKER = {'train_dataloader.num_workers': 1, 'train_dataloader.persistent_workers': False}
STOCK = {
    'default_hooks.runtime_info.type': 'RuntimeInfoHook',
    'default_hooks.timer.type': 'IterTimerHook',
}
SCALARS = ('lr', 'loss', 'loss_ce', 'loss_kl', 'grad_norm')


class Spy(Hook):
    """Calls ``look(runner)`` after each iteration, last of all hooks."""

    priority = 'LOWEST'

    def __init__(self, look):
        self.look = look

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.look(runner)


class ScalarReads(TorchDispatchMode):
    """Counts the tensors of which Python asks the value."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += func is torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.fixture
def runner(tiny_config, image_folder, tmp_path):
    """``runner(name, options)``: a runner of the tiny SD config, ready to train."""

    def build(name='run', options=None, config=tiny_config, data_root=image_folder):
        for shared in (MMLogger, MessageHub, Visualizer, DefaultScope):
            shared._instance_dict.clear()
        cfg = load_config(config, data_root, tmp_path / name, OPTIONS | (options or {}))
        fit_machine(cfg, 1)
        return Runner.from_cfg(cfg)

    return build


def lines(runner):
    text = Path(runner.log_dir, 'vis_data/scalars.json').read_text()
    return [row for row in map(json.loads, text.splitlines()) if 'loss' in row]


def log_lines(runner):
    """The lines of the log, digits left out."""
    text = Path(runner.log_dir, f'{runner.timestamp}.log').read_text()
    found = re.findall(r'INFO - (Epoch\((?:train|val)\).*)', text)
    return [re.sub(r'[\d.]+(e-\d+)?', '#', re.sub(r' +', ' ', line)) for line in found]


@pytest.mark.parametrize('clip', [{}, {'optim_wrapper.clip_grad': dict(max_norm=1.0)}], ids=['', 'clipped'])
def test_it_says_what_mmengine_says(runner, clip):
    """Same keys in the same order and, but for times, the same values to the last bit; and the same lines."""
    stock = runner('stock', STOCK | clip)
    stock.train()
    ours = runner('ours', clip)
    ours.train()
    one, other = lines(stock), lines(ours)
    assert [list(row) for row in one] == [list(row) for row in other]
    assert [{key: row.get(key) for key in (*SCALARS, 'epoch', 'iter', 'step')} for row in one] == [
        {key: row.get(key) for key in (*SCALARS, 'epoch', 'iter', 'step')} for row in other
    ]
    assert [row['iter'] for row in other] == [5, 10, 17, 22]
    assert ['loss_kl' in row for row in other] == [False, False, True, True]
    assert ['grad_norm' in row for row in other] == [bool(clip)] * 4
    assert log_lines(stock) == log_lines(ours)
    assert len(log_lines(ours)) == 8
    assert all(0 <= row['data_time'] < row['time'] for row in other)


@pytest.mark.parametrize(
    'stock, amp',
    [(False, 'OptimWrapper'), (False, 'Bf16OptimWrapper'), (True, 'OptimWrapper')],
    ids=['fp32', 'bf16', 'mmengine'],
)
def test_nothing_is_read_between_the_logs(runner, monkeypatch, stock, amp):
    """Images in workers, whose random numbers are none of the device's; mmengine reads each logged value."""
    monkeypatch.setattr('os.sched_getaffinity', lambda pid: {0, 1}, raising=False)
    options = {**WORKER, 'optim_wrapper.type': amp, **(STOCK if stock else {})}
    run, reads, counts = runner('run', options), ScalarReads(), []
    run.register_hook(Spy(lambda _: counts.append(reads.count)))
    with reads:
        run.train()
    within = [after - before for before, after in pairwise(counts)]
    # Between two epochs the loader draws a seed and validation counts its hits.
    first, second = within[:11], within[12:]
    assert (first, second) == (([2] * 11, [3] * 11) if stock else ([0] * 11, [0] * 11))


def test_cifar_batches_are_not_read_either(runner, tmp_path):
    config = tmp_path / 'cifar.py'
    root = __file__.rpartition('/tests/')[0]
    config.write_text(f"_base_ = '{root}/configs/cifar100/sd_resnet20_t2.py'\nmodel = dict(num_classes=4)\n")
    write_cifar(tmp_path)
    options = {'param_scheduler.0.restart_weights': [1, 1]}
    run, reads, counts = runner('run', options, config, tmp_path), ScalarReads(), []
    run.register_hook(Spy(lambda _: counts.append(reads.count)))
    with reads:
        run.train()
    assert len(counts) == 20
    assert counts[0] == counts[9]
    assert counts[10] == counts[19]


@pytest.mark.cuda
def test_cuda_is_not_waited_for_between_the_logs(runner):
    run = runner('run', {**WORKER, 'optim_wrapper.type': 'Bf16OptimWrapper'})

    class Strict(Hook):
        priority = 'LOWEST'

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            quiet = batch_idx in (1, 2, 3, 5, 6, 7, 8)
            torch.cuda.set_sync_debug_mode('error' if quiet else 'default')

    run.register_hook(Strict())
    try:
        run.train()
    finally:
        torch.cuda.set_sync_debug_mode('default')
    assert [row['iter'] for row in lines(run)] == [5, 10, 17, 22]


def test_whoever_looks_in_between_sees_everything(runner):
    """A hook of the user's that reads the message hub in each iteration."""
    run, seen = runner(), []
    run.register_hook(Spy(lambda run: seen.append(run.message_hub.get_scalar('train/loss').data)))
    run.train()
    assert [len(values) for values, _ in seen] == [*range(1, 13), *[12] * 12]
    for (before, _), (after, _) in pairwise(seen):
        assert after[:-1].tolist() == before.tolist()[-len(after) + 1 :]


def test_one_transfer_an_interval(runner, monkeypatch):
    fetched = []
    fetch = DeviceLogHook.fetch
    monkeypatch.setattr(
        DeviceLogHook, 'fetch', lambda self: (self._rows and fetched.append(len(self._rows)), fetch(self))[1]
    )
    runner().train()
    assert fetched == [5, 5, 2, 5, 5, 2]


def test_checkpoints_do_not_grow_and_need_nothing_of_ours(runner, tmp_path):
    run = runner('run', {'train_cfg.max_epochs': 4, 'custom_hooks.0.ends': [1, 4],
                         'param_scheduler.0.periods': [1, 3]})  # fmt: skip
    run.train()
    histories = [
        torch.load(tmp_path / f'run/epoch_{epoch}.pth', weights_only=False)['message_hub']['log_scalars']
        for epoch in (2, 4)
    ]
    for history in histories:
        assert {type(value) for value in history.values()} == {HistoryBuffer}
        lengths = {key: len(value.data[0]) for key, value in history.items() if key.startswith('train/')}
        assert lengths == {
            f'train/{key}': 12 for key in ('lr', 'data_time', 'loss', 'loss_ce', 'time', 'loss_kl')
        }
    assert len(pickle.dumps(histories[0]['train/loss'])) == len(pickle.dumps(histories[1]['train/loss']))


def test_averages_may_look_back_further_than_an_epoch(runner):
    """As a config's log processor asks for; the mean over the run is that of its iterations."""
    whole = [dict(data_src='loss', log_name='whole', method_name='mean', window_size='global')]
    run, losses = runner('run', {'log_processor.custom_cfg': whole}), []
    run.register_hook(Spy(lambda run: losses.append(run.message_hub.get_scalar('train/loss').current())))
    run.train()
    assert [row['whole'] for row in lines(run)] == [
        pytest.approx(sum(losses[:count]) / count) for count in (5, 10, 17, 22)
    ]


def test_a_loss_that_is_lost_is_seen(runner):
    run = runner()

    class Poison(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 7:
                runner.model.network.fc.bias.data.fill_(math.nan)

    run.register_hook(Poison())
    run.train()
    assert [math.isnan(row['loss']) for row in lines(run)] == [False, True, True, True]


def test_times_are_those_of_the_clock(runner, monkeypatch):
    """A step takes 2 s, a batch of two images 1 s more; validation takes its time as well."""
    now = [0.0]
    monkeypatch.setattr('sd_pretrain.device_log.time.perf_counter', lambda: now[0])
    run = runner('run', {'train_dataloader.num_workers': 0})
    step, item = run.model.train_step, type(run.train_dataloader.dataset).__getitem__

    def slow_step(*args, **kwargs):
        now[0] += 2
        return step(*args, **kwargs)

    def slow_item(self, index):
        now[0] += 0.5
        return item(self, index)

    monkeypatch.setattr(run.model, 'train_step', slow_step)
    monkeypatch.setattr(type(run.train_dataloader.dataset), '__getitem__', slow_item)
    etas = []
    run.register_hook(Spy(lambda run: etas.append(run.message_hub.get_info('eta'))))
    run.train()
    assert [(row['time'], row['data_time']) for row in lines(run)] == [(3, 1)] * 4
    # 24 iterations of 3 s; renewed at each interval and before an epoch's last, which no line follows.
    assert [etas[at] for at in (4, 9, 16, 21)] == [57, 42, 21, 6]


def test_other_kinds_of_values(runner):
    run, hub = runner(), None
    run.train_loop  # noqa: B018 - builds it
    hook = next(hook for hook in run.hooks if isinstance(hook, DeviceLogHook))
    hook.before_train(run)
    hub = run.message_hub
    hook._collect({'a': torch.tensor(0.1), 'b': torch.tensor(0.1, dtype=torch.float64), 'c': 3})
    hook._collect({'a': torch.tensor([0.5], requires_grad=True), 'c': 4.5})
    assert hub.get_scalar('train/a').data[0].tolist() == [torch.tensor(0.1).item(), 0.5]
    assert hub.get_scalar('train/b').data[0].tolist() == [0.1]
    assert hub.get_scalar('train/c').mean() == 3.75
    with pytest.raises(RuntimeError, match='shape'):
        hook._collect({'a': torch.zeros(2)})


def test_a_history_goes_on_from_another_and_keeps_its_latest():
    history = DeviceHistory(lambda: None, 3, HistoryBuffer([1.0, 2.0, 3.0, 4.0], [1, 1, 1, 1]))
    history.pending += [5.0, 6.0]
    assert history.data[0].tolist() == [4, 5, 6]
    history.update(7.0)
    assert (history.mean(2), history.max(), history.min(3), history.current()) == (6.5, 7, 5, 7)
