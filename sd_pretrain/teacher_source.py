"""A teacher out of a file: a checkpoint of another run teaches this one (Eqn 2, two-generation training)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

import sd_pretrain.networks  # noqa: F401 - timm knows them from here on
from sd_pretrain.checkpoint import misfits, read_checkpoint
from sd_pretrain.cli import InputError
from sd_pretrain.schedule import HOOK

_PREFIX = 'network.'
_DEFAULTS = {'checkpoint': None, 'from_epoch': 0, 'network': None, 'network_args': None}


def teacher_spec(teacher: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The hook's ``teacher`` with its defaults filled in; ``None`` stays: the run's own snapshots teach.

    Args:
        teacher: ``checkpoint``, the path of a ``snapshot_k.pth`` or ``epoch_N.pth``; ``from_epoch``, the
            number of epochs that are trained by Eqn 1 before it teaches (0); ``network``, the teacher's name
            for ``timm.create_model`` (the student's), and ``network_args`` for it.

    Raises:
        InputError: an unknown key, no checkpoint, or a ``from_epoch`` that is no number of epochs.
    """
    if teacher is None:
        return None
    known = ', '.join(_DEFAULTS)
    if not isinstance(teacher, Mapping) or set(teacher) - set(_DEFAULTS):
        found = sorted(set(teacher) - set(_DEFAULTS)) if isinstance(teacher, Mapping) else teacher
        raise InputError(f'the teacher of {HOOK} is None or a dict of {known}; found {found!r}')
    spec = _DEFAULTS | dict(teacher)
    if not isinstance(spec['checkpoint'], str | Path):
        raise InputError(
            f'the teacher of {HOOK} needs checkpoint, the path of a snapshot_k.pth or epoch_N.pth of another '
            f'run; found {spec["checkpoint"]!r}'
        )
    if not isinstance(spec['from_epoch'], int) or spec['from_epoch'] < 0:
        raise InputError(f"the teacher's from_epoch is a number of epochs, found {spec['from_epoch']!r}")
    return spec


def identified(teacher: Mapping[str, Any]) -> dict[str, Any]:
    """What a file teacher is, wherever it lies: its settings, with its weights' hash as ``checkpoint``.

    Raises:
        InputError: see :func:`teacher_spec` and :func:`sd_pretrain.checkpoint.read_checkpoint`.
    """
    spec = teacher_spec(teacher)
    return spec | {'checkpoint': f'weights sha256 {weights_sha256(_read(spec)["state_dict"])}'}


def weights_sha256(state_dict: Mapping[str, Tensor]) -> str:
    """Hash of names, shapes, types and values, so the same for all files that hold the same weights."""
    digest = hashlib.sha256()
    for key in sorted(state_dict):
        value = state_dict[key].detach().cpu().contiguous()
        digest.update(f'{key} {tuple(value.shape)} {value.dtype}\n'.encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_teacher_source(
    teacher: Mapping[str, Any] | None, model: Mapping[str, Any], epochs: int, distill: bool = True
) -> None:
    """Check, before anything is trained, that a file teacher is there, fits and has something to teach.

    Args:
        teacher: the hook's ``teacher``.
        model: the config's ``model``, the student.
        epochs: length of the run.
        distill: the hook's ``distill``.

    Raises:
        InputError: it does not; what was expected and what was found are in the message.
    """
    spec = teacher_spec(teacher)
    if spec is None:
        return
    if not distill:
        raise InputError(f'{HOOK} has a teacher and distill=False; drop the teacher, or distill')
    if spec['from_epoch'] >= epochs:
        raise InputError(
            f'the teacher would begin after epoch {spec["from_epoch"]} of a run of {epochs} epochs; '
            'lower from_epoch'
        )
    content = _read(spec)
    name = spec['network'] or model['network']
    arch = _recorded_network(content)
    if arch not in (None, name):
        raise InputError(
            f'the teacher {spec["checkpoint"]} is a {arch}, expected was a {name}; '
            f"set the network of {HOOK}'s teacher to '{arch}'"
        )
    classes = model.get('num_classes', 1000)
    with torch.device('meta'):
        network = _create(spec, model['network'], model.get('network_args'), classes)
    _check_weights(network, content, spec['checkpoint'], classes, name)


def load_teacher(
    teacher: Mapping[str, Any], student: str, network: nn.Module, args: Mapping[str, Any] | None, classes: int
) -> nn.Module:
    """The teacher's network out of its file, on the student's device and in its memory format.

    Methods that need more than the teacher's logits (hints on features, as FitNet has them) find it in
    ``FrozenTeacher.network``.

    Args:
        teacher: the hook's ``teacher``.
        student: the student's name for ``timm.create_model``.
        network: the student's network.
        args: the student's ``network_args``.
        classes: the student's number of classes.

    Raises:
        InputError: the file cannot be read or does not fit.
    """
    spec = teacher_spec(teacher)
    content = _read(spec)
    # The initial weights are drawn and thrown away: the run's own random numbers stay as they are.
    with torch.random.fork_rng(devices=[]):
        built = _create(spec, student, args, classes)
    _check_weights(built, content, spec['checkpoint'], classes, spec['network'] or student)
    built.load_state_dict(_weights(content))
    weight = next(network.parameters())
    last = any(
        value.ndim == 4 and value.shape[1] > 1 and not value.is_contiguous() for value in network.parameters()
    )
    built.to(weight.device, memory_format=torch.channels_last if last else torch.preserve_format)
    return built


def _read(spec: dict[str, Any]) -> dict[str, Any]:
    try:
        return read_checkpoint(spec['checkpoint'])
    except InputError as error:
        raise InputError(f'the teacher: {error}') from None


def _create(spec: dict[str, Any], student: str, args: Mapping[str, Any] | None, classes: int) -> nn.Module:
    if spec['network'] is None:
        # The student's own network; its arguments are the teacher's unless that has some.
        return timm.create_model(student, num_classes=classes, **(spec['network_args'] or args or {}))
    if not timm.is_model(spec['network']):
        raise InputError(f"timm has no network '{spec['network']}' (network of {HOOK}'s teacher)")
    return timm.create_model(spec['network'], num_classes=classes, **(spec['network_args'] or {}))


def _weights(content: dict[str, Any]) -> dict[str, Tensor]:
    return {
        key.removeprefix(_PREFIX): value
        for key, value in content['state_dict'].items()
        if key.startswith(_PREFIX)
    }


def _recorded_network(content: dict[str, Any]) -> str | None:
    """The architecture that a checkpoint names: a snapshot's ``meta`` does, and an epoch_N.pth's settings."""
    meta = content.get('meta') or {}
    return meta.get('arch') or (meta.get('run_settings') or {}).get('model.network')


def _check_weights(network: nn.Module, content: dict, path: str | Path, classes: int, name: str) -> None:
    wrong = misfits(network, _weights(content))
    if not wrong:
        return
    key, want, have = wrong[0]
    if all(w and h and w[0] == classes and w[1:] == h[1:] for _, w, h in wrong):
        raise InputError(f'the teacher {path} has {have[0]} classes, the student has {classes}')
    raise InputError(
        f'the teacher {path} is no {name} as its network says: {len(wrong)} weights differ, first {key}: '
        f"expected {want}, found {have}; set network of {HOOK}'s teacher"
    )
