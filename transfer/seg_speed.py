"""Segmentation's part of what makes fine-tuning fast; apart, so that detection needs no mmseg."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from mmseg.datasets.transforms import LoadAnnotations
from mmseg.models import CrossEntropyLoss, SegDataPreProcessor
from mmseg.models.decode_heads.decode_head import BaseDecodeHead
from torch import Tensor, nn

from transfer.image_cache import ImageStore
from transfer.speed import val_batch


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


class _AnySizes:
    """Mixed into a segmentor: evaluates test images of different sizes in one batch."""

    def val_step(self, data: dict) -> list:
        """Predict as from batches of one: together are images alone that are padded to the same size."""
        ones = [
            self.data_preprocessor({'inputs': [image], 'data_samples': [sample]}, False)
            for image, sample in zip(data['inputs'], data['data_samples'], strict=True)
        ]
        found = {}
        for size in {one['inputs'].shape for one in ones}:
            places = [place for place, one in enumerate(ones) if one['inputs'].shape == size]
            inputs = torch.cat([ones[place]['inputs'] for place in places])
            samples = [ones[place]['data_samples'][0] for place in places]
            predicted = self._run_forward({'inputs': inputs, 'data_samples': samples}, mode='predict')
            found.update(zip(places, predicted, strict=True))
        return [found[place] for place in range(len(ones))]


class _LossOnDevice:
    """Mixed into a head: the loss and the accuracy of ``BaseDecodeHead``, computed without waiting for a GPU.

    mmseg reads the number of labelled pixels, chooses them by a mask twice, and sorts each pixel's classes.
    """

    def loss_by_feat(self, seg_logits: Tensor, batch_data_samples: list) -> dict[str, Tensor]:
        """As the method that it replaces."""
        truth = self._stack_batch_gt(batch_data_samples)
        logits = upsample(seg_logits.float(), tuple(truth.shape[2:]), self.align_corners)
        truth = truth.squeeze(1)
        labelled = truth != self.ignore_index
        count, eps = labelled.sum(), torch.finfo(torch.float32).eps
        found: dict[str, Tensor] = {}
        for loss in self.loss_decode if isinstance(self.loss_decode, nn.ModuleList) else [self.loss_decode]:
            given = {'avg_factor': count} if _over_labelled(loss) else {}
            value = loss(logits, truth, ignore_index=self.ignore_index, **given)
            found[loss.loss_name] = found.get(loss.loss_name, 0) + value
        hits = ((logits.max(1).indices == truth) & labelled).sum().view(1) + eps
        return {**found, 'acc_seg': hits * (100 / (count + eps))}


def _over_labelled(loss: nn.Module) -> bool:
    """Whether a loss is a mean over the labelled pixels."""
    plain = type(loss) is CrossEntropyLoss and not (loss.use_sigmoid or loss.use_mask)
    return plain and loss.avg_non_ignore and loss.reduction == 'mean' and loss.class_weight is None


def loss_on_device(model: nn.Module) -> list[str]:
    """Let the heads of a built segmentor find their loss without waiting for the device; keys stay.

    Returns:
        Names of the heads, those whose loss is not mmseg's own left out.
    """
    changed = []
    for name, head in model.named_modules():
        own = isinstance(head, BaseDecodeHead) and type(head).loss_by_feat is BaseDecodeHead.loss_by_feat
        if own and head.sampler is None:
            head.__class__ = type(type(head).__name__, (_LossOnDevice, type(head)), {})
            changed.append(name)
    return changed


def upsample(maps: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
    """``F.interpolate(maps, size, mode='bilinear')`` as two matrix products, and so are its gradients.

    PyTorch's backward pass adds up pixel by pixel.

    Args:
        maps: ``(N, C, h, w)``, not of half precision: the weights would be rounded.
        size: ``(H, W)``.
        align_corners: as of ``F.interpolate``.
    """
    rows, columns = (
        F.interpolate(
            torch.eye(old, dtype=maps.dtype, device=maps.device)[None],
            new,
            mode='linear',
            align_corners=align_corners,
        )[0]
        for old, new in zip(maps.shape[2:], size, strict=True)
    )
    with torch.autocast(maps.device.type, enabled=False):
        return rows.t() @ (maps @ columns)


def batch_evaluation(model: nn.Module, loader: dict) -> int:
    """Let a segmentor be evaluated in batches, of many if its test images are padded to one size.

    What is predicted is the same as from batches of one.

    Args:
        model: built, not wrapped; its class is changed in place.
        loader: config of the validation loader, changed in place.

    Returns:
        The batch size.
    """
    preprocessor = getattr(model, 'data_preprocessor', None)
    if type(preprocessor) is SegDataPreProcessor:
        model.__class__ = type(type(model).__name__, (_AnySizes, type(model)), {})
        whole = (getattr(model, 'test_cfg', None) or {}).get('mode') == 'whole'
        if loader['batch_size'] == 1 and whole and (preprocessor.test_cfg or {}).get('size'):
            loader['batch_size'] = val_batch()
    return loader['batch_size']
