"""The proof of a conversion: the target network, loaded from the written file, computes the same features."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from sd_pretrain.cli import InputError

STAGES = ('layer1', 'layer2', 'layer3', 'layer4')

# Output stride 16, as in the transfer's DeepLabv3: stage 4 keeps its resolution and dilates instead.
_DEEPLAB = {'strides': (1, 2, 2, 1), 'dilations': (1, 1, 1, 2), 'contract_dilation': True}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep mmengine's loading logs (unexpected key fc.weight, ...) and import warnings off the screen."""
    from mmengine.logging import MMLogger

    logger = MMLogger.get_current_instance()
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def build_target(
    arch: str, target: str, num_classes: int = 0, file: Path | None = None
) -> dict[str, nn.Module]:
    """The networks that a converted file is for.

    Args:
        arch: ``resnet18`` to ``resnet152``.
        target: One of :data:`transfer.convert.TARGETS`.
        num_classes: Of the classifier; 0 for a network without one. Those of mmdet and mmseg have none.
        file: Load this file by the target's own mechanism (mm's ``init_cfg``, ``load_state_dict``, timm's
            ``checkpoint_path``, mmengine's ``load_checkpoint``); without it, names and shapes only.

    Returns:
        ``{'network': ...}``, for mmdet also ``'shared_head'``: Faster R-CNN C4's layer4.
    """
    if file is None:
        with torch.device('meta'):
            return _build(arch, target, num_classes, None)
    with quiet():
        return _build(arch, target, num_classes, file)


def _build(arch: str, target: str, num_classes: int, file: Path | None) -> dict[str, nn.Module]:
    depth = int(arch.removeprefix('resnet'))
    init_cfg = None if file is None else {'type': 'Pretrained', 'checkpoint': str(file)}
    if target in ('mmdet', 'mmseg'):
        from transfer import mmcv_ops

        with quiet():
            mmcv_ops.install()
            if target == 'mmdet':
                from mmdet.models.backbones import ResNet
                from mmdet.models.roi_heads.shared_heads import ResLayer

                networks = {
                    'network': ResNet(depth, init_cfg=init_cfg),
                    'shared_head': ResLayer(depth, stage=3, init_cfg=init_cfg),
                }
            else:
                from mmseg.models.backbones import ResNet

                networks = {'network': ResNet(depth, init_cfg=init_cfg, **_DEEPLAB)}
            if file is not None:
                for network in networks.values():
                    network.init_weights()
        return networks
    if target == 'timm':
        import timm

        return {'network': timm.create_model(arch, num_classes=num_classes, checkpoint_path=str(file or ''))}
    network = reference_network(arch, num_classes, 'timm' if target == 'sd_pretrain' else 'torchvision')
    if file is not None and target == 'torchvision':
        network.load_state_dict(torch.load(file, weights_only=True)['state_dict'])
    elif file is not None:
        from mmengine.runner import load_checkpoint

        holder = nn.ModuleDict({'network': network})  # as the pretraining classifier holds it
        load_checkpoint(holder, str(file), map_location='cpu', strict=True, logger='current')
    return {'network': network}


def reference_network(arch: str, num_classes: int, library: str) -> nn.Module:
    """``arch`` of torchvision or timm, with ``num_classes`` outputs, or without ``fc`` for 0."""
    if library == 'timm':
        import timm

        return timm.create_model(arch, num_classes=num_classes)
    import torchvision

    network = getattr(torchvision.models, arch)(num_classes=max(num_classes, 1))
    if not num_classes:
        network.fc = nn.Identity()
    return network


def expected_tensors(arch: str, target: str, num_classes: int) -> dict[str, dict[str, Tensor]]:
    """Names and (data-less) tensors of every parameter and buffer of the target's networks."""
    return {part: network.state_dict() for part, network in build_target(arch, target, num_classes).items()}


def dilate_stage4(network: nn.Module) -> None:
    """Turn a torchvision or timm ResNet, in place, into output stride 16 by atrous convolution.

    Chen et al., "Rethinking Atrous Convolution for Semantic Image Segmentation", Sec. 3, with multi-grid
    (1, 1, 1): the stride of stage 4 becomes 1, and what came after the stride is dilated at rate 2. In each
    block that is the convolution at the stride's place; the first block's still sees the grid before it and
    keeps rate 1. timm's own ``output_stride=16`` dilates both convolutions of basic blocks, mmseg does not.
    """
    for index, block in enumerate(network.layer4):
        conv = block.conv2 if hasattr(block, 'conv3') else block.conv1
        rate = 2 if index else 1
        conv.stride, conv.dilation, conv.padding = (1, 1), (rate, rate), (rate, rate)
        if block.downsample is not None:
            block.downsample[0].stride = (1, 1)


def compare(
    file: Path, arch: str, target: str, source: Mapping[str, Tensor], library: str, tolerance: float = 1e-5
) -> dict[str, float]:
    """Run the source network and the target, loaded from ``file``, on the same random images in eval mode.

    The source network is that of the library the checkpoint comes from (torchvision's for mmpretrain's), with
    the checkpoint's own tensors. For mmseg it gets the strides and dilations with which DeepLabv3 will use
    the backbone, so that what is compared is the function that will be used.

    Args:
        file: The written file.
        arch: ``resnet18`` to ``resnet152``.
        target: One of :data:`transfer.convert.TARGETS`.
        source: Tensors under torchvision's names, as read from the source.
        library: ``torchvision`` or ``timm``: who builds the source network.
        tolerance: Largest allowed difference, relative to the largest feature of the stage.

    Returns:
        The relative difference by stage (``layer1`` .. ``layer4``, and ``shared_head`` or ``logits``).

    Raises:
        InputError: a stage disagrees, or a tensor arrived in the target with other values.
    """
    classes = len(source['fc.bias']) if 'fc.bias' in source and target not in ('mmdet', 'mmseg') else 0
    with torch.device('meta'):
        reference = reference_network(arch, classes, library)
    # A network trained in channels_last saves its tensors so: other strides, other kernels, other rounding.
    plain = torch.contiguous_format
    expected = {name: source[name].clone(memory_format=plain) for name in reference.state_dict()}
    floats = {name: value.float() if value.is_floating_point() else value for name, value in expected.items()}
    reference.load_state_dict(floats, assign=True)
    if target == 'mmseg':
        dilate_stage4(reference)
    networks = build_target(arch, target, classes, file)
    images = torch.randn(
        2, 3, 97, 65, generator=torch.Generator().manual_seed(0)
    )  # odd sizes show padding mistakes
    wanted, found = _features(reference, images, classes), _features(networks['network'], images, classes)
    if 'shared_head' in networks:
        networks['shared_head'].eval()
        with torch.no_grad():
            found['shared_head'] = networks['shared_head'](found['layer3'])
        wanted['shared_head'] = wanted['layer4']
    differences = {stage: relative_difference(found[stage], wanted[stage]) for stage in wanted}
    wrong = [stage for stage, difference in differences.items() if not difference <= tolerance]
    altered = _altered(networks, expected)
    if wrong or altered:
        stages = ', '.join(f'{stage} by {differences[stage]:.1e}' for stage in wrong) or 'none'
        tensors = f'; tensors with other values: {", ".join(altered[:5])}' if altered else ''
        raise InputError(
            f'features of {target} {arch} differ from the source beyond {tolerance:g} relative: '
            f'{stages}{tensors}'
        )
    return differences


def _features(network: nn.Module, images: Tensor, classes: int) -> dict[str, Tensor]:
    """Outputs of the four stages, (N, C, H, W) each, and logits (N, classes) where there is a classifier."""
    features = {}
    hooks = [
        getattr(network, stage).register_forward_hook(
            lambda module, inputs, output, stage=stage: features.update({stage: output.clone()})
        )
        for stage in STAGES
    ]
    network.eval()  # returns nothing in mmdet and mmseg
    with torch.no_grad():
        output = network(images)
    for hook in hooks:
        hook.remove()
    return features | ({'logits': output} if classes else {})


def relative_difference(found: Tensor, wanted: Tensor) -> float:
    """Largest difference, as a part of the largest value that is wanted."""
    if found.shape != wanted.shape:
        return float('inf')
    return float((found - wanted).abs().max() / wanted.abs().max().clamp(min=torch.finfo(wanted.dtype).tiny))


def _altered(networks: Mapping[str, nn.Module], expected: Mapping[str, Tensor]) -> list[str]:
    """Tensors that did not arrive bit by bit; features cannot show this for a channel that is always off."""
    return [
        f'{part}.{name}'
        for part, network in networks.items()
        for name, value in network.state_dict().items()
        if not torch.equal(value, expected[name].to(value.dtype))
    ]
