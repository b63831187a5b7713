"""The truth of images, as the datasets of mmdet and mmseg read it, whatever its layout on disk."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from transfer.draw import Detection


def open_dataset(dataset: Mapping[str, Any], scope: str) -> Any:
    """Build a plain dataset of a config: all of its images, as it lists them, in ``data_list``; no pipeline.

    Args:
        dataset: its config, the data root set.
        scope: ``'mmdet'`` or ``'mmseg'``.

    Raises:
        InputError: it cannot be built; says why.
    """
    from transfer import mmcv_ops

    mmcv_ops.install()
    # Serialised, a dataset without images is an error of NumPy's.
    plain = {'pipeline': [], 'filter_cfg': None, 'serialize_data': False, 'lazy_init': False}
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # of importing, and of COCO's reader
            importlib.import_module(f'{scope}.datasets')
            registry = importlib.import_module(f'{scope}.registry').DATASETS
            return registry.build({**dataset, **plain, '_scope_': scope})  # both have a BaseSegDataset
    except (OSError, KeyError, ValueError, TypeError, AssertionError, AttributeError) as error:
        kind, said = type(error).__name__, ' '.join(str(error).split())
        raise InputError(f'the {dataset.get("type")} of {_place(dataset)}: {kind}: {said}') from error


def _place(dataset: Mapping[str, Any]) -> str:
    return ' '.join(str(dataset[key]) for key in ('data_root', 'ann_file') if dataset.get(key)) or 'no place'


def boxes_of(dataset: Any, index: int) -> list[Detection]:
    """The boxes of an image of an mmdet dataset; those that do not count are difficult."""
    names = dataset.metainfo['classes']
    return [
        Detection(names[one['bbox_label']], tuple(one['bbox']), difficult=bool(one.get('ignore_flag')))
        for one in dataset.get_data_info(index)['instances']
    ]


def mask_of(dataset: Any, index: int, pipeline: list[dict]) -> np.ndarray:
    """The mask of an image of an mmseg dataset, as the ``LoadAnnotations`` of a pipeline reads it.

    Returns:
        ``(H, W)``: indices of the classes, 255 where there is no label.

    Raises:
        InputError: it is no image of such indices.
    """
    from mmseg.registry import TRANSFORMS

    loading = next(
        (one for one in pipeline if 'LoadAnnotations' in str(one['type'])), {'type': 'LoadAnnotations'}
    )
    info = dataset.get_data_info(index)
    try:
        mask = TRANSFORMS.build({**loading, '_scope_': 'mmseg'}).transform(info)['gt_seg_map']
    except (OSError, ValueError, AttributeError) as error:
        raise InputError(f'cannot read {info.get("seg_map_path")}: {" ".join(str(error).split())}') from error
    if mask.ndim != 2:
        raise InputError(
            f'{info["seg_map_path"]} has {mask.shape[-1]} channels where the index of a class is expected: '
            'save masks as palette or grey images'
        )
    return mask
