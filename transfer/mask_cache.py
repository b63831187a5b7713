"""mmseg's masks, decoded once; apart from :mod:`transfer.image_cache`, so that detection needs no mmseg."""

from __future__ import annotations

from mmseg.datasets.transforms import LoadAnnotations

from transfer.image_cache import ImageStore


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
