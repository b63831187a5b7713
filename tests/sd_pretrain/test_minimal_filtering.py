"""Convolutions of small maps with fewer products: the same numbers."""

import pytest
import torch
from torch.nn import functional as F

from sd_pretrain.minimal_filtering import MinimalFilter, transforms

SIZES = MinimalFilter.sizes


@pytest.mark.parametrize('size', SIZES)
def test_it_is_the_convolution(size):
    torch.manual_seed(0)
    maps, weight = torch.randn(5, 7, size, size).double(), torch.randn(6, 7, 3, 3).double()
    bias = torch.randn(6).double()
    found = MinimalFilter(weight, bias, size)(maps)
    torch.testing.assert_close(found, F.conv2d(maps, weight, bias, padding=1), rtol=1e-12, atol=1e-12)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
def test_float32_is_within_a_few_roundings(size, memory_format):
    torch.manual_seed(0)
    maps = torch.randn(16, 256, size, size).relu().contiguous(memory_format=memory_format)
    weight = torch.randn(128, 256, 3, 3) / 48
    expected = F.conv2d(maps.double(), weight.double(), padding=1)
    found = MinimalFilter(weight, torch.zeros(128), size)(maps)
    assert (found - expected).abs().max() / expected.abs().max() < 4e-6


@pytest.mark.parametrize('size, products', [(2, 3), (3, 5), (4, 6)])
def test_along_an_axis_it_takes_fewer_products_than_the_convolution(size, products):
    kernel, before, after = transforms(size)
    assert (kernel.shape, before.shape, after.shape) == ((products, 3), (products, size), (size, products))
