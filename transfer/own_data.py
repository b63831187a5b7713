"""Data of a user's own: is it whole, and is the config for it? Asked before the first GPU hour is spent."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.config import Config

from sd_pretrain.cli import InputError
from transfer.foreign_config import check_heads, check_test_pipeline
from transfer.image_lists import datasets_of, image_list, open_datasets
from transfer.labelled_images import check_folders
from transfer.tasks import TASKS
from transfer.truth import mask_of, open_dataset
from transfer.voc import BORDER

# Masks of each list that are looked into, spread over it.
_MASKS = 300


def check_own_data(cfg: Config) -> None:
    """Check the data of a config, its data root set.

    Images are there, none is both trained on and tested on, training and test have the same classes and the
    heads as many, and boxes and masks speak of those classes. Images are not opened, and of masks those of
    300 images of each list. For probes see :func:`transfer.labelled_images.check_folders`.

    Raises:
        InputError: something is missing or wrong; names it.
    """
    if cfg.task == 'probe':
        check_folders(cfg)
        return
    name = Path(cfg.filename).name
    configs = {part: open_datasets([cfg[part].dataset]) for part in ('train_dataloader', 'val_dataloader')}
    for one in datasets_of(cfg):
        image_list(one)  # says where data is looked for
    opened = {
        part: [open_dataset(one, TASKS[cfg.task].scope) for one in some] for part, some in configs.items()
    }
    trained, tested = opened.values()
    classes = _classes(name, [*trained, *tested])
    check_heads(cfg, len(classes))
    check_test_pipeline(cfg)  # of the recipes here, which are no foreign configs
    paths = [_images(f'{part} of {name}', some) for part, some in opened.items()]
    shared = sorted(set(paths[0]) & set(paths[1]))
    if shared:
        some = ', '.join(map(str, shared[:3]))
        raise InputError(f'{name} trains and tests on {len(shared)} images ({some}): take them out of one')
    if cfg.task == 'det':
        _check_boxes(name, classes, trained, tested)
    else:
        for part, some in configs.items():
            for one, dataset in zip(some, opened[part], strict=True):
                _check_masks(dataset, one.get('pipeline') or [], len(classes))


def _classes(name: str, datasets: Sequence[Any]) -> list[str]:
    found = [list(one.metainfo.get('classes') or ()) for one in datasets]
    if not found[0]:
        raise InputError(
            f"{name} does not name its classes: give its datasets metainfo=dict(classes=('a', ...))"
        )
    for other in found[1:]:
        pairs = zip_longest(found[0], other, fillvalue='none')
        for place, (first, second) in enumerate(pairs):
            if first != second:
                raise InputError(
                    f'the datasets of {name} have different classes: class {place} is {first} here and '
                    f'{second} there; give all of them the same metainfo=dict(classes=(...))'
                )
    return found[0]


def _some(names: Sequence[str]) -> str:
    return ', '.join(names[:3]) + (f', ... ({len(names)})' if len(names) > 3 else '')


def _images(what: str, datasets: Sequence[Any]) -> list[Path]:
    """Paths of the images."""
    paths = [Path(info['img_path']) for one in datasets for info in one.data_list]
    if not paths:
        raise InputError(f'the {what} has no images')
    missing = [path for path in paths if not path.is_file()]
    if missing:
        raise InputError(
            f'the {what} has {len(paths)} images, of which {len(missing)} are not there: '
            f'{", ".join(map(str, missing[:3]))}'
        )
    return paths


def _check_boxes(name: str, classes: Sequence[str], trained: Sequence[Any], tested: Sequence[Any]) -> None:
    counts = [np.zeros(len(classes), int) for _ in range(2)]
    for count, datasets in zip(counts, (trained, tested), strict=True):
        for box in (box for one in datasets for info in one.data_list for box in info['instances']):
            count[box['bbox_label']] += not box.get('ignore_flag')
    for count, what in zip(counts, ('training', 'test'), strict=True):
        if not count.any():
            raise InputError(
                f'no {what} image of {name} has a box of {_some(classes)}: are the classes spelled as in the '
                'annotations?'
            )
    nowhere = [one for one, boxes in zip(classes, sum(counts), strict=True) if not boxes]
    if nowhere:
        raise InputError(
            f'no image of {name} has a box of {_some(nowhere)}: is that spelled as in the annotations?'
        )


def _check_masks(dataset: Any, pipeline: list[dict], classes: int) -> None:
    masks = [info.get('seg_map_path') for info in dataset.data_list]
    missing = [path for path in masks if path is None or not Path(path).is_file()]
    if missing:
        raise InputError(f'{len(missing)} masks are not there: {", ".join(map(str, missing[:3]))}')
    for index in range(0, len(masks), -(-len(masks) // _MASKS)):
        values = np.unique(mask_of(dataset, index, pipeline))
        wrong = values[(values >= classes) & (values != BORDER)]
        if len(wrong):
            raise InputError(
                f'{masks[index]} has the value {wrong[0]}, and the last of {classes} classes is '
                f'{classes - 1}; {BORDER} is no label'
            )
