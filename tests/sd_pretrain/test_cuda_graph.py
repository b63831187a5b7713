"""A recorded training step: what it computes is what it computes without.

On a CPU nothing can be recorded; there the recording is replaced by running the function again into the same
memory, which is what a replay does.
"""

import contextlib
import copy
from types import SimpleNamespace

import pytest
import torch
from mmengine.optim import AmpOptimWrapper, OptimWrapper

from sd_pretrain import classifier, cuda_graph
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.optim import Bf16OptimWrapper, FusedSGD
from sd_pretrain.teacher import FrozenTeacher

COUNTS = (32, 32, 20, 32, 32, 32, 20)


def build(network='cifar_resnet20', **more):
    torch.manual_seed(0)
    return TimmClassifier(network, num_classes=10, channels_last=True, **more)


def batches(counts=COUNTS):
    chance = torch.Generator().manual_seed(1)
    return [
        {
            'inputs': torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=chance),
            'labels': torch.randint(0, 10, (count,), generator=chance),
        }
        for count in counts
    ]


def train(model, device='cpu', amp=False, teacher_after=None, lr=0.05):
    """What is logged of each step; after ``teacher_after`` of them a snapshot teaches."""
    model = model.to(device).train()
    wrapper = Bf16OptimWrapper if amp else OptimWrapper
    optimizer = wrapper(FusedSGD(model.parameters(), lr=lr, momentum=0.9, nesterov=True))
    logs = []
    for number, batch in enumerate(batches()):
        if number == teacher_after:
            model.attach_teacher(FrozenTeacher(model.network))
        logs.append({key: one.item() for key, one in model.train_step(dict(batch), optimizer).items()})
        assert all(one.grad is None for one in model.parameters())
    return logs


def apart(one, other, start):
    """How far two trainings have ended from each other, as a part of the way; unrelated ones: more than 1.

    Rounding is worth up to 0.3 after these few steps, which learn random labels: whether they are the same
    to the bit is for the other tests.
    """
    names = [name for name in start if name.endswith(('weight', 'bias'))]
    one, other, start = (
        torch.cat([state[name].double().cpu().flatten() for name in names]) for state in (one, other, start)
    )
    return ((one - other).norm() / (other - start).norm()).item()


@pytest.fixture
def run_again(monkeypatch):
    """Counts how often something was recorded, and how often it was replayed."""
    calls = {'recorded': 0, 'replayed': 0}

    def record(function, device):
        for _ in range(3):
            function()
        outputs = function()
        calls['recorded'] += 1

        def replay():
            calls['replayed'] += 1
            for one, other in zip(flat(outputs), flat(function()), strict=True):
                one.copy_(other)

        return replay, outputs

    def flat(outputs):
        return [*outputs[0], *outputs[1].values()]

    monkeypatch.setattr(cuda_graph, 'record', record)
    monkeypatch.setattr(cuda_graph.torch.random, 'fork_rng', lambda *_, **__: contextlib.nullcontext())
    monkeypatch.setattr(classifier, '_on_gpu', lambda model: True)
    return calls


@pytest.mark.parametrize('amp', [False, True], ids=['float32', 'bfloat16'])
def test_steps_are_to_the_bit_those_of_mmengine(run_again, amp):
    """With batches of another size in between, and a teacher from the fifth on."""
    plain, recorded = build(), build(cuda_graph=True)
    expected, found = train(plain, amp=amp, teacher_after=4), train(recorded, amp=amp, teacher_after=4)
    assert found == expected
    assert [list(one) for one in found] == [['loss', 'loss_ce']] * 4 + [['loss', 'loss_ce', 'loss_kl']] * 3
    assert run_again == {'recorded': 2, 'replayed': 5}
    for (key, one), other in zip(recorded.state_dict().items(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other), key
    assert (recorded.train_hits, recorded.train_seen) == (plain.train_hits, sum(COUNTS))


def test_labels_that_are_probabilities_are_another_form(run_again):
    model = build(cuda_graph=True).train()
    optimizer = OptimWrapper(FusedSGD(model.parameters(), lr=0.05))
    for batch in batches((8, 8)):
        model.train_step(dict(batch), optimizer)
        soft = torch.nn.functional.one_hot(batch['labels'], 10).float()
        model.train_step({**batch, 'labels': soft}, optimizer)
    assert run_again == {'recorded': 1, 'replayed': 2}


@pytest.mark.parametrize('kind, more', [(OptimWrapper, {'accumulative_counts': 2}), (AmpOptimWrapper, {})])
def test_what_stands_between_loss_and_optimizer_is_left_alone(run_again, monkeypatch, kind, more):
    monkeypatch.setattr('mmengine.optim.optimizer.amp_optimizer_wrapper.is_cuda_available', lambda: True)
    model = build(cuda_graph=True).train()
    optimizer = kind(optimizer=torch.optim.SGD(model.parameters(), lr=0.05), **more)
    monkeypatch.setattr(optimizer, 'update_params', lambda loss: None)
    model.train_step(batches((4,))[0], optimizer)
    assert run_again['recorded'] == 0


def test_a_network_that_cannot_be_recorded_trains_as_it_is(run_again, monkeypatch):
    def refuse(*_):
        raise RuntimeError('operation not permitted when stream is capturing')

    monkeypatch.setattr(classifier, 'RecordedStep', refuse)
    plain, model = build(), build(cuda_graph=True)
    assert train(model) == train(plain)
    assert not model.cuda_graph and run_again['recorded'] == 0


def test_without_a_gpu_nothing_is_recorded():
    model = build(cuda_graph=True)
    assert train(model) == train(build())
    assert model._recorded is None and model.cuda_graph


class FakeCuda:
    """Streams, recording and the mode that refuses to wait, as far as :func:`cuda_graph.record` sees them."""

    def __init__(self):
        self.now, self.mode, self.waits = 'main', 'warn', []

    def CUDAGraph(self):
        return SimpleNamespace(replay=None)

    def Stream(self, device):
        return self._stream('side')

    def current_stream(self, device):
        return self._stream(self.now)

    def _stream(self, name):
        return SimpleNamespace(name=name, wait_stream=lambda other: self.waits.append((name, other.name)))

    def set_stream(self, stream):
        self.now = stream.name

    @contextlib.contextmanager
    def stream(self, stream):
        self.now = stream.name
        try:
            yield
        finally:
            self.now = 'main'

    @contextlib.contextmanager
    def graph(self, graph, capture_error_mode):
        self.now = 'recording'
        yield  # what is raised here leaves the stream as it is, as PyTorch does
        self.now = 'main'

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode


@pytest.mark.parametrize('fails', [None, ('side', 'error'), ('recording', 'warn')])
def test_what_reads_a_value_fails_before_it_is_recorded_and_nothing_stays_behind(monkeypatch, fails):
    cuda, calls = FakeCuda(), []
    monkeypatch.setattr(cuda_graph.torch, 'cuda', cuda)

    def function():
        calls.append((cuda.now, cuda.mode))
        if calls[-1] == fails:
            raise RuntimeError('called a synchronizing CUDA operation')
        return 'outputs'

    with pytest.raises(RuntimeError, match='synchronizing') if fails else contextlib.nullcontext():
        assert cuda_graph.record(function, None)[1] == 'outputs'
    expected = [('side', 'warn'), ('side', 'warn'), ('side', 'error'), ('recording', 'warn')]
    assert calls == (expected if fails is None else expected[: expected.index(fails) + 1])
    assert (cuda.now, cuda.mode) == ('main', 'warn')
    assert cuda.waits == [('side', 'main'), ('main', 'side')]


@pytest.mark.cuda
def test_cuda_a_network_that_reads_a_value_trains_as_it_is_and_cuda_is_as_before():
    plain, model = (build(cuda_graph=graph).cuda().train() for graph in (False, True))
    for one in (plain, model):
        one.network.bn1.register_forward_hook(lambda module, inputs, out: out * (out.mean().item() < 1e9))
    start = copy.deepcopy(plain.state_dict())
    stream = torch.cuda.current_stream()
    expected, found = train(plain, 'cuda', lr=0.01), train(model, 'cuda', lr=0.01)
    assert not model.cuda_graph and model._recorded is None
    assert torch.cuda.current_stream() == stream and torch.cuda.get_sync_debug_mode() == 0
    assert [one['loss'] for one in found] == pytest.approx([one['loss'] for one in expected], rel=0.03)
    assert apart(model.state_dict(), plain.state_dict(), start) < 0.5
    # Memory that two streams have used is only given out again where no recording is underway.
    used = torch.empty(2**24, device='cuda')
    side = torch.cuda.Stream()
    used.record_stream(side)
    place = used.data_ptr()
    del used
    torch.cuda.synchronize()
    assert torch.empty(2**24, device='cuda').data_ptr() == place


@pytest.mark.cuda
@pytest.mark.parametrize('network', ['cifar_resnet20', 'resnet18'])
@pytest.mark.parametrize('compile', [False, True], ids=['eager', 'compiled'])
def test_cuda_steps_are_those_without_a_graph(network, compile):
    plain, recorded = build(network), build(network, cuda_graph=True, compile=compile)
    start = copy.deepcopy(plain.state_dict())
    expected = train(plain, 'cuda', teacher_after=4, lr=0.01)
    found = train(recorded, 'cuda', teacher_after=4, lr=0.01)
    assert recorded._recorded is not None
    assert [one['loss'] for one in found] == pytest.approx([one['loss'] for one in expected], rel=0.03)
    assert list(recorded.state_dict()) == list(start)
    assert apart(recorded.state_dict(), plain.state_dict(), start) < 0.5
    assert recorded.network.bn1.num_batches_tracked == len(COUNTS)


@pytest.mark.cuda
def test_cuda_recording_leaves_no_trace_and_reads_the_weights_of_the_moment():
    model = build(cuda_graph=True).cuda().train()
    model.train_step(batches((8,))[0], OptimWrapper(FusedSGD(model.parameters(), lr=0.0)))
    assert model.network.bn1.num_batches_tracked == 1
    before = copy.deepcopy(model.state_dict())
    model.load_state_dict({key: torch.zeros_like(value) for key, value in before.items()})
    random = torch.cuda.get_rng_state()
    loss = model.train_step(batches((8,))[0], OptimWrapper(FusedSGD(model.parameters(), lr=0.0)))['loss']
    assert loss.item() == pytest.approx(torch.tensor(10.0).log().item())
    assert torch.equal(torch.cuda.get_rng_state(), random)


@pytest.mark.cuda
def test_cuda_a_model_that_moves_is_recorded_anew():
    model = build(cuda_graph=True).cuda().train()
    model.train_step(batches((8,))[0], OptimWrapper(FusedSGD(model.parameters(), lr=0.0)))
    assert model._recorded is not None
    assert model.cpu()._recorded is None
