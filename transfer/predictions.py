"""What a run has predicted of each test image, kept beside its result for the statistics."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import whole
from transfer.bootstrap import Detections, Overlaps
from transfer.ranking import Scores

FILE = 'predictions.npz'
Stored = Detections | Overlaps | Scores
_KINDS = {'det': Detections, 'seg': Overlaps, 'probe': Scores}


def save_predictions(work_dir: str | Path, found: Stored, images: Sequence[str]) -> Path:
    """Write ``predictions.npz``, whole or not at all.

    Args:
        work_dir: the run's work dir.
        found: what was predicted of the images.
        images: their names, in the same order.
    """
    path = Path(work_dir) / FILE
    with whole(path) as part, part.open('wb') as file:
        np.savez_compressed(file, images=np.array(images, dtype=str), **vars(found))
    return path


def load_predictions(work_dir: str | Path, task: str) -> tuple[Stored, tuple[str, ...]] | None:
    """Read what :func:`save_predictions` has written; ``None`` if there is nothing.

    Args:
        work_dir: the run's work dir.
        task: ``'det'``, ``'seg'`` or ``'probe'``.

    Raises:
        InputError: the file is damaged, or of another task.
    """
    path = Path(work_dir) / FILE
    if not path.is_file():
        return None
    kind = _KINDS[task]
    try:
        with np.load(path, allow_pickle=False) as stored:
            images = tuple(stored['images'].tolist())
            return kind(**{name: stored[name] for name in kind.__dataclass_fields__}), images
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f'{path} cannot be read as the predictions of a {task} run ({type(error).__name__}: {error}); '
            f'delete {Path(work_dir)} to run it again'
        ) from None


def image_paths(dataset: Any) -> list[Path]:
    """Paths of the images of an mmdet or mmseg dataset, in its order."""
    return [Path(dataset.get_data_info(index)['img_path']) for index in range(len(dataset))]


def image_names(paths: Sequence[Path]) -> list[str]:
    """What to call images: their files' names, with folders where some share one."""
    stems = [path.stem for path in paths]
    if len(set(stems)) == len(stems):
        return stems
    common = os.path.commonpath([path.parent for path in paths])
    return [path.relative_to(common).with_suffix('').as_posix() for path in paths]
