"""3x3 convolutions on maps of a few pixels: equal to PyTorch's, gradients included."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from sd_pretrain.small_maps import SmallMapConv2d, small_map_conv, use_plain_convolutions, use_small_maps


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ('height', 'width', 'stride'), [(2, 2, 1), (4, 4, 2), (3, 4, 2), (1, 1, 1), (2, 3, 1)]
)
def test_equal_to_the_convolution_forward_and_backward(height, width, stride, memory_format):
    torch.manual_seed(0)
    maps = torch.randn(5, 7, height, width, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(6, 7, 3, 3, dtype=torch.float64).contiguous(memory_format=memory_format)
    weight.requires_grad_()
    wanted = F.conv2d(maps, weight, padding=1, stride=stride)
    found = small_map_conv(maps, weight, stride)
    toward = torch.randn_like(wanted)
    torch.testing.assert_close(found, wanted)
    for one, other in zip(
        torch.autograd.grad(found, (maps, weight), toward),
        torch.autograd.grad(wanted, (maps, weight), toward),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_a_frozen_weight_gets_no_gradient():
    maps, weight = torch.randn(3, 4, 2, 2, requires_grad=True), torch.randn(5, 4, 3, 3)
    small_map_conv(maps, weight).sum().backward()
    wanted = torch.autograd.grad(F.conv2d(maps, weight, padding=1).sum(), maps)[0]
    torch.testing.assert_close(maps.grad, wanted)


def test_under_autocast_it_computes_in_bfloat16_and_gradients_stay_float32():
    maps, weight = torch.randn(3, 4, 2, 2), torch.randn(5, 4, 3, 3, requires_grad=True)
    with torch.autocast('cpu', torch.bfloat16):
        found = small_map_conv(maps, weight)
    found.sum().backward()
    assert found.dtype == torch.bfloat16 and weight.grad.dtype == torch.float32
    torch.testing.assert_close(found.float(), F.conv2d(maps, weight, padding=1), atol=0.1, rtol=0.05)


def test_only_plain_3x3_convolutions_are_changed_and_only_on_small_maps():
    kept = (
        nn.Conv2d(2, 2, 3, padding=2, dilation=2, bias=False),
        nn.Conv2d(2, 2, 1, bias=False),
        nn.Conv2d(2, 2, 3, padding=1),
        nn.Conv2d(2, 2, 3, padding=1, groups=2, bias=False),
    )
    model = nn.Sequential(nn.Conv2d(2, 2, 3, padding=1, bias=False), *kept)
    keys = list(model.state_dict())
    assert use_small_maps(model) == 1 and list(model.state_dict()) == keys
    assert [type(one) for one in model] == [SmallMapConv2d] + [nn.Conv2d] * len(kept)
    for size in (2, 9):
        maps = torch.randn(1, 2, size, size)
        torch.testing.assert_close(model[0](maps), F.conv2d(maps, model[0].weight, padding=1))
    use_plain_convolutions(model)
    assert {type(one) for one in model} == {nn.Conv2d}
