"""The image classifier that is pretrained."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

import timm
import torch
from mmengine.dist import is_distributed
from mmengine.logging import print_log
from mmengine.model import BaseModel
from mmengine.optim import OptimWrapper
from mmengine.registry import MODELS
from torch import Tensor

# timm and the registry know what is in these from here on.
import sd_pretrain.networks
import sd_pretrain.preprocessor  # noqa: F401
from sd_pretrain.cli import InputError
from sd_pretrain.cuda_graph import RecordedStep
from sd_pretrain.losses import sd_loss, top_score_difference
from sd_pretrain.optim import Bf16OptimWrapper
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
        cuda_graph: on a GPU, in a run of one process, record the step of the first training batch up to the
            optimizer, and replay it for all batches of that shape: for networks so small that launching
            their operations is what takes the time.
        init_seed: draw the initial weights from this seed, whatever the run's; default: from the run's.
        tolerance: ``weight`` and ``classes`` of :func:`sd_pretrain.losses.top_score_difference`, added to the
            loss: the first generation of a tolerant teacher. Default: none.

    Raises:
        InputError: ``timm`` has no network of this name, or none with these arguments; or ``tolerance`` is
            not of that form.
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
            try:
                self.network = timm.create_model(network, num_classes=num_classes, **self.network_args)
            except TypeError as error:
                raise InputError(
                    f'timm makes no {network} with model.network_args={self.network_args}: {error}; '
                    'network_args=dict(_delete_=True) drops those that a config inherits'
                ) from None
        use_small_maps(self.network)
        if channels_last:
            self.network.to(memory_format=torch.channels_last)
        if compile:
            _compile_for_these_threads()
            # Batches have one shape each in training and validation; a dynamic one would be slower for both.
            self.network.compile(dynamic=False)
        self.cuda_graph = cuda_graph
        self._recorded: RecordedStep | None = None
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
        self._recorded = None

    def train_step(self, data: dict[str, Tensor], optim_wrapper: OptimWrapper) -> dict[str, Tensor]:
        """One step on a batch, as in mmengine; with ``cuda_graph`` replayed where that is possible.

        Returns:
            ``loss`` and its terms, scalars on the device.
        """
        recordable = self.cuda_graph and self.training and _plain(optim_wrapper) and not is_distributed()
        if not (recordable and _on_gpu(self)):
            return super().train_step(data, optim_wrapper)
        with optim_wrapper.optim_context(self):
            data = self.data_preprocessor(data, True)
            if self._recorded is None:
                self._record(data)
            replay = self._recorded is not None and self._recorded.fits(data)
            loss, log_vars = (None, self._recorded(data)) if replay else self._terms(data)
        self._count_hits(log_vars.pop('hits'), len(data['labels']))
        if replay:
            optim_wrapper.step()
            optim_wrapper.zero_grad()
        else:
            optim_wrapper.update_params(loss)
        return log_vars

    def _record(self, data: dict[str, Tensor]) -> None:
        """Record the step of this batch; where that cannot be, never try again."""
        try:
            self._recorded = RecordedStep(self.network, self._terms, data)
        except RuntimeError as error:
            print_log(f'Steps are not recorded, and slower: {error}', logger='current', level=30)
            self.cuda_graph = False

    def _terms(self, data: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss, and what is logged of it together with the ``hits`` of the batch."""
        losses, hits = self._losses(data['inputs'], data['labels'])
        loss, log_vars = self.parse_losses(losses)
        return loss, {**log_vars, 'hits': hits}

    def forward(self, inputs: Tensor, labels: Tensor | None = None, mode: str = 'tensor') -> object:
        """Run the network on normalised images ``(N, 3, H, W)``.

        Args:
            inputs: the images.
            labels: ``(N,)`` class indices, or ``(N, C)`` probabilities; needed for the loss.
            mode: ``'loss'`` gives the terms of :func:`sd_loss`, ``'predict'`` one dict an image with
                ``logits`` and ``label``, ``'tensor'`` the logits ``(N, C)``.
        """
        if mode == 'loss':
            losses, hits = self._losses(inputs, labels)
            self._count_hits(hits, len(labels))
            return losses
        logits = self.network(inputs)
        if mode == 'tensor':
            return logits
        if mode == 'predict':
            rows = logits.float().unbind()
            marks = [None] * len(rows) if labels is None else labels.unbind()
            return [{'logits': row, 'label': mark} for row, mark in zip(rows, marks, strict=True)]
        raise ValueError(f"mode must be 'loss', 'predict' or 'tensor', found '{mode}'")

    def _losses(self, inputs: Tensor, labels: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """The terms of the loss, and how many images of the batch the student gets right."""
        wait_for_teacher = None if self.teacher is None else self.teacher.start(inputs)
        logits = self.network(inputs)
        truth = labels if labels.ndim == 1 else labels.argmax(1)
        hits = (logits.detach().argmax(1) == truth).sum()
        teacher_logits = None if wait_for_teacher is None else wait_for_teacher()
        losses = sd_loss(logits, teacher_logits, labels, **self._loss_args)
        if self.tolerance is not None:
            difference = top_score_difference(logits, self.tolerance['classes'])
            losses['loss_tolerance'] = self.tolerance['weight'] * difference
        return losses, hits

    def _count_hits(self, hits: Tensor, seen: int) -> None:
        """Add a batch to ``train_hits`` and ``train_seen``, for :class:`TrainAccuracyHook`.

        As one of the loss's log variables, the accuracy would be fetched from the device in each iteration.
        """
        self.train_hits = hits if self.train_hits is None else self.train_hits + hits
        self.train_seen += seen

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> TimmClassifier:
        self._recorded = None
        if self.teacher is not None:
            self.teacher.apply_to_tensors(fn)
        return super()._apply(fn, recurse)


def _plain(optim_wrapper: OptimWrapper) -> bool:
    """Whether between loss and optimizer there is nothing but the backward pass."""
    return type(optim_wrapper) in (OptimWrapper, Bf16OptimWrapper) and optim_wrapper._accumulative_counts == 1


def _on_gpu(model: TimmClassifier) -> bool:
    return next(model.parameters()).is_cuda
