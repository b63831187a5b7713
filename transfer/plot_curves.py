"""Figure 1 of the paper for any trainings: train and test error over the epochs, as PNG and SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from sd_pretrain.cli import InputError, named_folder
from sd_pretrain.curves import Curves, read_curves
from transfer.charts import add_legend

# The series of the report, in its light colours.
COLOURS = ('#0072b2', '#d55e00', '#6b7280', '#00795a', '#a0458a', '#7a6200')
MARKERS = ('o', 's', '^', 'D', 'v', 'P')
_RC = {
    'font.size': 11,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': '#c9ced4',
    'grid.linewidth': 0.6,
    'legend.frameon': False,
    'svg.hashsalt': 'curves',
}


def read_runs(runs: Sequence[str]) -> dict[str, Curves]:
    """Read trainings given as ``WORK_DIR`` or ``NAME=WORK_DIR``; without a name they have their folder's.

    Raises:
        InputError: a work dir without a log, a log without errors, or two trainings of one name.
    """
    read: dict[str, Curves] = {}
    for run in runs:
        name, folder = named_folder(run)
        name = name or Path(folder).resolve().name
        if name in read:
            raise InputError(f"two trainings are called '{name}'; name one of them, as in OTHER={folder}")
        read[name] = read_curves(folder)
        if not (read[name].top1 or read[name].train_top1):
            raise InputError(
                f'the log in {folder} has neither accuracy/top1 nor train/top1: no training of a classifier, '
                'or not one epoch of it is done'
            )
    return read


def plot_errors(curves: Mapping[str, Curves], out: str | Path, max_error: float | None = None) -> list[Path]:
    """Draw train and test error over the epochs, and the learning rate in a small panel below.

    Dotted vertical lines are the ends of mini-generations, in the colour of their training where it is one.

    Args:
        curves: for each training's name its curves.
        out: path of the files without ``.png`` and ``.svg``.
        max_error: upper end of the error axis in percent; default: that of the curves.

    Returns:
        The files: PNG and SVG.
    """
    out = Path(out)
    if out.suffix.lower() in ('.png', '.svg'):
        out = out.with_suffix('')
    out.parent.mkdir(parents=True, exist_ok=True)
    with rc_context(_RC):
        figure = Figure(figsize=(7.2, 5.4), layout='constrained')
        errors, rates = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        entries = [
            _draw_one(errors, rates, index, name, one, rate_width=1.2 * min(4, len(curves) - index))
            for index, (name, one) in enumerate(curves.items())
        ]
        runs_of: dict[int, list[int]] = {}
        for index, one in enumerate(curves.values()):
            for end in one.boundaries:
                runs_of.setdefault(end, []).append(index)
        for end, runs in sorted(runs_of.items()):
            colour = '#1d2126' if len(runs) > 1 else look(runs[0])[0]
            for axes in (errors, rates):
                axes.axvline(end, color=colour, linewidth=1, linestyle=(0, (2, 3)))
        if any(one.train_top1 for one in curves.values()):
            entries += [
                Line2D([], [], color='#1d2126', linewidth=1.9, label='test'),
                Line2D([], [], color='#1d2126', linewidth=1, linestyle='--', label='training'),
            ]
        errors.set_ylabel('top-1 error (%)')
        errors.set_ylim(bottom=0 if min(errors.get_ylim()) < 0 else None, top=max_error)
        rates.set_ylabel('learning rate')
        rates.set_ylim(bottom=0)
        rates.set_xlabel('epoch')
        rates.set_xlim(left=0)
        add_legend(figure, handlelength=2.4, handles=entries)
        files = [out.with_name(out.name + suffix) for suffix in ('.png', '.svg')]
        figure.savefig(files[0], dpi=160)
        figure.savefig(files[1], metadata={'Date': None})
    return files


def look(index: int) -> tuple[str, str]:
    """Colour and marker of a training, no two alike up to the 36th."""
    rounds, place = divmod(index, len(COLOURS))
    return COLOURS[place], MARKERS[(place + rounds) % len(MARKERS)]


def _draw_one(
    errors: object, rates: object, index: int, name: str, curves: Curves, rate_width: float
) -> Line2D:
    """Draw one training; returns its entry in the legend."""
    colour, marker = look(index)
    # With many epochs a marker at each would hide the line.
    style = {
        'color': colour,
        'marker': marker,
        'markersize': 4,
        'markevery': max(1, len(curves.top1) // 15),
    }
    if curves.top1:
        errors.plot(*zip(*curves.test_error, strict=True), linewidth=1.9, **style)
    if curves.train_top1:
        errors.plot(*zip(*curves.train_error, strict=True), color=colour, linewidth=1, linestyle='--')
    if curves.lr:
        # The rate jumps where a mini-generation ends; a line drawn on would slope there.
        steps = sorted([*curves.lr, *((float(end), math.nan) for end in curves.boundaries)], key=_epoch)
        # Rates that agree lie one over the other: the earlier lines are wider, so that all are seen.
        rates.plot(*zip(*steps, strict=True), color=colour, linewidth=rate_width)
    return Line2D([], [], label=name, linewidth=1.9, **style | {'markevery': None})


def _epoch(point: tuple[float, float]) -> float:
    return point[0]
