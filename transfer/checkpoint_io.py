"""Published files: tensors and a small ``meta``, named by their content."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint

if TYPE_CHECKING:
    from torch import Tensor

SCHEMA = 1
"""Version of the ``meta`` of published files."""

HASHED_NAME = re.compile(r'-([0-9a-f]{8})\.pth$')


def sha256_of(path: str | Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with open(path, 'rb') as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def read_meta(path: str | Path) -> dict[str, Any]:
    """The ``meta`` of a file that :func:`transfer.convert.convert` has written.

    Raises:
        InputError: not loadable, or not a converted file.
    """
    meta = load_checkpoint(path, mmap=True).get('meta')
    if not is_published(meta):
        raise InputError(f'{path} is no converted backbone: make one with tools/convert_checkpoint.py')
    return meta


def is_published(meta: Any) -> bool:
    """Whether a checkpoint's ``meta`` is that of a converted file of this project."""
    return isinstance(meta, dict) and meta.get('schema') == SCHEMA and {'arch', 'target'} <= meta.keys()


def check_hashed_name(path: Path, sha256: str) -> None:
    """Refuse a published file whose content no longer is what its name says."""
    named = HASHED_NAME.search(path.name)
    if named and not sha256.startswith(named[1]):
        raise InputError(
            f'{path} was altered or is incomplete: its content hash is {sha256[:8]}, not {named[1]}'
        )


def stage(
    meta: dict[str, Any], state_dict: dict[str, Tensor], dst: str | Path, stem: str
) -> tuple[Path, Path, str]:
    """Write a published file under a temporary name beside its destination.

    The same input gives the same bytes: the archive inside has a fixed name (``torch.save`` takes the file's
    if it is given a path), and every tensor is contiguous in a storage of its own.

    Args:
        meta: JSON-able.
        state_dict: Names to tensors; stored in this order, dtypes kept.
        dst: An existing folder or a path that ends in ``/`` (the file is ``<stem>-<hash>.pth`` there), or the
            path of the file without the hash, with or without ``.pth``.
        stem: Name in a folder.

    Returns:
        The temporary file (give it to :func:`commit`, or delete it), the final path, the SHA-256.
    """
    import torch

    tensors = plain_tensors(state_dict)
    target = Path(dst)
    folder = target if str(dst).endswith(('/', os.sep)) or target.is_dir() else target.parent
    name = stem if folder == target else HASHED_NAME.sub('', target.name).removesuffix('.pth')
    temporary = folder / f'.{name}.{os.getpid()}.tmp'
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with temporary.open('wb') as file:
            torch.save({'meta': json.loads(json.dumps(meta)), 'state_dict': tensors}, file)
            file.flush()
            os.fsync(file.fileno())
        sha256 = sha256_of(temporary)
    except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = getattr(error, 'strerror', None) or str(error).splitlines()[0]
        raise InputError(f'cannot write {folder / name}-<hash>.pth: {reason}') from None
    return temporary, folder / f'{name}-{sha256[:8]}.pth', sha256


def plain_tensors(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same tensors on the CPU, contiguous, in storages of their own."""
    import torch

    # Unlike contiguous(), this gives 1x1 convolutions of a channels_last network plain strides, too.
    plain = torch.contiguous_format
    return {name: tensor.detach().cpu().clone(memory_format=plain) for name, tensor in state_dict.items()}


def commit(temporary: Path, final: Path, sha256: str) -> None:
    """Give a staged file its final name at once; a file of the same content that is there already is kept.

    Raises:
        InputError: ``final`` exists with other content (damaged, as its name is its hash).
    """
    if not final.exists():
        temporary.replace(final)
        return
    temporary.unlink()
    if sha256_of(final) != sha256:
        raise InputError(
            f'{final} exists but its content is not what its name says: remove it and convert again'
        )
