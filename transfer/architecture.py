"""Which ResNet a checkpoint holds, read off the names and shapes of its weights."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sd_pretrain.cli import InputError

if TYPE_CHECKING:
    from torch import Tensor

# He et al., "Deep Residual Learning for Image Recognition", Table 1: kind of block, blocks in each stage.
ARCHS = {
    'resnet18': ('basic', (2, 2, 2, 2)),
    'resnet34': ('basic', (3, 4, 6, 3)),
    'resnet50': ('bottleneck', (3, 4, 6, 3)),
    'resnet101': ('bottleneck', (3, 4, 23, 3)),
    'resnet152': ('bottleneck', (3, 8, 36, 3)),
}

_CONTAINERS = ('state_dict', 'model', 'state_dict_ema', 'model_ema', 'ema_state_dict')
_ANCHOR = 'layer1.0.conv1.weight'
_PREFIX_PARTS = {'network', 'backbone', 'module', '_orig_mod', 'model', 'student'}
_KNOWN = re.compile(
    r'(conv1\.weight|bn1\.\w+|layer[1-4]\.\d+\.(conv[123]\.weight|bn[123]\.\w+|downsample\.(0\.weight|1\.\w+))|fc\.\w+)$'
)
# Of timm's networks, those with names and shapes of a plain ResNet that filter where that strides.
_LOOKALIKE = re.compile(r'resnet(aa|blur)\d')
# Arguments of timm's ResNets that make no difference once they are trained.
_IN_TRAINING = ('drop_rate', 'drop_path_rate', 'drop_block_rate', 'zero_init_last')


@dataclass
class Weights:
    """A ResNet's tensors under torchvision's names (``layer1.0.conv1.weight``, ``fc.weight``)."""

    tensors: dict[str, Tensor]
    prefix: str
    """What stood before the names in the checkpoint: ``network.`` in ours, ``backbone.`` in mmpretrain's."""
    ignored: list[str]
    """Names of tensors in the checkpoint that belong to something else than this network."""


def read_weights(checkpoint: Mapping[str, Any], where: str, key: str | None = None) -> Weights:
    """Find the ResNet in a loaded checkpoint: unwrap ``state_dict``, strip prefixes, rename ``head.fc``.

    Args:
        checkpoint: As :func:`sd_pretrain.safe_load.load_checkpoint` returns it.
        where: The checkpoint's name, for messages.
        key: Entry to take instead of the usual ones, e.g. ``state_dict_ema``.

    Raises:
        InputError: no tensors, no ResNet among them, or several of them; or the checkpoint says that it is
            another network, though its tensors do not.
    """
    named = recorded_name(checkpoint)
    if _LOOKALIKE.match(named):
        raise InputError(
            f'{where} is a {named}: its weights have the names and shapes of a plain ResNet, which strides '
            'where it filters, so the features would be others'
        )
    other = {key: value for key, value in recorded_args(checkpoint).items() if key not in _IN_TRAINING}
    if named.partition('.')[0] in ARCHS and other:
        raise InputError(
            f'{where} is a {named} with model.network_args={other}: a plain ResNet with its weights computes '
            'other features'
        )
    tensors = select_tensors(checkpoint, where, key)
    prefix = _prefix(tensors, where, named)
    ours = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    ignored = [name for name in tensors if not name.startswith(prefix)]
    if prefix.endswith('backbone.'):
        head = prefix.removesuffix('backbone.') + 'head.fc.'
        ours.update(
            {f'fc.{name.removeprefix(head)}': tensors[name] for name in ignored if name.startswith(head)}
        )
        ignored = [name for name in ignored if not name.startswith(head)]
    return Weights(ours, prefix, ignored)


def detect_arch(state_dict: Mapping[str, Tensor], where: str = 'the checkpoint') -> str:
    """The architecture, ``resnet18`` to ``resnet152``, of a state_dict (with or without a known prefix).

    Raises:
        InputError: another network (deep stem, grouped or wide, squeeze-excitation, other block counts); says
            what was found.
    """
    names = state_dict if _ANCHOR in state_dict else read_weights(state_dict, where).tensors
    found = _oddity(names)
    if found is None:
        kind = 'bottleneck' if 'layer1.0.conv3.weight' in names else 'basic'
        counts = tuple(_blocks(names, stage) for stage in (1, 2, 3, 4))
        for arch, settings in ARCHS.items():
            if settings == (kind, counts):
                return arch
        found = f'{kind} blocks in stages of {", ".join(map(str, counts))}'
    raise InputError(f'{where} is none of the plain {", ".join(ARCHS)}: found {found}')


def recorded_name(checkpoint: Mapping[str, Any]) -> str:
    """The network by the checkpoint's own words: of our snapshots, our epochs, timm's training script."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    settings = meta.get('run_settings') or {}
    return str(meta.get('arch') or settings.get('model.network') or checkpoint.get('arch') or '')


def recorded_args(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """Further arguments of ``timm.create_model`` by the words of our snapshots and epochs."""
    meta = checkpoint.get('meta')
    meta = meta if isinstance(meta, dict) else {}
    settings = meta.get('run_settings') or {}
    return meta.get('network_args') or settings.get('model.network_args') or {}


def select_tensors(checkpoint: Mapping[str, Any], where: str, key: str | None = None) -> dict[str, Tensor]:
    """The tensors of a loaded checkpoint: of the entry ``key``, or of the first that is known, or its own.

    Raises:
        InputError: there are none; says what there is.
    """
    from torch import Tensor

    if key is not None and not isinstance(checkpoint.get(key), Mapping):
        raise InputError(f'{where} has no entry {key!r} with weights in it; it has {_some(list(checkpoint))}')
    inner: Mapping[str, Any] = checkpoint
    keys = [key] if key else [name for name in _CONTAINERS if isinstance(checkpoint.get(name), Mapping)]
    if keys:
        inner = checkpoint[keys[0]]
    tensors = {
        name: value for name, value in inner.items() if isinstance(name, str) and isinstance(value, Tensor)
    }
    if not tensors:
        inside = [
            name
            for name, value in inner.items()
            if isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())
        ]
        if inside and key is None:
            raise InputError(
                f'{where} has weights in {_some(inside)}: take one with tools/convert_checkpoint.py --key'
            )
        raise InputError(f'{where} has no weights in it; its entries are {_some(list(checkpoint))}')
    return tensors


def choose_prefix(prefixes: Sequence[str], where: str, what: str) -> str | None:
    """Which of the prefixes under which a checkpoint has whole networks; ``None`` if there are none.

    Raises:
        InputError: there are several, and no usual one among them, or several of those.
    """
    known = [prefix for prefix in prefixes if set(prefix.split('.')[:-1]) <= _PREFIX_PARTS]
    if len(known or prefixes) > 1:
        raise InputError(
            f'{where}: cannot tell which network to take: {what} under the prefixes {_some(prefixes)}; '
            'save the state_dict of the one you want'
        )
    return next(iter(known or prefixes), None)


def _prefix(tensors: Mapping[str, Tensor], where: str, named: str) -> str:
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name.endswith(_ANCHOR)]
    prefixes = [prefix for prefix in prefixes if not prefix or prefix.endswith('.')]
    chosen = choose_prefix(prefixes, where, 'ResNets')
    if chosen is not None:
        return chosen
    of = f'is of a {named}, and ' if named else ''
    raise InputError(
        f'{where} {of}holds no ResNet ({_ANCHOR} is missing); its first tensors are {_some(list(tensors))}. '
        'If they are of another network of timm, tools/transfer.sh takes them: say NETWORK@FILE'
    )


def _oddity(tensors: Mapping[str, Tensor]) -> str | None:
    """What makes this another network than a plain ResNet, in words."""
    if 'conv1.weight' not in tensors and any(name.startswith(('conv1.', 'stem.')) for name in tensors):
        return 'a deep stem of several convolutions (ResNet-C/D)'
    shape = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    if shape.get('conv1.weight', (64, 3, 7, 7)) != (64, 3, 7, 7):
        return f'a stem convolution of shape {shape["conv1.weight"]}, not (64, 3, 7, 7)'
    if len(shape.get('layer2.0.downsample.1.weight', ())) == 4:
        return 'average-pooled shortcuts (ResNet-D)'
    if any(re.search(r'\.(se|attn|se_module)\.', name) for name in tensors):
        return 'squeeze-excitation or attention inside the blocks'
    if 'layer1.0.conv3.weight' in tensors:
        inner = shape.get('layer1.0.conv2.weight', (64, 64, 3, 3))
        if inner[0] != inner[1]:
            return f'grouped 3x3 convolutions of shape {inner} (ResNeXt)'
        if inner[0] != 64:
            return f'3x3 convolutions of {inner[0]} channels in layer1, not 64 (wide ResNet)'
    unknown = [name for name in tensors if not _KNOWN.match(name)]
    return f'tensors that no plain ResNet has: {_some(unknown)}' if unknown else None


def _blocks(tensors: Mapping[str, Tensor], stage: int) -> int:
    return len({name.split('.')[1] for name in tensors if name.startswith(f'layer{stage}.')})


def _some(names: list[Any], most: int = 5) -> str:
    """The first few names, for a one-line message."""
    more = f' and {len(names) - most} more' if len(names) > most else ''
    return ', '.join(str(name) for name in names[:most]) + more
