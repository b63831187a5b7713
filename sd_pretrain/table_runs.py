"""Make a table of the paper: train what is missing, evaluate what is finished, write the table."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from sd_pretrain.cli import InputError
from sd_pretrain.evaluate import run_errors
from sd_pretrain.experiments import Algorithm, Experiments, claim_for, epochs_done, run_experiments
from sd_pretrain.launch import check_gpus
from sd_pretrain.paper_table import Layout, build_table, write_table
from sd_pretrain.prepare import mini_generations
from sd_pretrain.work_dir import CLAIM


def make_table(
    layout: Layout,
    experiments: Experiments,
    nets: Sequence[str],
    counts: dict[str, int],
    *,
    notes: Sequence[str] = (),
    so_far: bool = False,
) -> tuple[Path, Path]:
    """Train the backbones one after the other, and write the table anew after each.

    Args:
        layout: the table.
        experiments: what is to be run.
        nets: keys of the backbones; those that were trained before are in the table as well.
        counts: classes and images of the data.
        notes: sentences that go below the table.
        so_far: train nothing; unfinished runs are in the table with the snapshots that they have.

    Returns:
        The paths of the JSON file and of the Markdown.

    Raises:
        InputError: other runs in the work dir, no such GPUs, or what a run finds wrong.
        RunFailedError: a run failed.
    """

    def write() -> tuple[Path, Path]:
        found = collect(layout, experiments, so_far)
        settings = {
            'counts': counts,
            'ends': list(experiments.ends or ()) or None,
            'options': list(experiments.options),
            'amp': experiments.amp,
        }
        table = build_table(layout, found, data=experiments.data, settings=settings)
        return write_table(layout, table, experiments.work_dir, [*notes, *_unfinished(layout, found)])

    if so_far and not (experiments.work_dir / CLAIM).exists():
        raise InputError(
            f'{experiments.work_dir} has no {CLAIM}: nothing has been run there that could be shown'
        )
    if not so_far:
        check_gpus(experiments.gpus, experiments.parallel, share=True)
    _check_temperatures(layout, experiments, nets)
    claim_for(experiments, counts)
    if so_far:
        return write()
    for net in nets:
        run_experiments(experiments, net)
        paths = write()
    return paths


def check_nets(layout: Layout, nets: Sequence[str]) -> None:
    """Check that a table has the backbones that are asked for.

    Raises:
        InputError: it has not, or none is asked for.
    """
    unknown = [net for net in nets if net not in layout.nets]
    if unknown or not nets:
        raise InputError(
            f'no backbone {", ".join(unknown) or "given"} in Table {layout.number}: '
            f'--nets takes {",".join(layout.nets)}'
        )


def _check_temperatures(layout: Layout, experiments: Experiments, nets: Sequence[str]) -> None:
    """Check that every row is trained with the temperature that it says."""
    for net in nets:
        for algorithm in layout.algorithms:
            hook = mini_generations(experiments.load(net, algorithm, experiments.seeds[0]))
            found = hook.get('temperature')
            if algorithm.temperature not in (None, found):
                raise InputError(
                    f'--cfg-options set the temperature of the row {algorithm.label} of Table '
                    f'{layout.number} to {found}; train with another one by tools/train.py'
                )


def collect(
    layout: Layout, experiments: Experiments, so_far: bool = False
) -> dict[tuple[str, str], dict[int, dict]]:
    """The errors of every run in the work dir, asked for now or earlier.

    Args:
        layout: the table.
        experiments: where the runs are.
        so_far: those that are not finished as well, if they have a snapshot; else finished ones alone.

    Returns:
        :func:`run_errors` by (net, algorithm key) and seed, with ``seconds`` of a finished run, ``epochs`` of
        an unfinished one.

    Raises:
        InputError: a finished run has other settings, or lacks a file.
    """
    errors: dict[tuple[str, str], dict[int, dict]] = {}
    for net in layout.nets:
        names = [path.name for path in experiments.work_dir.glob(f'{net}/seed*')]
        seeds = [int(found[1]) for name in names if (found := re.fullmatch(r'seed(\d+)', name))]
        for algorithm in layout.algorithms:
            runs = {seed: _errors(experiments, net, algorithm, seed, so_far) for seed in sorted(seeds)}
            errors[net, algorithm.key] = {seed: run for seed, run in runs.items() if run is not None}
    return errors


def _errors(experiments: Experiments, net: str, algorithm: Algorithm, seed: int, so_far: bool) -> dict | None:
    result = experiments.finished(net, algorithm, seed)
    cfg = experiments.load(net, algorithm, seed)
    if result is None:
        if algorithm.name != 'BL' and not snapshots_there(cfg.work_dir):
            # It has not begun; its first mini-generation is the shared one.
            cfg.work_dir = str(experiments.run_dir(net, seed, 'first'))
        if not so_far or not snapshots_there(cfg.work_dir):
            return None
    print(f'errors of {net} {algorithm.label}, seed {seed}', flush=True)
    if result is not None:
        return run_errors(cfg, algorithm.temperature) | {'seconds': result['seconds']}
    epochs = epochs_done(Path(cfg.work_dir))
    return run_errors(cfg, snapshots=snapshots_there(cfg.work_dir)) | {'epochs': epochs}


def snapshots_there(work_dir: str | Path) -> int:
    """How many snapshots a run has taken, the first ones without a gap."""
    numbers = itertools.count(1)
    return next(k for k in numbers if not (Path(work_dir) / f'snapshot_{k}.pth').is_file()) - 1


def _unfinished(layout: Layout, found: Mapping[tuple[str, str], Mapping[int, dict]]) -> list[str]:
    """A sentence on the runs that are not at their end, if there are any."""
    labels = {algorithm.key: algorithm.label for algorithm in layout.algorithms}
    runs = [
        f'{layout.nets[net]} {labels[key]} seed {seed} ({run["epochs"]} epochs done)'
        for (net, key), seeds in found.items()
        for seed, run in seeds.items()
        if 'epochs' in run
    ]
    return [f'Not finished: {", ".join(runs)}.'] if runs else []
