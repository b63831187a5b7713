import argparse

import pytest
import torch
from torch.nn import functional as F

from sd_pretrain.benchmark_steps import Setting, mmengines, ours, timms, torchvisions
from sd_pretrain.benchmark_train import add_arguments, measure
from sd_pretrain.ceilings import graph_memory, step_bytes, step_flops, step_memory
from sd_pretrain.cli import InputError


def arguments(*given):
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    parser.add_argument('--rounds', type=int, default=2)
    parser.set_defaults(device='cpu', quick=True, data_root=None)
    return parser.parse_args(given)


def test_the_table_has_every_case_and_its_ratios(monkeypatch):
    monkeypatch.setattr('sd_pretrain.ceilings.graph_memory', lambda step, device: 10**12)
    (section,) = measure(arguments('--size', '32', '--batch', '2', '--amp'))
    assert [row[0] for row in section.rows] == [
        'ours BL',
        'ours SD',
        'ours SD, teacher in float32',
        'naive SD (eager, unfolded, autocast)',
        'ours BL with rotation and jitter',
        'timm',
        'torchvision references',
        'mmengine defaults',
    ]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in section.data['seconds'].values())
    first, last = (section.data['overhead']['ours SD'][k] for k in (2, 4))
    # K=4 is taught for three quarters of the run, K=2 for a half.
    assert (last.median - 1) / (first.median - 1) == pytest.approx(1.5)
    assert 'TFLOP/s' in section.notes[3]
    assert section.notes[4].startswith('Peak memory: what a step takes beyond what is there before it')
    assert min(section.data['peak_memory_bytes'].values()) > 10**12, 'graphs count'
    assert 'bfloat16 autocast' in section.title


@pytest.mark.parametrize(
    'given, said',
    [(('--arch', 'vgg16'), 'vgg16'), (('--size', '8'), 'at least 32'), (('--batch', '1'), '2, found')],
)
def test_what_cannot_be_measured_is_refused(given, said):
    with pytest.raises(InputError, match=said):
        list(measure(arguments(*given)))


@pytest.mark.parametrize('step', [ours, timms, torchvisions, mmengines])
def test_every_step_trains(step):
    """All start anew; what a step changes are weights: its loss falls on a batch seen again and again."""
    torch.manual_seed(0)
    batch = [(torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8), torch.tensor([0, 1, 2, 3]))]
    run = step(Setting('resnet18', torch.device('cpu'), classes=4), batch)
    losses = []
    original = F.cross_entropy

    def noted(*args, **kwargs):
        loss = original(*args, **kwargs)
        losses.append(loss.item())
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, 'cross_entropy', noted)
        for _ in range(12):
            run()
    assert len(losses) == 12
    assert sum(losses[-3:]) < sum(losses[:3])


def test_flops_and_bytes_are_counted():
    left, right = torch.randn(8, 16), torch.randn(16, 4)
    assert step_flops(lambda: left @ right) == 2 * 8 * 16 * 4
    assert step_bytes(lambda: left @ right) == 4 * (8 * 16 + 16 * 4 + 8 * 4)
    assert step_bytes(lambda: left.t()) == 0


def test_memory_is_what_is_held_at_the_same_time():
    there = torch.zeros(1000)

    def step():
        one = there + 1  # 4,000 bytes
        two = one + 1
        del one
        return two.exp_() + 1, torch.empty(500)

    assert step_memory(step, torch.device('cpu')) == 4000 + 4000 + 2000
    weight = torch.ones(1000, requires_grad=True)
    # Each result is kept for the backward pass, by no name in Python.
    assert step_memory(lambda: weight.exp().exp().exp().sum(), torch.device('cpu')) == 3 * 4000 + 4


def test_memory_of_graphs_is_that_of_their_pools_and_counted_once(monkeypatch):
    segments = [{'segment_pool_id': (0, 0), 'total_size': 5}, {'segment_pool_id': (0, 1), 'total_size': 70}]
    monkeypatch.setattr('torch.cuda.memory_snapshot', lambda: list(segments))
    monkeypatch.setattr('torch.cuda.synchronize', lambda device: None)

    def record():
        segments.append({'segment_pool_id': (0, 0), 'total_size': 100})
        segments.append({'segment_pool_id': (0, 2), 'total_size': 3000})

    assert graph_memory(record, torch.device('cuda')) == 3000
    assert graph_memory(lambda: None, torch.device('cuda')) == 0
    assert graph_memory(record, torch.device('cpu')) == 0


@pytest.mark.cuda
def test_cuda_the_teachers_graph_counts():
    device = torch.device('cuda', 0)
    images = torch.randint(0, 256, (8, 3, 64, 64), dtype=torch.uint8)
    batches = [(images, torch.arange(8))]
    for teacher, counts in (('none', False), ('ours', True)):
        step = ours(Setting('resnet18', device, amp=True, classes=8), batches, teacher)
        # The first feature maps, in float16, are there at a time with what is computed of them.
        assert (graph_memory(step, device) > 8 * 64 * 32 * 32 * 2) == counts
        assert graph_memory(step, device) == 0
        assert step_memory(step, device) > 0
