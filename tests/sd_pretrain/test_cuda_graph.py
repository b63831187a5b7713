"""A training step as CUDA graphs: what it computes is what it computes without."""

import copy

import pytest
import torch

from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.optim import Bf16OptimWrapper, FusedSGD

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a CUDA device')


def classifier(network='cifar_resnet20', **more):
    torch.manual_seed(0)
    return TimmClassifier(network, num_classes=10, channels_last=True, **more)


def batches(*counts):
    chance = torch.Generator().manual_seed(1)
    return [
        {
            'inputs': torch.randint(0, 256, (count, 3, 32, 32), dtype=torch.uint8, generator=chance),
            'labels': torch.randint(0, 10, (count,), generator=chance),
        }
        for count in counts
    ]


def train(model, *counts):
    """The losses of a step for each batch of so many images, the second half of them taught."""
    model = model.cuda().train()
    optimizer = Bf16OptimWrapper(FusedSGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True))
    losses = []
    for batch in batches(*counts):
        losses.append(model.train_step(batch, optimizer)['loss'].detach())
    return torch.stack(losses).tolist()


def close(one, other, tolerance):
    """Whether all weights and statistics are, to a part of the largest in each tensor."""
    for (name, value), expected in zip(one.items(), other.values(), strict=True):
        value, expected = value.double(), expected.double()
        assert (value - expected).abs().max() <= tolerance * expected.abs().max() + 1e-6, name


@needs_cuda
@pytest.mark.parametrize('network', ['cifar_resnet20', 'resnet18'])
@pytest.mark.parametrize('compile', [False, True], ids=['eager', 'compiled'])
def test_steps_are_those_without_a_graph(network, compile):
    """Also around a batch of another size, and a look at other images in between."""
    counts = [32, 32, 20, 32, 32, 20]
    plain, graphed = classifier(network), classifier(network, cuda_graph=True, compile=compile)
    state = copy.deepcopy(graphed.state_dict())
    expected, found = train(plain, *counts), train(graphed, *counts)
    assert graphed.cuda_graph and graphed._graphed.shape == (32, 3, 32, 32)
    assert plain._graphed is None
    assert found == pytest.approx(expected, rel=0.02)
    assert graphed.state_dict().keys() == plain.state_dict().keys() == state.keys()
    close(graphed.state_dict(), plain.state_dict(), 0.05)
    assert graphed.network.bn1.num_batches_tracked == len(counts)
    plain.eval(), graphed.eval()
    images = torch.randn(32, 3, 32, 32, device='cuda')
    with torch.no_grad():
        assert torch.allclose(graphed(images), plain(images), rtol=0.05, atol=0.05)


@needs_cuda
def test_recording_leaves_no_trace():
    """Neither in the statistics nor in the gradients nor in the random numbers."""
    model = classifier(cuda_graph=True).cuda().train()
    before = copy.deepcopy(model.state_dict())
    random = torch.cuda.get_rng_state()
    images = torch.randn(8, 3, 32, 32, device='cuda')
    logits = model(images)
    assert torch.equal(torch.cuda.get_rng_state(), random)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.network.bn1.num_batches_tracked == 1
    first = logits.detach().clone()
    model.load_state_dict(before)
    assert torch.equal(model(images), first)
    # The weights that a checkpoint brings are the graph's, too.
    model.load_state_dict({key: torch.zeros_like(value) for key, value in before.items()})
    assert not model(images).any()


@needs_cuda
def test_a_model_that_moves_is_recorded_anew():
    model = classifier(cuda_graph=True).cuda().train()
    model(torch.randn(8, 3, 32, 32, device='cuda'))
    assert model._graphed is not None
    model.cpu()
    assert model._graphed is None
    assert model(torch.randn(8, 3, 32, 32)).device.type == 'cpu'


class ReadsValues(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = torch.nn.Linear(3, 10)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x if x.sum() > 0 else -x)


@needs_cuda
def test_a_network_that_cannot_be_recorded_trains_as_it_is():
    model = classifier(cuda_graph=True)
    model.network = ReadsValues()
    model.cuda().train()
    images = torch.randn(8, 3, 32, 32, device='cuda')
    logits = model(images)
    assert not model.cuda_graph and model._graphed is None
    assert torch.equal(model(images), logits)
    logits.sum().backward()


def test_without_a_gpu_nothing_is_recorded():
    model = classifier(cuda_graph=True).train()
    assert torch.equal(model(torch.zeros(2, 3, 32, 32)), classifier().train()(torch.zeros(2, 3, 32, 32)))
    assert model._graphed is None
    assert model.cuda_graph
