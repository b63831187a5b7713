"""Charts of the report as inline SVG that takes its colours from the page, so that dark mode reaches them."""

from __future__ import annotations

import io
import re
import textwrap
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib import rc_context, rcParams
from matplotlib.artist import Artist
from matplotlib.colors import LinearSegmentedColormap, to_rgba
from matplotlib.figure import Figure

from sd_pretrain.curves import Curves

# matplotlib wants colours; these stand for the page's own and are replaced by CSS variables in the SVG.
_INK, _GRID = '#010203', '#040506'
_SERIES = ('#0a0b01', '#0a0b02', '#0a0b03', '#0a0b04', '#0a0b05', '#0a0b06')
_VARIABLES = {_INK: 'var(--ink)', _GRID: 'var(--grid)'} | {
    colour: f'var(--series-{index})' for index, colour in enumerate(_SERIES)
}
# Of a row of a confusion; smaller ones are left blank.
LEAST_SHARE = 0.005
_STYLES = ('-', '--', ':', '-.', (0, (5, 1)), (0, (1, 1)))
_MARKERS = ('o', 's', '^', 'D', 'v', 'P')
_RC = {
    'svg.fonttype': 'none',
    'font.family': 'sans-serif',
    'font.size': 12,
    'text.color': _INK,
    'axes.labelcolor': _INK,
    'axes.edgecolor': _GRID,
    'axes.spines.top': False,
    'axes.spines.right': False,
    'axes.grid': True,
    'axes.axisbelow': True,
    'grid.color': _GRID,
    'grid.linewidth': 0.6,
    'xtick.color': _INK,
    'ytick.color': _INK,
    'legend.frameon': False,
}


def curve_charts(curves: Mapping[str, Curves]) -> list[tuple[str, str]]:
    """Errors as in Figure 1 of the paper, training loss and learning rate over the epochs; ``(title, svg)``.

    Ends of mini-generations are marked by a dashed vertical line. A quantity that no log has is left out.
    """
    quantities = (
        ('test_error', 'Test error (marked) and training error (thin)', 'top-1 error (%)'),
        ('loss', 'Training loss', 'loss'),
        ('lr', 'Learning rate', 'learning rate'),
    )
    charts = []
    for key, title, label in quantities:
        series = {name: getattr(one, key) for name, one in curves.items()}
        if any(series.values()):
            marks = sorted({end for one in curves.values() for end in one.boundaries})
            thin = {name: one.train_error for name, one in curves.items()} if key == 'test_error' else {}
            if not any(thin.values()):
                title = title.removesuffix(' (marked) and training error (thin)')
            charts.append((title, _line_chart(f'curve-{key}', series, label, marks, thin)))
    return charts


def _line_chart(
    slug: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    label: str,
    marks: Sequence[int],
    thin: Mapping[str, Sequence[tuple[float, float]]],
) -> str:
    """One chart; with ``thin``, further lines of the same colours, the series themselves get markers."""
    with rc_context(_RC):
        figure = Figure(figsize=(5, 3.4), layout='constrained')
        axes = figure.subplots()
        for end in marks:
            axes.axvline(end, color=_INK, linewidth=1, linestyle=(0, (2, 3)))
        for index, (name, values) in enumerate(series.items()):
            if thin.get(name):
                x, y = zip(*_thinned(thin[name]), strict=True)
                axes.plot(x, y, color=_colour(index), linestyle=_style(index), linewidth=0.9)
            if not values:
                continue
            x, y = zip(*_thinned(values), strict=True)
            marker = {}
            if thin:
                marker = {'marker': _MARKERS[index % len(_MARKERS)], 'markersize': 4}
                marker['markevery'] = max(1, len(x) // 15)
            axes.plot(
                x, y, color=_colour(index), linestyle=_style(index), linewidth=1.8, label=name, **marker
            )
        axes.set_xlabel('epoch')
        axes.set_ylabel(label)
        axes.set_xlim(left=0)
        add_legend(figure, handlelength=2.6)
        return _svg(figure, slug)


def _thinned(values: Sequence[tuple[float, float]], most: int = 400) -> list[tuple[float, float]]:
    """At most ``most`` points, each the mean of its neighbours: a chart shows no more."""
    size = -(-len(values) // most)
    groups = [values[start : start + size] for start in range(0, len(values), size)]
    return [
        (sum(x for x, _ in group) / len(group), sum(y for _, y in group) / len(group)) for group in groups
    ]


def class_chart(slug: str, per_class: Mapping[str, Mapping[str, float]], label: str) -> str:
    """Horizontal bars of each class (fractions in, percent shown), one bar a backbone.

    Args:
        slug: start of the element ids; every chart of a page needs another.
        per_class: for each backbone's name the value of each class.
        label: what the bars measure.
    """
    classes = list(dict.fromkeys(name for values in per_class.values() for name in values))
    thickness = 0.8 / len(per_class)
    with rc_context(_RC | {'axes.grid.axis': 'x'}):
        figure = Figure(
            figsize=(5, 0.9 + len(classes) * (0.13 + 0.09 * len(per_class))), layout='constrained'
        )
        axes = figure.subplots()
        for index, (name, values) in enumerate(per_class.items()):
            at = [row + (index - (len(per_class) - 1) / 2) * thickness for row in range(len(classes))]
            widths = [100 * values.get(one, 0.0) for one in classes]
            # Those of a second round of colours are pale.
            alpha = None if index // len(_SERIES) % 2 == 0 else 0.45
            axes.barh(at, widths, height=0.9 * thickness, color=_colour(index), alpha=alpha, label=name)
        axes.set_yticks(range(len(classes)), classes)
        axes.set_ylim(len(classes) - 0.4, -0.6)
        axes.tick_params(axis='y', length=0)
        axes.set_xlabel(label)
        add_legend(figure, handlelength=1.2)
        return _svg(figure, slug)


def forest_chart(slug: str, rows: Sequence[tuple[str, float, float | None, float | None]]) -> str:
    """Differences to the baseline with their confidence intervals, one row each, and a line at no difference.

    Args:
        slug: start of the element ids.
        rows: label, difference, lower and upper end (fractions in, points shown); ``None`` where no interval
            is known: an open marker.
    """
    labels = [_wrapped(label) for label, *_ in rows]
    height = 0.08 + 0.2 * max((1 + label.count('\n') for label in labels), default=1)
    with rc_context(_RC | {'axes.grid.axis': 'x'}):
        figure = Figure(figsize=(7, 0.8 + height * len(rows)), layout='constrained')
        axes = figure.subplots()
        axes.axvline(0, color=_INK, linewidth=1)
        for row, (_, value, low, high) in enumerate(rows):
            if low is not None and high is not None:
                axes.plot([100 * low, 100 * high], [row, row], color=_colour(0), linewidth=2.4)
            face = 'none' if low is None else _colour(0)
            axes.plot(100 * value, row, 'o', color=_colour(0), markerfacecolor=face, markersize=7)
        axes.set_yticks(range(len(rows)), labels, multialignment='left')
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.tick_params(axis='y', length=0)
        axes.set_xlabel('difference (percentage points)')
        return _svg(figure, slug)


def recall_chart(slug: str, curves: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Precision over recall, a small chart for each class and a line for each backbone.

    Args:
        slug: start of the element ids.
        curves: for each backbone's name by class the precision at evenly spaced recalls, fractions.
    """
    classes = list(dict.fromkeys(name for some in curves.values() for name in some))
    columns = 4
    rows = -(-len(classes) // columns)
    with rc_context(_RC | {'font.size': 11}):
        figure = Figure(figsize=(9, 0.6 + 1.75 * rows), layout='constrained')
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(classes) :]:
            axes.set_visible(False)
        for axes, name in zip(grid.flat, classes, strict=False):
            axes.set_title(name, fontsize=11)
            for index, (backbone, some) in enumerate(curves.items()):
                if name in some:
                    recall = np.linspace(0, 100, len(some[name]))
                    label = backbone if axes is grid.flat[0] else None
                    axes.plot(
                        recall, 100 * some[name], color=_colour(index), linestyle=_style(index), label=label
                    )
            axes.set_xlim(0, 100)
            axes.set_ylim(0, 103)
        figure.supxlabel('recall (%)')
        figure.supylabel('precision (%)')
        add_legend(figure, handlelength=2.6)
        return _svg(figure, slug)


def confusion_chart(slug: str, counts: np.ndarray, names: Sequence[str]) -> str:
    """Shares of each true class (rows) by prediction (columns), the darker the larger.

    Args:
        slug: start of the element ids.
        counts: ``(C, C)``, truth in rows.
        names: of the classes.
    """
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    clear, full = to_rgba(_SERIES[0], 0.05), to_rgba(_SERIES[0], 1.0)
    with rc_context(_RC | {'axes.grid': False, 'font.size': 9}):
        figure = Figure(figsize=(5, 5), layout='constrained')
        axes = figure.subplots()
        axes.pcolormesh(
            np.ma.masked_less(shares, LEAST_SHARE),
            cmap=LinearSegmentedColormap.from_list('shares', [clear, full]),
            vmin=0,
            vmax=1,
        )
        places = np.arange(len(names)) + 0.5
        axes.set_xticks(places, names, rotation=90)
        axes.set_yticks(places, names)
        axes.tick_params(length=0)
        axes.set_aspect('equal')
        axes.invert_yaxis()
        axes.set_xlabel('prediction')
        axes.set_ylabel('truth')
        return _svg(figure, slug)


def _wrapped(label: str) -> str:
    """A label in lines of 40 letters at most, which leave a chart its room."""
    return '\n'.join(textwrap.wrap(label, 40))


def _colour(index: int) -> str:
    return _SERIES[index % len(_SERIES)]


def _style(index: int) -> object:
    """Style of a line: no two alike with their colours up to the 36th."""
    return _STYLES[(index + index // len(_SERIES)) % len(_STYLES)]


def add_legend(figure: Figure, handlelength: float, handles: Sequence[Artist] | None = None) -> None:
    """A legend above the charts, in as many columns as there is room for, and room for its rows.

    Args:
        figure: with constrained layout.
        handlelength: of its entries, in units of the font's size.
        handles: its entries; default: all that has a label.
    """
    if handles is None:
        handles = [one for axes in figure.axes for one in axes.get_legend_handles_labels()[0]]
    names = [_wrapped(str(one.get_label())) for one in handles]
    # In inches: a letter is about 0.6 of the font's size wide; room for the handle and between columns.
    letter = 0.6 * rcParams['font.size'] / 72
    lines = [line for name in names for line in name.split('\n')]
    column = letter * max(map(len, lines), default=1) + 0.9
    ncols = max(1, min(4, int(figure.get_figwidth() / column)))
    figure.set_figheight(figure.get_figheight() + 0.25 * (-(-len(lines) // ncols) - 1))
    figure.legend(handles, names, loc='outside upper left', ncols=ncols, handlelength=handlelength)


def _svg(figure: Figure, slug: str) -> str:
    """The figure as an ``<svg>`` element for HTML: no addresses, ids of its own, the page's colours."""
    figure.patch.set_alpha(0)
    for axes in figure.axes:
        axes.patch.set_alpha(0)
    buffer = io.StringIO()
    with rc_context({'svg.hashsalt': slug}):
        figure.savefig(
            buffer, format='svg', metadata={'Date': None, 'Creator': None, 'Format': None, 'Type': None}
        )
    text = buffer.getvalue()
    text = text[text.index('<svg') :]
    text = re.sub(r'<metadata>.*?</metadata>|<style.*?</style>', '', text, flags=re.S)
    text = re.sub(r' font-family: [^;\"]*;?', '', text)
    text = re.sub(r'\sxmlns(:\w+)?="[^"]*"', '', text)
    text = text.replace('xlink:href=', 'href=')
    text = re.sub(r'\bid="', f'id="{slug}-', text)
    text = re.sub(r'(url\(|href=")#', rf'\1#{slug}-', text)
    for colour, variable in _VARIABLES.items():
        text = text.replace(colour, variable)
    # Sizes come from the page; the view box keeps the shape.
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r'\1', text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r'\1', text, count=1)
    return text.replace('<svg', '<svg aria-hidden="true" focusable="false"', 1).strip()
