"""What is compared: names, the checkpoints of each, and the backbone files that these are or become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint
from transfer.backbone import is_random
from transfer.checkpoint_io import is_published, read_meta, sha256_of
from transfer.convert import convert
from transfer.sources import resolve
from transfer.tasks import NAME
from transfer.timm_network import recorded_network

# One file serves both tasks, so that a name stands for one backbone, byte for byte. Converting for mmdet
# proves the most: the backbone and the shared head of C4.
_TARGET = 'mmdet'


def named_checkpoints(pairs: Sequence[str], demo: bool = False) -> dict[str, list[str]]:
    """Read ``NAME=CHECKPOINT`` arguments; the first is the baseline. Without any: the paper's BL and SD.

    A name that is there several times has several checkpoints: pretrainings of one method.

    Raises:
        InputError: a pair lacks its ``=`` or checkpoint, a name cannot name a folder, or is there twice with
            one checkpoint; or without any there are no such pretrainings.
    """
    stem = '{}_r18_demo' if demo else '{}_r152_imagenet'
    if not pairs:
        own = {name: Path('work_dirs') / stem.format(name.lower()) for name in ('BL', 'SD')}
        # A pretraining writes its result last: without one its newest snapshot is that of an earlier stage.
        missing = [folder for folder in own.values() if not (folder / 'result.json').is_file()]
        if missing:
            config = f'configs/{"demo/" if demo else ""}{missing[0].name}.py'
            raise InputError(
                'no NAME=CHECKPOINT is given, and there is no finished pretraining in '
                f'{" and ".join(map(str, missing))}: name checkpoints, or pretrain, beginning with '
                f'tools/dist_train.sh {config} {1 if demo else 8} (--resume goes on with a broken-off one)'
            )
        return {name: [str(folder)] for name, folder in own.items()}
    named: dict[str, list[str]] = {}
    for pair in pairs:
        name, equals, checkpoint = pair.partition('=')
        if not equals or not checkpoint:
            raise InputError(f'{pair!r} is not NAME=CHECKPOINT, such as SD=work_dirs/sd_r152_imagenet')
        if not NAME.fullmatch(name):
            raise InputError(f'{name!r} of {pair!r} cannot name a folder: use letters, digits and . _ + -')
        if checkpoint in named.setdefault(name, []):
            raise InputError(f'{pair} is given twice')
        named[name].append(checkpoint)
    return named


def numbered(named: Mapping[str, Sequence[Any]]) -> dict[str, Any]:
    """What each name has, by name; where it has several: ``name 1``, ``name 2``, ..."""
    return {
        f'{name} {place}' if len(several) > 1 else name: one
        for name, several in named.items()
        for place, one in enumerate(several, 1)
    }


def backbone_file(name: str, source: str, folder: Path) -> str:
    """Return the backbone file of a checkpoint: itself, or what it was or is converted to in ``folder``.

    One of a network that is no plain ResNet stays as it is.

    Raises:
        InputError: the checkpoint is missing or cannot be converted.
    """
    if is_random(source):
        return source
    try:
        found = resolve(source)
    except InputError as error:
        raise InputError(f'{name}={source}: {error}') from error
    path = found.path
    content = load_checkpoint(path, mmap=True)
    if recorded_network(content, found.network) is not None:
        return found.again
    meta = content.get('meta')
    if is_published(meta) and meta['target'] in ('mmdet', 'mmseg'):
        return str(path)
    digest = sha256_of(path)
    for converted in sorted(folder.glob(f'{name}_{_TARGET}-*.pth')):
        if read_meta(converted)['source_sha256'] == digest:
            return str(converted)
    done = convert(source, folder / f'{name}_{_TARGET}.pth', _TARGET)
    print('\n'.join(f'{name}: {line}' for line in done.lines()), flush=True)
    return str(done.path)


def each_of(one_or_more: str | Sequence[str]) -> Sequence[str]:
    """The backbones of a name, of which there may be one alone."""
    return [one_or_more] if isinstance(one_or_more, str) else one_or_more
