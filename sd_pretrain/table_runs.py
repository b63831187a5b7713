"""Make a table of the paper: train what is missing, evaluate what is finished, write the table."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from sd_pretrain.cli import InputError
from sd_pretrain.evaluate import run_errors
from sd_pretrain.experiments import Experiments, claim_for, run_experiments
from sd_pretrain.launch import check_gpus
from sd_pretrain.paper_table import Layout, build_table, write_table


def make_table(
    layout: Layout,
    experiments: Experiments,
    nets: Sequence[str],
    counts: dict[str, int],
    *,
    notes: Sequence[str] = (),
    say: Callable[[str], None] = lambda text: print(text, flush=True),
) -> tuple[Path, Path]:
    """Train the backbones one after the other, and write the table anew after each.

    Args:
        layout: the table.
        experiments: what is to be run.
        nets: keys of the backbones; those that were trained before are in the table as well.
        counts: classes and images of the data.
        notes: sentences that go below the table.
        say: told what is being done.

    Returns:
        The paths of the JSON file and of the Markdown.

    Raises:
        InputError: other runs in the work dir, no such GPUs, or what a run finds wrong.
        RunFailedError: a run failed.
    """
    # Runs on one GPU each may share it.
    shared = experiments.gpus == 1 and experiments.parallel >= 1
    check_gpus(experiments.gpus, 1 if shared else experiments.parallel)
    claim_for(experiments, counts)
    for net in nets:
        run_experiments(experiments, net)
        found = collect(layout, experiments, say)
        settings = {
            'counts': counts,
            'ends': list(experiments.ends or ()) or None,
            'options': list(experiments.options),
            'amp': experiments.amp,
        }
        table = build_table(layout, found, data=experiments.data, settings=settings)
        paths = write_table(layout, table, experiments.work_dir, notes)
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


def collect(
    layout: Layout, experiments: Experiments, say: Callable[[str], None]
) -> dict[tuple[str, str], dict[int, dict]]:
    """The errors of every finished run in the work dir, asked for now or earlier.

    Args:
        layout: the table.
        experiments: where the runs are.
        say: told what is being evaluated.

    Returns:
        :func:`run_errors` by (net, algorithm key) and seed.

    Raises:
        InputError: a finished run has other settings, or lacks a file.
    """
    found: dict[tuple[str, str], dict[int, dict]] = {}
    for net in layout.nets:
        for algorithm in layout.algorithms:
            of_seed = {}
            for path in experiments.work_dir.glob(f'{net}/seed*/{algorithm.key}/result.json'):
                seed = int(path.parts[-3].removeprefix('seed'))
                result = experiments.finished(net, algorithm, seed)
                say(f'errors of {net} {algorithm.label}, seed {seed}')
                cfg = experiments.load(net, algorithm, seed)
                of_seed[seed] = run_errors(cfg, algorithm.temperature) | {'seconds': result['seconds']}
            found[net, algorithm.key] = dict(sorted(of_seed.items()))
    return found
