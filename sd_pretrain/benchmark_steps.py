"""One training step as this project does it, and as timm, torchvision's references and mmengine do it.

Each gets batches as that project's loader hands them out, in memory, and does what its training script does
between two of them: copy, normalise, forward, loss, backward, step, and whatever it logs. The code is ours;
the functions called are theirs wherever they are in their packages.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import timm
import torch
import torchvision
from mmengine.logging import MessageHub
from mmengine.model import BaseModel, ImgDataPreprocessor
from mmengine.optim import OptimWrapper
from torch import Tensor, nn
from torch.nn import functional as F

from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.optim import Bf16OptimWrapper, FusedSGD
from sd_pretrain.prefetch import PrefetchingLoader
from sd_pretrain.preprocessor import IMAGENET_MEAN, IMAGENET_STD
from sd_pretrain.teacher import FrozenTeacher

Step = Callable[[], object]
Batches = Sequence[tuple[Tensor, Tensor]]
# The optimizer of Section 4.2.1, at a learning rate that leaves the weights finite.
_SGD = dict(lr=1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)


@dataclass(frozen=True)
class Setting:
    """What all cases share.

    Args:
        arch: a ResNet that timm and torchvision both have.
        device: where.
        amp: bfloat16 autocast (torchvision and mmengine on a GPU: float16 with a gradient scaler, their own).
        compile: compile our network and augmentation.
        classes: number of classes.
    """

    arch: str
    device: torch.device
    amp: bool = False
    compile: bool = False
    classes: int = 1000

    @property
    def numbers(self) -> str:
        """What it computes in, in words."""
        return 'bfloat16 autocast' if self.amp else 'float32'

    @property
    def other_precision(self) -> str:
        """A precision that a teacher has only if it is told so."""
        return 'float32' if self.amp else 'bfloat16'


class NaiveTeacher:
    """SD as one would write it down: the network in evaluation mode, under autocast."""

    def __init__(self, network: nn.Module):
        self.network = network.eval().requires_grad_(False)

    def start(self, inputs: Tensor) -> Callable[[], Tensor]:
        """The logits, as :meth:`sd_pretrain.teacher.FrozenTeacher.start` gives them."""
        with torch.no_grad(), torch.autocast(inputs.device.type, torch.bfloat16):
            logits = self.network(inputs)
        return lambda: logits


def ours(setting: Setting, batches: Batches, teacher: str = 'none', augmented: bool = False) -> Step:
    """Our step: ``teacher`` is ``'none'`` (BL), a precision of our teacher or ``'naive'`` (SD).

    Args:
        setting: what all cases share.
        batches: uint8 images ``(N, 3, H, W)`` and labels ``(N,)``, on the host.
        teacher: which.
        augmented: rotate and jitter as well, as the configs do; peers do that in loaders, or not at all.
    """
    more = dict(rotation=10, jitter=0.4) if augmented else {}
    model = TimmClassifier(
        setting.arch,
        setting.classes,
        network_args={'zero_init_last': False},
        channels_last=True,
        compile=setting.compile,
        data_preprocessor=dict(mirror=0.5, **more),
    ).to(setting.device)
    network = timm.create_model(setting.arch, num_classes=setting.classes)
    network.to(setting.device, memory_format=torch.channels_last)
    if teacher == 'naive':
        model.attach_teacher(NaiveTeacher(network))
    elif teacher != 'none':
        model.attach_teacher(FrozenTeacher(network, precision=teacher))
    wrapper = Bf16OptimWrapper if setting.amp else OptimWrapper
    optimizer = wrapper(optimizer=FusedSGD(model.parameters(), **_SGD))
    loader = [
        {'inputs': _place(images.contiguous(memory_format=torch.channels_last), setting), 'labels': labels}
        for images, labels in batches
    ]
    feed = _endless(PrefetchingLoader(loader, setting.device) if setting.device.type == 'cuda' else loader)
    model.train()
    return lambda: model.train_step(next(feed), optimizer)


def timms(setting: Setting, batches: Batches) -> Step:
    """As timm's ``train.py --channels-last --amp --amp-dtype bfloat16``."""
    from timm.data.loader import PrefetchLoader
    from timm.optim import create_optimizer_v2
    from timm.utils import AverageMeter

    device = setting.device
    model = timm.create_model(setting.arch, num_classes=setting.classes)
    model = model.to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=1e-3, weight_decay=1e-4, momentum=0.9)
    losses = AverageMeter()
    feed = _endless(
        PrefetchLoader([(_place(images, setting), labels) for images, labels in batches], device=device)
    )
    criterion = nn.CrossEntropyLoss().to(device)

    def step() -> None:
        images, labels = next(feed)
        images = images.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=setting.amp):
            loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.update(loss.item(), images.size(0))

    return step


def torchvisions(setting: Setting, batches: Batches) -> Step:
    """As torchvision's ``references/classification/train.py [--amp]``."""
    device = setting.device
    model = torchvision.models.get_model(setting.arch, num_classes=setting.classes).to(device).train()
    optimizer = torch.optim.SGD(model.parameters(), **_SGD)
    half = torch.float16 if device.type == 'cuda' else torch.bfloat16
    scaler = torch.amp.GradScaler(enabled=setting.amp and device.type == 'cuda')
    mean, std = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    # Normalised in the loader's workers.
    feed = _endless([(_place((one - mean) / std, setting), labels) for one, labels in batches])
    criterion = nn.CrossEntropyLoss()

    def step() -> None:
        images, labels = next(feed)
        images, labels = images.to(device, non_blocking=True), labels.to(device, non_blocking=True)
        with torch.autocast(device.type, half, enabled=setting.amp):
            output = model(images)
            loss = criterion(output, labels)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        best = output.topk(min(5, setting.classes), 1).indices == labels[:, None]
        return loss.item(), best[:, :1].sum().item(), best.sum().item()

    return step


class _MmengineClassifier(BaseModel):
    """The model of mmengine's own getting-started page: a ResNet and its cross entropy."""

    def __init__(self, setting: Setting):
        super().__init__(ImgDataPreprocessor(IMAGENET_MEAN, IMAGENET_STD))
        self.network = torchvision.models.get_model(setting.arch, num_classes=setting.classes)

    def forward(self, inputs: Tensor, data_samples: Sequence[Tensor], mode: str) -> dict[str, Tensor]:
        return {'loss': F.cross_entropy(self.network(inputs), torch.stack(data_samples).to(inputs.device))}


def mmengines(setting: Setting, batches: Batches) -> Step:
    """As mmengine's runner with its defaults: lists of images, each normalised alone; losses are read."""
    from mmengine.optim import AmpOptimWrapper

    model = _MmengineClassifier(setting).to(setting.device).train()
    optimizer = torch.optim.SGD(model.parameters(), **_SGD)
    if setting.amp:
        wrapper = AmpOptimWrapper if setting.device.type == 'cuda' else Bf16OptimWrapper
        optimizer = wrapper(optimizer=optimizer)
    else:
        optimizer = OptimWrapper(optimizer=optimizer)
    feed = _endless([{'inputs': list(images), 'data_samples': list(labels)} for images, labels in batches])
    hub = MessageHub.get_instance('benchmark')

    def step() -> None:
        for key, value in model.train_step(next(feed), optimizer).items():
            hub.update_scalar(f'train/{key}', value)

    return step


def _place(images: Tensor, setting: Setting) -> Tensor:
    return images.pin_memory() if setting.device.type == 'cuda' else images


def _endless(batches: object) -> Iterator:
    return itertools.chain.from_iterable(itertools.repeat(batches))
