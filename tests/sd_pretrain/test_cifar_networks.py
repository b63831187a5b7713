"""The networks of Section 4.1: their sizes, their shapes, and what makes them the paper's."""

import pytest
import timm
import torch
from mmengine.registry import MODELS
from torch import nn

from sd_pretrain.classifier import check_network
from sd_pretrain.cli import InputError
from sd_pretrain.networks import CifarDenseNet, CifarResNet, ResidualBlock

# Parameters at 100 classes, counted by hand from Section 4.1.1; the paper gives the rounded ones.
COUNTS = {
    'cifar_resnet20': 275_572,
    'cifar_resnet32': 470_004,
    'cifar_resnet56': 858_868,
    'cifar_resnet110': 1_733_812,
    'cifar_densenet100': 800_032,
    'cifar_densenet190': 25_821_620,
}
ROUNDED = {'resnet20': 0.28, 'resnet110': 1.7, 'densenet100': 0.8, 'densenet190': 25.8}


@pytest.mark.parametrize('name', COUNTS)
def test_parameter_count(name):
    check_network(name)
    with torch.device('meta'):
        model = MODELS.build(dict(type='TimmClassifier', network=name, num_classes=100))
    count = sum(parameter.numel() for parameter in model.parameters())
    assert count == COUNTS[name]
    rounded = ROUNDED.get(name.removeprefix('cifar_'))
    assert rounded is None or float(f'{count / 1e6:.2g}' if rounded < 10 else f'{count / 1e6:.1f}') == rounded


@pytest.mark.parametrize('name', COUNTS)
def test_depth_is_the_number_of_convolutions_and_the_classifier(name):
    with torch.device('meta'):
        network = timm.create_model(name)
    layers = [module for module in network.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(layers) == int(name.lstrip('abcdefghijklmnopqrstuvwxyz_'))


@pytest.mark.parametrize(
    'name, sizes',
    [
        ('cifar_resnet20', {'layer1': (16, 32), 'layer2': (32, 16), 'layer3': (64, 8)}),
        ('cifar_densenet100', {'conv1': (24, 32), 'transition1': (108, 16), 'block3': (342, 8)}),
        ('cifar_densenet190', {'conv1': (80, 32), 'transition1': (660, 16), 'block3': (2190, 8)}),
    ],
)
def test_channels_and_resolution_of_the_stages(name, sizes):
    seen = {}
    with torch.device('meta'):
        network = timm.create_model(name, num_classes=7)
        for stage in sizes:
            network.get_submodule(stage).register_forward_hook(
                lambda module, inputs, output, stage=stage: seen.update({stage: tuple(output.shape[1:3])})
            )
        assert network(torch.empty(2, 3, 32, 32)).shape == (2, 7)
    assert seen == sizes


def test_shortcut_is_the_identity_and_zeros_where_channels_grow():
    block = ResidualBlock(2, 5).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 4, 4)
    out = block(x)
    assert torch.equal(out[:, :2], x)
    assert not out[:, 2:].any()


@pytest.mark.parametrize('name', ['cifar_resnet20', 'cifar_densenet100'])
def test_every_parameter_learns(name):
    torch.manual_seed(0)
    network = timm.create_model(name, num_classes=3)
    network(torch.randn(2, 3, 32, 32)).square().sum().backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in network.parameters())


def test_convolutions_start_by_fan_out():
    torch.manual_seed(0)
    weight = timm.create_model('cifar_resnet20').layer3[2].conv2.weight
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert not timm.create_model('cifar_resnet20').fc.bias.any()


def test_depths_that_do_not_divide_and_published_weights_are_refused():
    with pytest.raises(ValueError, match='6n \\+ 2, found 18'):
        CifarResNet(18)
    with pytest.raises(ValueError, match='6n \\+ 4, found 121'):
        CifarDenseNet(121, 12, 24)
    with pytest.raises(InputError, match='no published weights'):
        timm.create_model('cifar_resnet20', pretrained=True)
