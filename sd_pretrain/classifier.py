"""The image classifier that is pretrained."""

from __future__ import annotations

import difflib
from collections.abc import Callable

import timm
import torch
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.registry import MODELS
from torch import Tensor

# timm and the registry know what is in these from here on.
import sd_pretrain.networks
import sd_pretrain.preprocessor  # noqa: F401
from sd_pretrain.cli import InputError
from sd_pretrain.cuda_graph import GraphedTraining
from sd_pretrain.losses import sd_loss, top_score_difference
from sd_pretrain.small_maps import use_small_maps
from sd_pretrain.teacher import FrozenTeacher


def check_network(name: str) -> None:
    """Check that ``timm.create_model`` knows ``name``.

    Raises:
        InputError: it does not; close names are in the message.
    """
    if not timm.is_model(name):
        close = ', '.join(difflib.get_close_matches(name, timm.list_models(), n=3)) or 'none is close'
        raise InputError(f"timm has no network '{name}' (model.network in the config); close names: {close}")


def check_tolerance(tolerance: dict | None, num_classes: int) -> dict | None:
    """The model's ``tolerance`` with its default filled in: five classes.

    Raises:
        InputError: it is no dict of ``weight`` and ``classes``, or one of them cannot be used.
    """
    if tolerance is None:
        return None
    found = {'classes': min(5, num_classes), **tolerance}
    weight, classes = found.get('weight'), found['classes']
    usable = isinstance(weight, int | float) and isinstance(classes, int) and 2 <= classes <= num_classes
    if set(found) != {'weight', 'classes'} or not usable or weight < 0:
        raise InputError(
            'model.tolerance takes weight, not negative, and classes, '
            f'2 to {num_classes}; found {dict(tolerance)}'
        )
    return found


def _compile_for_these_threads() -> None:
    """Keep compiled CPU code of another number of threads out of this process.

    Inductor writes the number of threads into the code that it generates, but leaves it out of what it looks
    up in its cache on disk: a process of one thread beside another would run code of two that its like had
    left there, and all would wait for all, several times as slow.
    """
    from torch._inductor import config

    config.cpp.threads = torch.get_num_threads()


@MODELS.register_module()
class TimmClassifier(BaseModel):
    """A ``timm`` network with its loss: Eqn 1 alone, or Eqn 3 while a teacher is attached.

    ``state_dict`` and ``parameters()`` hold the student alone, under ``network.``.

    Args:
        network: name for ``timm.create_model``, such as ``'resnet152'``.
        num_classes: number of classes.
        network_args: further arguments of ``timm.create_model``.
        channels_last: memory format of the weights, and of the images if the preprocessor is given as a dict.
        data_preprocessor: config of an :class:`sd_pretrain.preprocessor.ImageBatchPreprocessor`.
        compile: compile network and augmentation (``torch.compile``), in place: names of weights stay.
        cuda_graph: on a GPU, in a run of one process, record forward and backward pass of the first training
            batch, and replay them for all of its shape: for small networks whose data is on the device.
        init_seed: draw the initial weights from this seed, whatever the run's; default: from the run's.
        tolerance: ``weight`` and ``classes`` of :func:`sd_pretrain.losses.top_score_difference`, added to the
            loss: the first generation of a tolerant teacher. Default: none.

    Raises:
        InputError: ``timm`` has no network of this name, or ``tolerance`` is not of that form.
    """

    def __init__(
        self,
        network: str,
        num_classes: int = 1000,
        network_args: dict | None = None,
        channels_last: bool = False,
        data_preprocessor: dict | None = None,
        compile: bool = False,
        cuda_graph: bool = False,
        init_seed: int | None = None,
        tolerance: dict | None = None,
    ):
        data_preprocessor = dict(data_preprocessor or {})
        data_preprocessor.setdefault('type', 'ImageBatchPreprocessor')
        data_preprocessor.setdefault('channels_last', channels_last)
        data_preprocessor.setdefault('compile', compile)
        super().__init__(data_preprocessor=data_preprocessor)
        check_network(network)
        self.arch = network
        self.num_classes = num_classes
        self.network_args = dict(network_args or {})
        self.tolerance = check_tolerance(tolerance, num_classes)
        with torch.random.fork_rng(devices=[], enabled=init_seed is not None):
            if init_seed is not None:
                torch.default_generator.manual_seed(init_seed)
            self.network = timm.create_model(network, num_classes=num_classes, **self.network_args)
        use_small_maps(self.network)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            _compile_for_these_threads()
            # Batches have one shape each in training and validation; a dynamic one would be slower for both.
            self.network.compile(dynamic=False)
        self.cuda_graph = cuda_graph
        self._graphed: GraphedTraining | None = None
        self.teacher: FrozenTeacher | None = None
        self._loss_args: dict = {}
        # Of the training batches since they were last reset; the hits stay on the device.
        self.train_hits: Tensor | None = None
        self.train_seen = 0

    def init_weights(self) -> None:
        """Keep the initialisation of ``timm.create_model``.

        The inherited method would call the ``init_weights`` of timm's network again without its arguments,
        which for a ResNet means ``zero_init_last=True`` whatever the config says.
        """

    def attach_teacher(self, teacher: FrozenTeacher | None, **loss_args: object) -> None:
        """Distil from ``teacher`` from now on (``None``: no longer).

        Args:
            teacher: the frozen teacher.
            **loss_args: ``temperature``, ``lambda_s``, ``lambda_t``, ``symmetric``, ... of :func:`sd_loss`.
        """
        self.teacher = teacher
        self._loss_args = loss_args

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor') -> object:
        """Run the network on normalised images ``(N, 3, H, W)``.

        Args:
            inputs: the images.
            labels: ``(N,)`` class indices, or ``(N, C)`` probabilities; needed for the loss.
            mode: ``'loss'`` gives the terms of :func:`sd_loss`, ``'predict'`` one dict an image with
                ``logits`` and ``label``, ``'tensor'`` the logits ``(N, C)``.
        """
        taught = mode == 'loss' and self.teacher is not None
        wait_for_teacher = self.teacher.start(inputs) if taught else None
        logits = self._logits(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            rows = logits.float().unbind()
            marks = [None] * len(rows) if labels is None else labels.unbind()
            return [{'logits': row, 'label': mark} for row, mark in zip(rows, marks, strict=True)]
        if mode == 'loss':
            self._count_hits(logits, labels)
            teacher_logits = wait_for_teacher() if taught else None
            losses = sd_loss(logits, teacher_logits, labels, **self._loss_args)
            if self.tolerance is not None:
                difference = top_score_difference(logits, self.tolerance['classes'])
                losses['loss_tolerance'] = self.tolerance['weight'] * difference
            return losses
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', found '{mode}'")

    def _logits(self, inputs: Tensor) -> Tensor:
        """The network's, by the CUDA graph that was recorded for them or is now."""
        learning = self.training and torch.is_grad_enabled()
        if not (self.cuda_graph and learning and inputs.is_cuda) or is_distributed():
            return self.network(inputs)
        if self._graphed is None:
            try:
                self._graphed = GraphedTraining(self.network, inputs)
            except RuntimeError as error:
                print_log(f'Training goes without a CUDA graph: {error}', logger='current', level=30)
                self.cuda_graph = False
        fits = self._graphed is not None and inputs.shape == self._graphed.shape
        return self._graphed(inputs) if fits else self.network(inputs)

    def _count_hits(self, logits: Tensor, labels: Tensor) -> None:
        """Add the batch to ``train_hits`` and ``train_seen``, for :class:`TrainAccuracyHook`.

        As one of the loss's log variables, the accuracy would be fetched from the device in each iteration.
        """
        truth = labels if labels.ndim == 1 else labels.argmax(1)
        hits = (logits.detach().argmax(1) == truth).sum()
        self.train_hits = hits if self.train_hits is None else self.train_hits + hits
        self.train_seen += len(truth)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmClassifier:
        self._graphed = None
        if self.teacher is not None:
            self.teacher.apply_to_tensors(fn)
        return super()._apply(fn, recurse)
