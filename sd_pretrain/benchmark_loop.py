"""What hooks and logging add to an iteration, early and late in a long run: ours against mmengine's."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sd_pretrain.benchmark import Section, interleaved, ratio, spread

EARLY, LATE = 1_000, 400_000
_NAMES = {False: "mmengine's default hooks", True: 'ours'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Nothing: this part has no arguments of its own."""


def measure(args: argparse.Namespace) -> Iterator[Section]:
    """Milliseconds an iteration at iteration 1,000 and at 400,000, in one table."""
    from sd_pretrain.idle_loop import LOG_INTERVAL, paused_runner

    rounds = args.rounds or (5 if args.quick else 15)
    with tempfile.TemporaryDirectory() as folder:
        cases = {}
        for ours in (False, True):
            for iteration in (EARLY, LATE):
                key = f'{"ours" if ours else "mmengine"}_{iteration}'
                runner = paused_runner(ours, iteration, Path(folder) / key, args.device)
                cases[key] = lambda loop=runner.train_loop: loop.advance(LOG_INTERVAL)
        seconds = interleaved(cases, rounds, args.device)
    each = {name: [1e3 * value / LOG_INTERVAL for value in values] for name, values in seconds.items()}
    rows = []
    for ours, name in _NAMES.items():
        early, late = (each[f'{"ours" if ours else "mmengine"}_{at}'] for at in (EARLY, LATE))
        rows.append([name, spread(early).show(3), spread(late).show(3), ratio(late, early).show()])
    saved = [ratio(each[f'mmengine_{at}'], each[f'ours_{at}']) for at in (EARLY, LATE)]
    rows.append(['mmengine / ours', *(value.show(1) for value in saved), ''])
    yield Section(
        name='loop',
        title='Hooks and logging, ms an iteration',
        columns=('hooks', f'from iteration {EARLY:,}', f'from iteration {LATE:,}', 'late / early'),
        rows=rows,
        notes=(
            f'{rounds} rounds of {LOG_INTERVAL} iterations with one line of the log each; the training step '
            'does nothing. At the later iteration there is a teacher, and so one more logged value.',
        ),
        data={'milliseconds': each, 'iterations_a_round': LOG_INTERVAL},
    )
