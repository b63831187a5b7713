"""Segmentation's part of what makes fine-tuning fast; apart, so that detection needs no mmseg."""

from __future__ import annotations

from typing import Any

import torch
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models import SegDataPreProcessor

from sd_pretrain.cli import InputError
from transfer.image_cache import ImageStore

VAL_BATCH = 8


class CachedLoadMasks(LoadAnnotations):
    """mmseg's ``LoadAnnotations`` that decodes a mask once."""

    store: ImageStore

    def _load_seg_map(self, results: dict) -> None:
        name = f'mask {results["seg_map_path"]}'
        mask = self.store.get(name)
        if mask is None:
            super()._load_seg_map(results)
            self.store.put(name, results['gt_seg_map'])
            return
        results['gt_seg_map'] = mask
        results['seg_fields'].append('gt_seg_map')


class PaddedSegDataPreProcessor(SegDataPreProcessor):
    """Takes test images of different sizes in one batch, where all are padded to one size anyway."""

    def forward(self, data: dict, training: bool = False) -> dict[str, Any]:
        """Prepare a batch; test images one by one, as in batches of one."""
        if training or len(data['inputs']) == 1:
            return super().forward(data, training)
        one_by_one = zip(data['inputs'], data['data_samples'], strict=True)
        ones = [
            super(PaddedSegDataPreProcessor, self).forward({'inputs': [image], 'data_samples': [sample]})
            for image, sample in one_by_one
        ]
        sizes = {tuple(one['inputs'].shape[2:]) for one in ones}
        if len(sizes) > 1:
            raise InputError(
                f'test images are larger than model.data_preprocessor.test_cfg.size={self.test_cfg["size"]}: '
                f'set it to at least {tuple(map(max, zip(*sizes, strict=True)))}'
            )
        return {
            'inputs': torch.cat([one['inputs'] for one in ones]),
            'data_samples': [one['data_samples'][0] for one in ones],
        }


def batch_evaluation(model: torch.nn.Module, loader: dict) -> int:
    """Let a segmentor be evaluated in batches, if its test images are padded to one size.

    What is predicted is the same as from batches of one.

    Args:
        model: built, not wrapped; its preprocessor is changed in place.
        loader: config of the validation loader, changed in place.

    Returns:
        The batch size.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    test = getattr(preprocessor, 'test_cfg', None) or {}
    whole = (getattr(model, 'test_cfg', None) or {}).get('mode') == 'whole'
    if type(preprocessor) is SegDataPreProcessor and whole and test.get('size') and loader['batch_size'] == 1:
        preprocessor.__class__ = PaddedSegDataPreProcessor
        loader['batch_size'] = VAL_BATCH
    return loader['batch_size']
