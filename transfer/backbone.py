"""Put a backbone into a detector, segmentor or probe, and prove that it arrived."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint
from transfer.architecture import detect_arch
from transfer.checkpoint_io import check_hashed_name, is_published, sha256_of
from transfer.sources import resolve
from transfer.timm_network import TimmNetwork, named_network, recorded_network, unlike
from transfer.timm_pyramid import TimmPyramid

# Where a backbone lives in a model: the backbone itself, and layer4 on the RoIs of a C4 detector.
PLACES = ('backbone', 'roi_head.shared_head')
RANDOM = 'none'
# Settings of a ResNet with which the same weights are those of another network, or not all there are.
_OTHER_NETWORK = ('deep_stem', 'avg_down', 'conv_cfg', 'dcn', 'plugins')
_CHANNELS = ('stem_channels', 'base_channels')


@dataclass(frozen=True)
class Backbone:
    """A backbone file: where it is, the sha256 of its bytes, its architecture and its tensors.

    The random initialisation is one too: path and sha256 ``'none'``, no architecture, no tensors; or of a
    network by its name, ``'none:NAME'``. ``network`` is set where it is no plain ResNet.
    """

    path: str
    sha256: str
    arch: str | None
    tensors: dict[str, Tensor]
    network: TimmNetwork | None = None

    @property
    def random(self) -> bool:
        """Whether it is a random initialisation."""
        return not self.tensors

    def same_weights(self, other: Backbone) -> bool:
        """Whether the tensors are those of ``other``, whatever else the files hold."""
        return self.tensors.keys() == other.tensors.keys() and all(
            torch.equal(value, other.tensors[name]) for name, value in self.tensors.items()
        )


def read_backbone(path: str | Path) -> Backbone:
    """Read a backbone file: one of ``transfer.convert``, or other tensors under torchvision's key names.

    ``'none'`` stands for the random initialisation, ``'none:NAME'`` for that of one of timm's networks. A
    network that is no plain ResNet is read from a checkpoint that names it, ``timm:NAME`` or ``NAME@FILE``.

    Raises:
        InputError: there is no such file or network, or it is not a file of tensors with a backbone in it.
    """
    if is_random(path):
        arch = str(path).partition(':')[2] or None
        return Backbone(str(path), str(path), arch, {}, arch and named_network(arch))
    name, source = str(path), resolve(path)
    path = source.path
    content = load_checkpoint(path)
    sha256 = sha256_of(path)
    network = recorded_network(content, source.network)
    if network is not None:
        return Backbone(source.again, sha256, network.name, network.read_weights(content, name), network)
    if is_published(content.get('meta')):
        check_hashed_name(path, sha256)
    tensors = content.get('state_dict', content)
    if not isinstance(tensors, dict) or 'conv1.weight' not in tensors:
        raise InputError(
            f'{path} holds no backbone under torchvision key names (no conv1.weight): '
            'convert it with tools/convert_checkpoint.py --to mmdet, or say which of timm it is, NETWORK@FILE'
        )
    return Backbone(str(path.resolve()), sha256, detect_arch(tensors, str(path)), tensors)


def is_random(source: str | Path) -> bool:
    """Whether the name of a checkpoint means random weights."""
    return str(source) == RANDOM or str(source).startswith(f'{RANDOM}:')


def config_arch(cfg: Any) -> str | None:
    """Return the architecture of a config, such as ``'resnet152'``; ``None``: any network of timm's.

    Raises:
        InputError: its backbone is not a ResNet that a checkpoint of ResNet's weights fits as it is.
    """
    backbone = cfg.model.get('backbone') or {}
    name, kind = Path(cfg.filename).name, str(backbone.get('type'))
    if kind == ('timm' if cfg.task == 'probe' else TimmPyramid.__name__):
        return None
    if kind.removeprefix('mmdet.').removeprefix('mmseg.') != 'ResNet' or 'depth' not in backbone:
        raise InputError(
            f'the backbone of {name} is a {kind}: a ResNet is needed (ResNetV1c and V1d have another stem, '
            'which would stay random)'
        )
    for place in PLACES:
        part = _part(cfg, place) or {}
        other = [f'{one}={part[one]!r}' for one in _OTHER_NETWORK if part.get(one)]
        other += [f'{one}={part[one]}' for one in _CHANNELS if part.get(one) not in (None, 64)]
        norm = part.get('norm_cfg') or {}
        if 'BN' not in norm.get('type', 'BN'):
            other.append(f'norm_cfg.type={norm["type"]!r}')
        if norm.get('eps', 1e-5) != 1e-5:
            other.append(f'norm_cfg.eps={norm["eps"]}')
        if other:
            raise InputError(f"the {place} of {name} has {other[0]}, which the checkpoint's network has not")
        style = part.get('style', 'pytorch')
        if style != 'pytorch':
            raise InputError(
                f"the {place} of {name} has style={style!r}, strides where the checkpoint's network "
                f"has none: set model.{place}.style='pytorch', and the mean and std that go with it"
            )
    return f'resnet{backbone.depth}'


def put_into(cfg: Any, backbone: Backbone) -> None:
    """Make a config (changed in place) initialise every place of a backbone from the file, or at random.

    Of random weights nothing is frozen but the statistics of batch normalisation, where the config has those.

    Raises:
        InputError: the file is of another architecture than the config's model.
    """
    arch, name = config_arch(cfg), Path(cfg.filename).name
    if arch is None:
        _put_network(cfg, backbone, name)
        return
    if backbone.arch not in (None, arch):
        raise InputError(
            f'{backbone.path} is a {backbone.arch}, {name} is for a {arch}: take the config of that network'
        )
    init = None if backbone.random else {'type': 'Pretrained', 'checkpoint': backbone.path}
    for place in PLACES:
        part = _part(cfg, place)
        if part is not None:
            part.init_cfg = init
            part.pop('pretrained', None)  # an older way to say the same
            if backbone.random:
                _freeze_nothing(part)


def _freeze_nothing(part: Any) -> None:
    """Have all weights of a ResNet's config trained: its blocks begin with factors of 0."""
    if 'frozen_stages' in part:
        part.frozen_stages = -1
    if part.get('norm_cfg'):
        part.norm_cfg = {**part.norm_cfg, 'requires_grad': True}


def _put_network(cfg: Any, backbone: Backbone, name: str) -> None:
    """Put a network of timm's into a config for any of them."""
    network = backbone.network
    if network is None and backbone.arch is None:
        raise InputError(
            f'{name} is for any network, and {RANDOM!r} names none: say which, as {RANDOM}:resnet50'
        )
    if cfg.task == 'probe':
        if network is not None:
            network.check_size(cfg.view.crop)
        return
    network = network or TimmNetwork(backbone.arch)  # its names of a plain ResNet's weights are torchvision's
    neck = cfg.model.get('neck') or {}
    neck = neck[0] if isinstance(neck, list) else neck  # the others go on with its maps
    if 'in_channels' not in neck:
        raise InputError(f'{name} has no neck (FPN) for the maps of a {network.name}: set model.neck')
    args = {**(cfg.model.backbone.get('args') or {}), **network.args}
    with torch.device('meta'):
        pyramid = TimmPyramid(network.name, args)
    wrong = [] if backbone.random else unlike(backbone.tensors, pyramid.network.state_dict())
    if wrong:
        raise InputError(
            f'{backbone.path} does not fit the {network.name} of {name}: {wrong[0]} is missing or of another '
            'shape'
        )
    neck.in_channels = pyramid.channels
    cfg.model.backbone.update(
        name=network.name, args=args, checkpoint=None if backbone.random else backbone.path
    )
    if network.mean:
        images = {'mean': list(network.mean), 'std': list(network.std), 'bgr_to_rgb': True}
        cfg.model.data_preprocessor.update(images)


def _part(cfg: Any, place: str) -> Any:
    part = cfg.model
    for name in place.split('.'):
        part = part.get(name) if part is not None else None
    return part


def prove_loaded(model: nn.Module, tensors: dict[str, Tensor]) -> int:
    """Compare every tensor in the backbone places of a model with the file's.

    Args:
        model: an initialised detector or segmentor.
        tensors: the backbone file's tensors.

    Returns:
        The number of tensors that are equal, which is all there are.

    Raises:
        RuntimeError: tensors of the model are not in the file or differ from it; carries their names.
    """
    equal, missing, different = 0, [], []
    for place in PLACES:
        try:
            part = model.get_submodule(place)
        except AttributeError:
            continue
        part = part.network if isinstance(part, TimmPyramid) else part
        for name, value in part.state_dict().items():
            wanted = tensors.get(name)
            if wanted is None:
                # Files of early torchvision have no batch counters, and nothing reads them at momentum 0.1.
                if not name.endswith('num_batches_tracked'):
                    missing.append(f'{place}.{name}')
            elif wanted.shape == value.shape and torch.equal(wanted.to(value), value):
                equal += 1
            else:
                different.append(f'{place}.{name}')
    if missing or different or not equal:
        raise RuntimeError(
            'the backbone file did not arrive in the model: '
            f'{equal} tensors equal, {len(missing)} not in the file {_some(missing)}, '
            f'{len(different)} different {_some(different)}'
        )
    return equal


def _some(names: list[str]) -> str:
    return f'({", ".join(names[:5])}{", ..." if len(names) > 5 else ""})' if names else ''
