"""FusedSGD and FusedAdamW: torch.optim's steps, whatever the memory format of weights and gradients."""

import copy

import pytest
import torch
from torch import nn

from sd_pretrain.optim import FusedAdamW, FusedSGD

FORMATS = (torch.contiguous_format, torch.channels_last)
SGD, ADAMW = (FusedSGD, torch.optim.SGD), (FusedAdamW, torch.optim.AdamW)
RULES = (
    (SGD, {}),
    (SGD, {'weight_decay': 0.01}),
    (SGD, {'momentum': 0.9}),
    (SGD, {'momentum': 0.9, 'nesterov': True, 'weight_decay': 0.01}),
    (ADAMW, {}),
    (ADAMW, {'weight_decay': 0.3, 'betas': (0.8, 0.95), 'eps': 1e-3}),
)


def weights(memory_format):
    """Of a 3x3 and a 1x1 convolution and of a linear layer."""
    chance = torch.Generator().manual_seed(0)
    shapes = ((8, 4, 3, 3), (8, 4, 1, 1), (5, 8), (5,))
    drawn = [torch.randn(shape, generator=chance) for shape in shapes]
    return [nn.Parameter(laid_out(one, memory_format)) for one in drawn]


def laid_out(tensor, memory_format):
    return tensor.contiguous(memory_format=memory_format) if tensor.ndim == 4 else tensor


def train(optimizer, params, seed, memory_format):
    chance = torch.Generator().manual_seed(seed)
    for _ in range(3):
        for one in params:
            one.grad = laid_out(torch.randn(one.shape, generator=chance), memory_format)
        optimizer.step()


@pytest.mark.parametrize(('kinds', 'rule'), RULES)
@pytest.mark.parametrize('of_grads', FORMATS)
@pytest.mark.parametrize('of_weights', FORMATS)
def test_steps_are_those_of_pytorch_in_any_layout(of_weights, of_grads, kinds, rule):
    fused, plain = kinds
    ours, theirs = weights(of_weights), weights(torch.contiguous_format)
    train(fused(ours, lr=0.1, **rule), ours, 1, of_grads)
    train(plain(theirs, lr=0.1, foreach=False, **rule), theirs, 1, torch.contiguous_format)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(('kind', 'rule'), [(FusedSGD, {'momentum': 0.9}), (FusedAdamW, {})])
@pytest.mark.parametrize('before', FORMATS)
@pytest.mark.parametrize('after', FORMATS)
def test_a_state_saved_in_another_memory_format_goes_on_as_if_nothing_had_been(before, after, kind, rule):
    whole = weights(before)
    optimizer = kind(whole, lr=0.1, **rule)
    train(optimizer, whole, 1, before)
    resumed = [nn.Parameter(laid_out(one.detach().clone(), after)) for one in whole]
    second = kind(resumed, lr=0.1, **rule)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    train(optimizer, whole, 2, before)
    train(second, resumed, 2, after)
    for one, other in zip(whole, resumed, strict=True):
        assert torch.equal(one, other)


def test_weights_without_a_gradient_stay_and_may_get_one_later():
    used, unused = nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))
    optimizer = FusedSGD([used, unused], lr=0.1, momentum=0.9)
    used.grad = torch.ones(3)
    optimizer.step()
    assert torch.equal(unused, torch.ones(3))
    unused.grad = torch.ones(3)
    optimizer.step()
    torch.testing.assert_close(unused.detach(), torch.full((3,), 0.9))
    torch.testing.assert_close(used.detach(), torch.full((3,), 1 - 0.1 - 0.19))


def test_the_step_gives_the_loss_of_a_closure():
    weight = nn.Parameter(torch.tensor(2.0))
    optimizer = FusedSGD([weight], lr=0.5)

    def loss():
        value = weight**2
        value.backward()
        return value

    assert optimizer.step(loss) == 4 and weight == 0


@pytest.mark.cuda
@pytest.mark.parametrize('kind', [FusedSGD, FusedAdamW])
def test_a_gradient_scaler_on_a_gpu_is_heard(kind):
    weight = nn.Parameter(torch.ones(3, device='cuda'))
    optimizer = kind([weight], lr=0.1, weight_decay=0)
    scaler = torch.amp.GradScaler(init_scale=8.0)
    scaler.scale(weight.sum()).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(weight.detach().cpu(), torch.full((3,), 0.9))
    scaler.update()
    scaler.scale(weight.sum() * float('inf')).backward()
    scaler.step(optimizer)
    torch.testing.assert_close(weight.detach().cpu(), torch.full((3,), 0.9))
