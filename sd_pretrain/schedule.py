"""When the mini-generations end, who teaches whom, and the learning rate: Eqns 4 and 5 of the paper.

Iterations ``l`` count from 1 as in the paper: iteration ``l`` turns parameters ``theta_{l-1}`` into
``theta_l``. ``ends`` are the paper's ``L'_1 < ... < L'_K``, the last iteration of each mini-generation;
``L'_0 = 0``.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import accumulate, pairwise
from typing import Any

from sd_pretrain.cli import InputError

HOOK = 'SnapshotDistillationHook'


def snapshot_hooks(cfg: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The hooks of a config that say where its mini-generations end; a pretraining's has one."""
    return [hook for hook in cfg.get('custom_hooks') or [] if hook.get('type') == HOOK]


def check_ends(ends: Sequence[int], length: int, unit: str = 'iterations') -> None:
    """Check that the mini-generations are ascending and fill the run exactly.

    Args:
        ends: the ends of the mini-generations.
        length: the length of the run, in the same unit.
        unit: the unit, for the message.

    Raises:
        InputError: they are not, and both sides are in the message.
    """
    if not isinstance(ends, list | tuple):
        raise InputError(f'mini-generation ends must be a list, such as [45, 90], found {ends!r}')
    ends = list(ends)
    if not ends or any(int(end) != end or end <= 0 for end in ends):
        raise InputError(f'mini-generation ends must be positive whole numbers, found {ends}')
    if any(late <= early for early, late in pairwise(ends)):
        raise InputError(f'mini-generation ends must be ascending, found {ends}')
    if ends[-1] != length:
        relation = 'beyond' if ends[-1] > length else 'before'
        raise InputError(
            f'the last mini-generation ends {relation} the run: ends {ends}, run length {length} {unit}; '
            'make the last end and max_epochs agree'
        )


def mini_generation(l: int, ends: Sequence[int]) -> int:  # noqa: E741 - the paper's name
    """Index ``k_l`` (1 to K) of the mini-generation that iteration ``l`` (1 to L) belongs to."""
    if not 1 <= l <= ends[-1]:
        raise ValueError(f'iteration {l} is outside 1 to {ends[-1]}')
    return bisect_left(ends, l) + 1


def teacher_iteration(l: int, ends: Sequence[int]) -> int:  # noqa: E741
    """Eqn 4: ``c_l``, the iteration whose parameters teach iteration ``l``; 0 means no teacher."""
    k = mini_generation(l, ends)
    return ends[k - 2] if k > 1 else 0


def learning_rate(l: int, ends: Sequence[int], alphas: Sequence[float]) -> float:  # noqa: E741
    """Eqn 5: the learning rate of iteration ``l``, a cosine from ``alphas[k-1]`` down.

    The cosine counts the iterations that are done before ``l``, so each mini-generation starts at exactly its
    alpha and no iteration is spent at a rate of zero. mmengine's ``CosineRestartLR`` counts in the same way.

    Args:
        l: iteration, 1 to L.
        ends: ends of the mini-generations, in iterations.
        alphas: the rate at the start of each of them.
    """
    if len(alphas) != len(ends):
        raise ValueError(f'{len(ends)} mini-generations need as many alphas, found {len(alphas)}')
    k = mini_generation(l, ends)
    begin = ends[k - 2] if k > 1 else 0
    return alphas[k - 1] / 2 * (1 + math.cos(math.pi * (l - 1 - begin) / (ends[k - 1] - begin)))


def check_periods(periods: Sequence[int], ends: Sequence[int], unit: str, hint: str = '') -> None:
    """Check that the learning rate restarts where the mini-generations end.

    Args:
        periods: lengths of the cosines.
        ends: ends of the mini-generations, in the same unit.
        unit: the unit, for the message.
        hint: what else the message says.

    Raises:
        InputError: it does not, and both sides are in the message.
    """
    periods_end = list(accumulate(periods))
    if periods_end != list(ends):
        raise InputError(
            'the learning rate restarts where no mini-generation ends: the periods of CosineRestartLR end at '
            f'{periods_end}, the mini-generations of SnapshotDistillationHook at {list(ends)} ({unit}); '
            f'make them agree{hint}'
        )


def check_scheduler(schedulers: object, ends: Sequence[int], lr: float | None = None) -> None:
    """Check the run's built parameter schedulers against the ends of the mini-generations.

    Args:
        schedulers: ``runner.param_schedulers``, built.
        ends: ends of the mini-generations, in iterations.
        lr: the config's learning rate; a resumed run brings its own.

    Raises:
        InputError: there is not exactly one ``CosineRestartLR`` stepped by iteration, or its periods differ,
            or its learning rate does.
    """
    what = 'in param_scheduler use one CosineRestartLR with by_epoch=True, convert_to_iter_based=True'
    schedulers = schedulers if isinstance(schedulers, list) else []
    found = [type(scheduler).__name__ for scheduler in schedulers]
    if found != ['CosineRestartLR'] or schedulers[0].by_epoch or schedulers[0].begin:
        by_epoch = ' (by epoch)' if any(scheduler.by_epoch for scheduler in schedulers) else ''
        raise InputError(
            f'the mini-generations need the learning rate of Eqn 5, found {found}{by_epoch}; {what}'
        )
    hint = ' (a resumed run brings its periods with it: same data, batch and ends are needed)'
    check_periods(schedulers[0].periods, ends, 'iterations', hint)
    base = schedulers[0].base_values[0]
    if lr is not None and base != lr:
        raise InputError(
            f'the config has a learning rate of {lr}, the resumed run {base}, which would win; '
            'set it back, or start anew in another --work-dir'
        )
