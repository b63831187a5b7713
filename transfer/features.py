"""Features of a frozen backbone: what it pools of each image (of a ResNet, layer4), computed once."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import one_at_a_time, whole
from transfer.backbone import Backbone, config_arch, prove_loaded
from transfer.labelled_images import read_images
from transfer.run_record import lists_sha256
from transfer.verify import reference_network

SPLITS = ('train', 'val')
_SAY_EVERY = 10  # batches


class FrozenBackbone(nn.Module):
    """A network up to its pooling, in test mode, from uint8 images to features.

    Args:
        backbone: from images ``(N, 3, H, W)`` to ``(N, D)``.
        mean: of each channel (RGB, 0 to 255).
        std: the same.
    """

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.backbone = backbone
        self.register_buffer('mean', torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer('std', torch.tensor(std).view(3, 1, 1), persistent=False)
        self.eval().requires_grad_(False).to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        """Compute ``(N, D)`` features of unit length from uint8 ``(N, 3, H, W)`` RGB."""
        images = ((images.float() - self.mean) / self.std).contiguous(memory_format=torch.channels_last)
        features = self.backbone(images)
        return nn.functional.normalize(features, dim=1)


def build_backbone(cfg: Config, backbone: Backbone, seed: int) -> tuple[FrozenBackbone, int]:
    """Make the network and prove that the file's tensors are in it.

    Args:
        cfg: a probe config.
        backbone: the file, or the random initialisation.
        seed: of the random initialisation.

    Returns:
        The network, and the number of tensors that are the file's: all of them, or 0 for random weights.

    Raises:
        RuntimeError: the file does not fill the network.
    """
    torch.manual_seed(seed)
    given, images = backbone.network, dict(cfg.model.data_preprocessor)
    if given is None:
        network = FrozenBackbone(
            reference_network(config_arch(cfg) or backbone.arch, 0, 'torchvision'), **images
        )
    else:
        images |= {'mean': given.mean, 'std': given.std} if given.mean else {}
        network = FrozenBackbone(given.build(), **images)
    if backbone.random:
        return network, 0
    network.backbone.load_state_dict(backbone.tensors, strict=False)
    return network, prove_loaded(network, backbone.tensors)


def feature_key(cfg: Config, backbone: Backbone, seed: int, *more: Any) -> str:
    """Hash everything that features depend on, and ``more``; 16 hexadecimal digits.

    The seed counts for random weights alone.
    """
    what = {
        'backbone': backbone.sha256,
        **({'network': backbone.network.sha256} if backbone.network else {}),
        'seed': seed if backbone.random else None,
        'model': cfg.model.to_dict(),
        'view': cfg.view.to_dict(),
        'lists': lists_sha256(cfg),
        'more': more,
    }
    what['model']['backbone'].pop('init_cfg', None)  # a path
    return hashlib.sha256(json.dumps(what, sort_keys=True, default=str).encode()).hexdigest()[:16]


def extract(cfg: Config, network: FrozenBackbone, say: Callable[[str], None]) -> dict[str, np.ndarray]:
    """Compute the features of all images of a probe config, on a GPU where there is one.

    Args:
        cfg: a probe config, its data root set.
        network: from :func:`build_backbone`.
        say: gets lines of progress.

    Returns:
        For ``train`` and ``val`` the ``features`` ``(N, D)``, ``labels`` ``(N, C)`` and ``names`` ``(N,)``,
        as ``{split}_{what}``.

    Raises:
        InputError: an image or annotation is missing or damaged.
    """
    network = network.to(get_device())
    found = {}
    for split in SPLITS:
        loader = cfg[f'{split}_dataloader']
        images = read_images(cfg, split)
        found[f'{split}_names'] = np.array(images.names)
        found[f'{split}_labels'] = images.labels
        paths, parts = images.paths, []
        with ThreadPoolExecutor(max(1, loader.num_workers)) as pool:
            for start in range(0, len(paths), loader.batch_size):
                end = start + loader.batch_size
                batch = pool.map(lambda path: _view(path, **cfg.view), paths[start:end])
                parts.append(_features(network, torch.stack(list(batch))))
                if len(parts) % _SAY_EVERY == 0:
                    say(f'Iter(test) [{end}/{len(paths)}]  {split} features')
        found[f'{split}_features'] = np.concatenate(parts)
    return found


def kept(path: Path, make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Return the arrays of an ``.npz`` file; make them if there is none. Of several processes one does.

    Raises:
        InputError: the file is damaged.
    """
    with one_at_a_time(path):
        if not path.is_file():
            arrays = make()
            with whole(path) as part, part.open('wb') as file:
                np.savez(file, **arrays)
            return arrays
    try:
        with np.load(path, allow_pickle=False) as stored:
            return dict(stored)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f'{path} cannot be read ({error}); delete it, and it will be computed again'
        ) from None


def _view(path: Path, resize: int, crop: int) -> Tensor:
    """The middle of an image, uint8 ``(3, crop, crop)``, after its short side has been made ``resize``."""
    try:
        with Image.open(path) as opened:
            image = opened.convert('RGB')
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f'cannot read image {path}: {error}; unpack it again from its archive') from None
    image = functional.center_crop(functional.resize(image, resize), crop)
    return functional.pil_to_tensor(image)


@torch.inference_mode()
def _features(network: FrozenBackbone, images: Tensor) -> np.ndarray:
    return network(images.to(network.mean.device)).cpu().numpy()
