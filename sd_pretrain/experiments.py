"""One backbone by several algorithms from one start: what Tables 3 and 4 of the paper are made of.

"For different instances of the same backbone, network weights are initialized in the same way [...] In
addition, the first mini-generation (no T-S optimization) is shared between SE and SD" (Section 4.1.2). The
weights follow from the seed alone. The first mini-generation is trained once, into a folder ``first``, and
SE and SD begin as forks of it.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sd_pretrain.cli import Options
from sd_pretrain.prepare import load_config, mini_generations
from sd_pretrain.pretrainings import Pretraining, run_pretrainings
from sd_pretrain.run_record import fingerprint, finished_result
from sd_pretrain.work_dir import claim, latest_checkpoint

_EPOCH = re.compile(r'epoch_(\d+)\.pth')


@dataclass(frozen=True)
class Algorithm:
    """A row of a backbone's part of the table: ``key`` in file names, ``name`` (BL, SE, SD) and ``T``."""

    key: str
    name: str
    temperature: float | None = None

    @property
    def label(self) -> str:
        """What it is called on screen."""
        return self.name if self.temperature is None else f'{self.name} T={self.temperature:g}'


@dataclass(frozen=True)
class Experiments:
    """Which backbones by which algorithms, with which settings.

    Args:
        work_dir: runs go to ``work_dir/<net>/seed<k>/<algorithm>``.
        data: what the data is called in the JSON.
        data_root: ``--data-root`` of ``tools/train.py``.
        algorithms: BL, SE and one or several SD, SE before SD.
        config: from net and algorithm to the path of the config.
        ends: ends of the mini-generations, in epochs, in place of the configs' own; a short run has them.
        options: ``KEY=VALUE`` for the configs of all runs.
        seeds: seeds of initialisation, order and augmentation.
        gpus: processes of one run.
        parallel: runs side by side.
        amp: train in bfloat16.
    """

    work_dir: Path
    data: str
    data_root: Path
    algorithms: tuple[Algorithm, ...]
    config: Callable[[str, Algorithm], str]
    ends: tuple[int, ...] | None = None
    options: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    gpus: int = 1
    parallel: int = 1
    amp: bool = False

    def run_dir(self, net: str, seed: int, key: str) -> Path:
        """The work dir of one run; ``key`` is an algorithm's, or ``'first'``."""
        return self.work_dir / net / f'seed{seed}' / key

    def run_options(self, algorithm: Algorithm, seed: int) -> tuple[str, ...]:
        """``KEY=VALUE`` of one run: the short schedule if there is one, the seed, and the common options."""
        ends = self.ends and (self.ends[-1:] if algorithm.name == 'BL' else self.ends)
        return (*(schedule_options(ends) if ends else ()), f'randomness.seed={seed}', *self.options)

    def load(self, net: str, algorithm: Algorithm, seed: int) -> Config:
        """The config of one run, as ``tools/train.py`` reads it."""
        return load_config(
            self.config(net, algorithm),
            self.data_root,
            self.run_dir(net, seed, algorithm.key),
            parse_options(self.run_options(algorithm, seed)),
            self.amp,
        )

    def finished(self, net: str, algorithm: Algorithm, seed: int) -> dict[str, Any] | None:
        """``result.json`` of one run, ``None`` if it is not finished.

        Raises:
            InputError: a run of other settings was finished there.
        """
        cfg = self.load(net, algorithm, seed)
        return finished_result(cfg.work_dir, fingerprint(cfg))


def schedule_options(ends: Sequence[int]) -> tuple[str, ...]:
    """``KEY=VALUE`` that give a config other ends of the mini-generations (in epochs), evenly weighted."""
    periods = [late - early for early, late in pairwise((0, *ends))]
    shown = {'ends': list(ends), 'periods': periods, 'weights': [1] * len(ends)}
    lists = {key: str(value).replace(' ', '') for key, value in shown.items()}
    return (
        f'custom_hooks.0.ends={lists["ends"]}',
        f'param_scheduler.0.periods={lists["periods"]}',
        f'param_scheduler.0.restart_weights={lists["weights"]}',
        f'train_cfg.max_epochs={ends[-1]}',
    )


def parse_options(options: Sequence[str]) -> dict[str, Any]:
    """Read ``KEY=VALUE`` as ``--cfg-options`` of ``tools/train.py`` does.

    Raises:
        InputError: one is not of that form.
    """
    parser = argparse.ArgumentParser()
    parser.add_argument('options', nargs='*', action=Options)
    return parser.parse_args(list(options)).options if options else {}


def claim_for(experiments: Experiments, counts: dict[str, int]) -> None:
    """Note what the work dir is for, or refuse one that is for something else.

    Args:
        experiments: what is to be run.
        counts: images and classes of the data.

    Raises:
        InputError: it holds runs on other data or with other settings.
    """
    wanted = {
        'data': experiments.data,
        'counts': counts,
        'amp': experiments.amp,
        'ends': list(experiments.ends or ()),
        'options': list(experiments.options),
    }
    claim(experiments.work_dir, wanted)


def run_experiments(experiments: Experiments, net: str) -> None:
    """Train what is not finished of one backbone: the shared first mini-generations, then all algorithms.

    Raises:
        InputError: a mistake the user can mend; finished runs of other settings are one.
        RunFailedError: a run failed.
    """
    settings = dict(
        data_root=experiments.data_root,
        gpus=experiments.gpus,
        parallel=experiments.parallel,
        amp=experiments.amp,
    )
    rest = list(_unfinished(experiments, net))
    starts = _starts(experiments, net, rest)
    if starts:
        run_pretrainings(f'{net}: the shared first mini-generation', starts, **settings)
    if rest:
        run_pretrainings(f'{net}: {", ".join(run.name for run in rest)}', rest, **settings)


def _unfinished(experiments: Experiments, net: str) -> Iterator[Pretraining]:
    for seed in experiments.seeds:
        for algorithm in experiments.algorithms:
            if experiments.finished(net, algorithm, seed) is None:
                yield Pretraining(
                    _name(experiments, algorithm.label, seed),
                    experiments.config(net, algorithm),
                    experiments.run_dir(net, seed, algorithm.key),
                    experiments.run_options(algorithm, seed),
                    None if algorithm.name == 'BL' else experiments.run_dir(net, seed, 'first'),
                )


def _starts(experiments: Experiments, net: str, rest: Sequence[Pretraining]) -> list[Pretraining]:
    """The first mini-generations that forks wait for, and beside each, as far, the run of BL.

    BL is then no longer than the forks, where runs go side by side.
    """
    starts = []
    se = next(algorithm for algorithm in experiments.algorithms if algorithm.name == 'SE')
    for seed in experiments.seeds:
        end = mini_generations(experiments.load(net, se, seed))['ends'][0]
        first = experiments.run_dir(net, seed, 'first')
        waiting = any(run.fork_of == first and not epochs_done(run.work_dir) for run in rest)
        if not waiting or epochs_done(first) >= end:
            continue
        name = _name(experiments, 'first', seed)
        starts.append(
            Pretraining(
                name, experiments.config(net, se), first, experiments.run_options(se, seed), stop_after=end
            )
        )
        for run in rest:
            baseline = run.fork_of is None and run.work_dir.parent == first.parent
            if baseline and experiments.parallel > 1 and epochs_done(run.work_dir) < end:
                starts.append(Pretraining(run.name, run.config, run.work_dir, run.options, stop_after=end))
    return starts


def epochs_done(work_dir: Path) -> int:
    """Epochs after which a run can be resumed: those of its last checkpoint, 0 if there is none."""
    path = latest_checkpoint(work_dir)
    found = _EPOCH.fullmatch(path.name) if path is not None else None
    return int(found.group(1)) if found else 0


def _name(experiments: Experiments, label: str, seed: int) -> str:
    return label if len(experiments.seeds) == 1 else f'{label} seed {seed}'
