"""Reading checkpoints of any origin without executing what is in them."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

from sd_pretrain.cli import InputError


class _Inert:
    """Stands in for the logs and arguments that checkpoints carry beside their weights; does nothing."""

    def __new__(cls, *args: Any, **kwargs: Any) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


# What mmengine (message hub), timm and torchvision (args) checkpoints name beside tensors. None of it is
# imported or called: every name loads as an _Inert. mmengine itself would allow the real getattr here.
_HARMLESS = (
    'mmengine.logging.history_buffer.HistoryBuffer',
    'builtins.getattr',
    'builtins.slice',
    'numpy.dtype',
    'numpy.ndarray',
    'numpy.core.multiarray._reconstruct',
    'numpy.core.multiarray.scalar',
    'numpy._core.multiarray._reconstruct',
    'numpy._core.multiarray.scalar',
    'argparse.Namespace',
    'pathlib.PosixPath',
    'pathlib.WindowsPath',
)
# Classes that go by those names; pickles of old protocols call the built-in functions by their Python 2 name.
_INERT_GLOBALS = [
    type(name.rpartition('.')[2], (_Inert,), {'__module__': name.rpartition('.')[0]})
    for name in (*_HARMLESS, '__builtin__.getattr', '__builtin__.slice')
]

# What state_dicts themselves are made of.
_TENSOR_NAMES = re.compile(
    r'torch\.(_utils\.\w+|storage\.\w+|\w+Storage|Size|Tensor|device|b?float\d+|u?int\d+|nn\.parameter\.Parameter)'
    r'|collections\.OrderedDict|_codecs\.encode'
)


def load_checkpoint(path: str | Path, mmap: bool = False) -> dict[str, Any]:
    """Read a PyTorch or safetensors file onto the CPU, with ``weights_only=True`` always.

    The format is told by the content, not by the name. Logs and arguments that training frameworks store
    beside the weights come back as inert placeholders.

    Args:
        path: The file.
        mmap: Map the tensors of a file of today's format instead of reading them (to look at ``meta`` only).

    Raises:
        InputError: missing, empty, truncated, not a checkpoint, or a pickle that wants more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        kind = 'is a folder, not a checkpoint file' if path.is_dir() else 'does not exist'
        raise InputError(f'checkpoint {path} {kind}')
    try:
        with path.open('rb') as file:
            head = file.read(64)
    except OSError as error:
        raise InputError(f'checkpoint {path} cannot be read: {error.strerror}') from None
    if not head:
        raise InputError(f'checkpoint {path} is empty (0 bytes): copy or download it again')
    if head[8:9] == b'{' and int.from_bytes(head[:8], 'little') < 1 << 30:
        return _load_safetensors(path)
    if head.startswith(b'PK'):
        return _load_torch(path, _pickle_in_zip(path), mmap)
    if head.startswith(b'\x80'):
        return _load_torch(path, None, mmap=False)
    start = head.splitlines()[0][:24]
    raise InputError(f'{path} is not a checkpoint: it begins with {start!r}, neither PyTorch nor safetensors')


def _load_safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path)
    except SafetensorError as error:
        raise InputError(
            f'{path} is truncated or damaged (safetensors: {error}): copy or download it again'
        ) from None


def _pickle_in_zip(path: Path) -> bytes:
    """The pickle inside a zip-format checkpoint; tells truncated files and other zips apart from it."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            pickles = [name for name in names if name.endswith('/data.pkl') or name == 'data.pkl']
            if any('/code/' in name or name.endswith('constants.pkl') for name in names):
                raise InputError(f'{path} is a TorchScript program: save the state_dict of the model instead')
            if len(pickles) != 1:
                raise InputError(f'{path} is a zip archive but not a PyTorch checkpoint (no data.pkl in it)')
            return archive.read(pickles[0])
    except zipfile.BadZipFile:
        size = path.stat().st_size
        raise InputError(
            f'{path} is truncated or damaged ({size:,} bytes): copy or download it again'
        ) from None


def _load_torch(path: Path, pickled: bytes | None, mmap: bool) -> dict[str, Any]:
    import torch

    try:
        with torch.serialization.safe_globals(_INERT_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter('ignore')  # of other pickle protocols
            loaded = torch.load(path, map_location='cpu', weights_only=True, mmap=mmap)
    except Exception as error:  # the unpickler of a damaged file raises about anything
        wanted = _refused_names(str(error), path.read_bytes() if pickled is None else pickled)
        if wanted:
            raise InputError(
                f'{path} is a pickle that wants {", ".join(wanted[:3])} when loaded; refused, nothing of '
                "it was executed: save the model's state_dict (tensors only) and convert that"
            ) from None
        if 'legacy .tar' in str(error):
            raise InputError(
                f'{path} has the tar format of PyTorch before 0.2, which cannot be loaded safely: '
                'load it where you trust it and save its state_dict again'
            ) from None
        raise InputError(
            f'{path} is truncated, damaged or not a checkpoint: copy or download it again'
        ) from None
    if not isinstance(loaded, dict):
        raise InputError(f'{path} holds a {type(loaded).__name__}, not a state_dict or a dict with one in it')
    return loaded


def _refused_names(message: str, pickled: bytes) -> list[str]:
    """Names a pickle would import beyond what loading tensors needs; parses its opcodes, never runs them."""
    named = re.search(r'GLOBAL (\S+)', message)
    if named:
        return [named[1]]
    names, strings = [], []
    try:
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name == 'GLOBAL':
                names.append(argument.replace(' ', '.'))
            elif opcode.name == 'STACK_GLOBAL':
                names.append('.'.join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    except Exception:  # a truncated stream: what was read so far is judged
        pass
    return [
        name for name in dict.fromkeys(names) if name not in _HARMLESS and not _TENSOR_NAMES.fullmatch(name)
    ]
