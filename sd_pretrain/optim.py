"""SGD and AdamW in one kernel, and bfloat16 autocast for ``--amp``, on CUDA and CPU alike."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.optim import OptimWrapper
from mmengine.registry import OPTIM_WRAPPERS, OPTIMIZERS
from torch import Tensor, nn
from torch.optim.adamw import adamw
from torch.optim.sgd import sgd

from sd_pretrain.bfloat16 import require_gpu_bf16

_RULE = ('lr', 'momentum', 'dampening', 'weight_decay', 'nesterov', 'maximize')


@OPTIM_WRAPPERS.register_module()
class Bf16OptimWrapper(OptimWrapper):
    """Run forward and loss under bfloat16 autocast.

    bfloat16 has the range of float32, so the gradient scaler that mmengine's ``AmpOptimWrapper`` always runs,
    and its wait for the GPU in every iteration, are not needed; and that wrapper refuses to work on a CPU.

    Raises:
        InputError: the GPU has no bfloat16 of its own (before Ampere).
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        if self.param_groups[0]['params'][0].is_cuda:
            require_gpu_bf16()

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast to bfloat16 on the device of ``model``."""
        device = next(model.parameters()).device.type
        with super().optim_context(model), torch.autocast(device, torch.bfloat16):
            yield


class _AnyLayout(torch.optim.Optimizer):
    """An optimizer by PyTorch's fused kernel, right and fast whatever the memory format of the weights.

    On a CPU such a kernel takes weight, gradient and state number by number as they lie in memory. Where
    their layouts differ it silently takes the wrong ones together, as ``torch.optim.SGD(fused=True)`` does
    after a resume in another memory format; and it copies whatever is channels-last for nothing. Here it gets
    all of them in the weight's order, as contiguous views. On a GPU it takes any order that all of them have.
    Subclasses have ``_step_group``, the step of one group of weights.
    """

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor] | None = None) -> Tensor | None:
        """One step for all weights with a gradient; returns what ``closure`` does."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            self._step_group(group)
        return loss

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As any optimizer does, each state in the memory format of its weight."""
        super().load_state_dict(state_dict)
        for weight, state in self.state.items():
            for name, value in state.items():
                if isinstance(value, Tensor) and value.shape == weight.shape:
                    state[name] = like(weight, value)

    def _scaling(self) -> dict[str, Any]:
        """What a gradient scaler leaves here."""
        return {name: getattr(self, name, None) for name in ('grad_scale', 'found_inf')}


@OPTIMIZERS.register_module()
class FusedSGD(_AnyLayout, torch.optim.SGD):
    """SGD by PyTorch's fused kernel, for weights of any memory format (:class:`_AnyLayout`).

    Args:
        params: as of ``torch.optim.SGD``, as are the others.
        lr: learning rate.
        momentum: factor; 0 for none.
        weight_decay: factor.
        nesterov: whether the momentum is Nesterov's.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        momentum: float = 0,
        weight_decay: float = 0,
        nesterov: bool = False,
    ):
        super().__init__(
            params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov, fused=True
        )

    def _step_group(self, group: dict[str, Any]) -> None:
        weights, grads, momenta = [], [], []
        for weight in group['params']:
            if weight.grad is None:
                continue
            view = _memory_order(weight)
            weights.append(view(weight))
            grads.append(view(like(weight, weight.grad)))
            if group['momentum'] != 0:
                state = self.state[weight]
                if state.get('momentum_buffer') is None:
                    # Of zeros, the first step is that of a buffer that begins as the gradient.
                    state['momentum_buffer'] = torch.zeros_like(weight)
                momenta.append(view(state['momentum_buffer']))
        sgd(
            weights,
            grads,
            momenta,
            fused=True,
            has_sparse_grad=False,
            **self._scaling(),
            **{key: group[key] for key in _RULE},
        )


@OPTIMIZERS.register_module()
class FusedAdamW(_AnyLayout, torch.optim.AdamW):
    """AdamW by PyTorch's fused kernel, for weights of any memory format (:class:`_AnyLayout`).

    Args:
        params: as of ``torch.optim.AdamW``, as are the others.
        lr: learning rate.
        betas: decays of the means of gradients and of their squares.
        eps: added to the root of the latter.
        weight_decay: factor.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
    ):
        super().__init__(params, lr=lr, betas=betas, eps=eps, weight_decay=weight_decay, fused=True)

    def _step_group(self, group: dict[str, Any]) -> None:
        weights, grads, means, squares, steps = [], [], [], [], []
        for weight in group['params']:
            if weight.grad is None:
                continue
            view = _memory_order(weight)
            state = self.state[weight]
            if not state:
                state['step'] = torch.zeros((), device=weight.device)
                state['exp_avg'] = torch.zeros_like(weight)
                state['exp_avg_sq'] = torch.zeros_like(weight)
            weights.append(view(weight))
            grads.append(view(like(weight, weight.grad)))
            means.append(view(state['exp_avg']))
            squares.append(view(state['exp_avg_sq']))
            steps.append(state['step'])
        beta1, beta2 = group['betas']
        adamw(
            weights,
            grads,
            means,
            squares,
            [],
            steps,
            fused=True,
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group['lr'],
            weight_decay=group['weight_decay'],
            eps=group['eps'],
            maximize=False,
            **self._scaling(),
        )


def like(weight: Tensor, tensor: Tensor) -> Tensor:
    """A tensor of the weight's shape, such as its gradient, with the weight's strides."""
    if tensor.stride() == weight.stride():
        return tensor
    strides = zip(weight.shape, tensor.stride(), weight.stride(), strict=True)
    if all(size == 1 or one == other for size, one, other in strides):
        return tensor.as_strided(weight.shape, weight.stride())
    return torch.empty_like(weight).copy_(tensor)


def _as_it_is(tensor: Tensor) -> Tensor:
    return tensor


def _memory_order(weight: Tensor) -> Callable[[Tensor], Tensor]:
    """On a CPU, the view of tensors of its shape in which ``weight`` is contiguous."""
    if weight.is_cuda or weight.is_contiguous():
        return _as_it_is
    order = sorted(range(weight.ndim), key=weight.stride, reverse=True)
    return lambda tensor: tensor.permute(order)
