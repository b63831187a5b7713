"""CIFAR-100 as its authors publish it: the pickles of ``cifar-100-python``, read without running them."""

from __future__ import annotations

import pickle
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from sd_pretrain.subset import require_counts

URL = 'https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz'
FOLDER = 'cifar-100-python'
FILES = {'train': 'train', 'val': 'test'}
FULL_SIZE = {'classes': 100, 'train': 50_000, 'val': 10_000}
PIXELS = 3 * 32 * 32
WHERE_TO_GET = f'{URL} unpacks to {FOLDER}/ with the files train, test and meta'


def _latin1_bytes(text: str, encoding: str) -> bytes:
    if encoding != 'latin1':
        raise pickle.UnpicklingError(f'bytes in the encoding {encoding!r}')
    return text.encode('latin1')


class _ArrayUnpickler(pickle.Unpickler):
    """Numbers, strings, containers and NumPy arrays, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in {('numpy', 'ndarray'), ('numpy', 'dtype')}:
            return getattr(np, name)
        # NumPy 2 writes another module name than NumPy 1, and reads both.
        if module in {'numpy.core.multiarray', 'numpy._core.multiarray'} and name == '_reconstruct':
            return np.empty(0).__reduce__()[0]
        # How Python 3 writes bytes in protocol 2.
        if (module, name) == ('_codecs', 'encode'):
            return _latin1_bytes
        raise pickle.UnpicklingError(f'it wants to call {module}.{name}')


def _read_pickle(path: Path) -> dict:
    try:
        with path.open('rb') as file:
            # The official files come from Python 2; its strings are bytes.
            content = _ArrayUnpickler(file, encoding='latin1').load()
    except FileNotFoundError:
        raise InputError(f'no {path}; {WHERE_TO_GET}') from None
    # A damaged pickle can raise almost anything.
    except Exception as error:
        raise InputError(
            f'{path} is damaged or no CIFAR-100 file ({type(error).__name__}: {error}); replace it'
        ) from None
    if not isinstance(content, dict):
        raise InputError(f'{path} is no CIFAR-100 file: it holds a {type(content).__name__}; replace it')
    return content


def read_classes(root: str | Path) -> list[str]:
    """The names of the fine classes.

    Args:
        root: the folder ``cifar-100-python``.

    Raises:
        InputError: no such folder, or its ``meta`` cannot be read.
    """
    root = Path(root)
    if not root.is_dir():
        raise InputError(f'no data root {root}: give the folder that holds {FOLDER} with --data-root')
    names = _read_pickle(root / 'meta').get('fine_label_names')
    if not isinstance(names, list) or not names:
        raise InputError(f"{root / 'meta'} has no 'fine_label_names'; {WHERE_TO_GET}")
    return names


def read_split(root: str | Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Read all images of one split. Checksums are not looked at: row order and file names may differ.

    Args:
        root: the folder ``cifar-100-python``.
        split: ``'train'`` or ``'val'`` (the file ``test``).

    Returns:
        Images, uint8 ``(N, 32, 32, 3)`` RGB, and fine labels, int64 ``(N,)``.

    Raises:
        InputError: the file is missing, damaged, wants to run code, or holds something else.
    """
    classes = len(read_classes(root))
    path = Path(root) / FILES[split]
    content = _read_pickle(path)
    data, labels = content.get('data'), content.get('fine_labels')
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (PIXELS,):
        raise InputError(f"{path} has no 'data' of {PIXELS} bytes an image; {WHERE_TO_GET}")
    try:
        labels = np.array(labels, dtype=np.int64)
    except (TypeError, ValueError):
        labels = np.empty(0, np.int64)
    if not len(data) or labels.shape != (len(data),) or labels.min() < 0 or labels.max() >= classes:
        raise InputError(
            f"{path} has no 'fine_labels' of 0 to {classes - 1} for its {len(data)} images; {WHERE_TO_GET}"
        )
    return np.ascontiguousarray(data.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)), labels


def check_cifar100(root: str | Path, full_size: bool = False) -> dict[str, int]:
    """Check that ``root`` holds CIFAR-100, or something small in its layout.

    Args:
        root: the folder ``cifar-100-python``.
        full_size: require the 50,000 and 10,000 images of 100 classes.

    Returns:
        ``{'classes', 'train', 'val'}``: the counts.

    Raises:
        InputError: something is missing or does not fit.
    """
    counts = {'classes': len(read_classes(root))}
    counts |= {split: len(read_split(root, split)[1]) for split in FILES}
    if full_size:
        require_counts(counts, FULL_SIZE, f'{root} is not the full CIFAR-100', WHERE_TO_GET)
    return counts


def ensure_cifar100(root: str | Path, full_size: bool = False) -> dict[str, int]:
    """Download CIFAR-100 if ``root`` does not exist, and check it.

    Only the official archive's md5 is verified, and only here. The folder appears whole or not at all.

    Args:
        root: the folder ``cifar-100-python``, there or to be made.
        full_size: see :func:`check_cifar100`.

    Returns:
        The counts of :func:`check_cifar100`.

    Raises:
        InputError: see there; or the download failed.
    """
    root = Path(root)
    if not root.exists() and root.name == FOLDER:
        _download(root)
    return check_cifar100(root, full_size)


def _download(root: Path) -> None:
    from torchvision.datasets import CIFAR100
    from torchvision.datasets.utils import download_and_extract_archive

    print(f'No {root}: downloading CIFAR-100 (169 MB) from {URL}.', flush=True)
    root.parent.mkdir(parents=True, exist_ok=True)
    part = Path(tempfile.mkdtemp(prefix=f'{FOLDER}.', dir=root.parent))
    try:
        download_and_extract_archive(URL, str(part), md5=CIFAR100.tgz_md5)
        (part / FOLDER).rename(root)
    except (OSError, RuntimeError) as error:
        raise InputError(
            f'no {root}, and it cannot be downloaded ({error}); put it there, or give the folder that holds '
            f'{FOLDER} with --data-root; {WHERE_TO_GET}'
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
