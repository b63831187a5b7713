"""The CIFAR networks of Section 4.1, known to ``timm.create_model`` once this module is imported.

``cifar_resnet20``, ``-32``, ``-56``, ``-110``, and ``cifar_densenet100``, ``-190`` in the BC form.
"""

from __future__ import annotations

import torch
from timm.models import register_model
from torch import Tensor, nn
from torch.nn import functional as F

from sd_pretrain.cli import InputError

RESNET_CHANNELS = (16, 32, 64)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions "summed up with an identity connection" (Section 4.1.1).

    The shortcut has no parameters: where the channels grow, zeros fill the new ones (option A of the ResNet
    paper). It has no stride either, because the network pools between its stages.

    Args:
        inputs: channels that come in.
        outputs: channels that go out, at least as many.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.new_channels = outputs - inputs

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H, W)``."""
        out = F.relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.new_channels:
            x = F.pad(x, (0, 0, 0, 0, 0, self.new_channels))
        return F.relu(out + x, inplace=True)


class CifarResNet(nn.Module):
    """ResNet for 32x32 images: three stages of 16, 32 and 64 channels, average pooling after the first two.

    Args:
        depth: number of layers ``A``; each stage has ``(A - 2) / 6`` blocks.
        num_classes: number of classes.
        in_chans: channels of the images.
    """

    def __init__(self, depth: int, num_classes: int = 100, in_chans: int = 3):
        super().__init__()
        blocks, rest = divmod(depth - 2, 6)
        if rest or blocks < 1:
            raise ValueError(f'the depth of a CIFAR ResNet is 6n + 2, found {depth}')
        self.num_classes = num_classes
        width = RESNET_CHANNELS[0]
        self.conv1 = nn.Conv2d(in_chans, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        for stage, outputs in enumerate(RESNET_CHANNELS, 1):
            layer = nn.Sequential()
            for _ in range(blocks):
                layer.append(ResidualBlock(width, outputs))
                width = outputs
            self.add_module(f'layer{stage}', layer)
        self.fc = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_chans, 32, 32)`` to logits ``(N, num_classes)``."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = F.avg_pool2d(self.layer1(x), 2)
        x = F.avg_pool2d(self.layer2(x), 2)
        return self.fc(self.layer3(x).mean((2, 3)))


class DenseLayer(nn.Module):
    """BN, ReLU, 1x1 to ``4 growth`` channels, BN, ReLU, 3x3 to ``growth`` channels."""

    def __init__(self, inputs: int, growth: int):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(4 * growth)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, inputs + growth, H, W)``: what came in, and what is new."""
        out = self.conv1(F.relu(self.bn1(x), inplace=True))
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        return torch.cat((x, out), 1)


class Transition(nn.Module):
    """BN, ReLU, 1x1 to half the channels, average pooling."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.bn = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, outputs, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(N, inputs, H, W)`` to ``(N, outputs, H/2, W/2)``."""
        return F.avg_pool2d(self.conv(F.relu(self.bn(x), inplace=True)), 2)


class CifarDenseNet(nn.Module):
    """DenseNet-BC for 32x32 images: three blocks, bottlenecks, compression by one half.

    The paper names depth, growth rate and base feature length; that this is the BC form follows from the
    numbers of layers, growth 40 at depth 190 being a row of the DenseNet paper's BC models.

    Args:
        depth: number of layers; each block has ``(depth - 4) / 6`` of two convolutions.
        growth: channels that each layer adds.
        base: channels after the first convolution.
        num_classes: number of classes.
        in_chans: channels of the images.
    """

    def __init__(self, depth: int, growth: int, base: int, num_classes: int = 100, in_chans: int = 3):
        super().__init__()
        layers, rest = divmod(depth - 4, 6)
        if rest or layers < 1:
            raise ValueError(f'the depth of a CIFAR DenseNet-BC is 6n + 4, found {depth}')
        self.num_classes = num_classes
        self.conv1 = nn.Conv2d(in_chans, base, 3, padding=1, bias=False)
        width = base
        for block in (1, 2, 3):
            self.add_module(
                f'block{block}',
                nn.Sequential(*(DenseLayer(width + index * growth, growth) for index in range(layers))),
            )
            width += layers * growth
            if block < 3:
                self.add_module(f'transition{block}', Transition(width, width // 2))
                width //= 2
        self.bn = nn.BatchNorm2d(width)
        self.fc = nn.Linear(width, num_classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``(N, in_chans, 32, 32)`` to logits ``(N, num_classes)``."""
        x = self.transition1(self.block1(self.conv1(x)))
        x = self.transition2(self.block2(x))
        x = F.relu(self.bn(self.block3(x)), inplace=True)
        return self.fc(x.mean((2, 3)))


def initialise(network: nn.Module) -> None:
    """He initialisation by fan-out, bias 0, as the ResNet and DenseNet authors' code does it.

    It draws from torch's generator, which the run's seed sets before the model is built: networks of one
    architecture and seed start from the same weights, whatever the algorithm (Section 4.1.2).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif isinstance(module, nn.Linear):
            nn.init.zeros_(module.bias)


def _build(network: type[nn.Module], pretrained: bool, arguments: dict, **shape: int) -> nn.Module:
    if pretrained:
        raise InputError('there are no published weights of the CIFAR networks; drop pretrained=True')
    for key in ('pretrained_cfg', 'pretrained_cfg_overlay', 'cache_dir'):
        arguments.pop(key, None)
    return network(**shape, **arguments)


@register_model
def cifar_resnet20(pretrained: bool = False, **arguments: object) -> CifarResNet:
    """ResNet-20: 0.28 M parameters at 100 classes."""
    return _build(CifarResNet, pretrained, arguments, depth=20)


@register_model
def cifar_resnet32(pretrained: bool = False, **arguments: object) -> CifarResNet:
    """ResNet-32: 0.47 M parameters at 100 classes."""
    return _build(CifarResNet, pretrained, arguments, depth=32)


@register_model
def cifar_resnet56(pretrained: bool = False, **arguments: object) -> CifarResNet:
    """ResNet-56: 0.86 M parameters at 100 classes."""
    return _build(CifarResNet, pretrained, arguments, depth=56)


@register_model
def cifar_resnet110(pretrained: bool = False, **arguments: object) -> CifarResNet:
    """ResNet-110: 1.7 M parameters at 100 classes."""
    return _build(CifarResNet, pretrained, arguments, depth=110)


@register_model
def cifar_densenet100(pretrained: bool = False, **arguments: object) -> CifarDenseNet:
    """DenseNet-BC-100, growth 12, base 24: 0.8 M parameters at 100 classes."""
    return _build(CifarDenseNet, pretrained, arguments, depth=100, growth=12, base=24)


@register_model
def cifar_densenet190(pretrained: bool = False, **arguments: object) -> CifarDenseNet:
    """DenseNet-BC-190, growth 40, base 80: 25.8 M parameters at 100 classes."""
    return _build(CifarDenseNet, pretrained, arguments, depth=190, growth=40, base=80)
