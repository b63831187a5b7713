"""``report.html``: one self-contained page with the table, the curves, the samples and what was run."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from sd_pretrain.curves import Curves, has_log, read_curves
from sd_pretrain.work_dir import whole
from transfer import table
from transfer.charts import (
    LEAST_SHARE,
    class_chart,
    confusion_chart,
    curve_charts,
    forest_chart,
    recall_chart,
)
from transfer.confusion import most_confused
from transfer.samples import Sample
from transfer.table5_json import backbone_files, table5_rows, validate_table5
from transfer.tasks import TASKS, all_datasets, all_metrics, detailed

if TYPE_CHECKING:
    from transfer.transfer_report import Confusion

# Base64 makes a third more of them; with charts and text the page stays under 5 MB.
_IMAGE_BYTES = 3_200_000
_QUALITIES = (88, 75, 60, 45, 30)


def write_report(
    table5: Mapping[str, Any],
    out: str | Path,
    *,
    curves: Mapping[str, str | Path] | None = None,
    samples: Mapping[str, Sequence[Sample] | str] | None = None,
    recall: Mapping[str, Mapping[str, np.ndarray]] | None = None,
    confusions: Sequence[Confusion] = (),
    costs: Sequence[Mapping[str, Any]] = (),
    provenance: Mapping[str, Any] | None = None,
) -> Path:
    """Write the report; the file appears when it is complete.

    Args:
        table5: content of ``table5.json``.
        out: the file to write.
        curves: for each backbone's name its pretraining work dir, where there is one; left out where it has
            no log of scalars.
        samples: ``'det'`` and ``'seg'``, from :mod:`transfer.samples`, or a sentence on why there are none.
        recall: for each backbone's name by class the precision at evenly spaced recalls.
        confusions: from :func:`transfer.transfer_report.confusions`.
        costs: from :func:`transfer.transfer_report.costs`.
        provenance: what was run (:func:`transfer.provenance.collect_provenance`); strings, numbers, lists and
            dictionaries of them.

    Returns:
        ``out``.

    Raises:
        InputError: ``table5`` is not valid.
    """
    validate_table5(table5)
    read = {name: read_curves(work_dir) for name, work_dir in (curves or {}).items() if has_log(work_dir)}
    rows = table5_rows(table5)
    headings = _headings(table5)
    # Beside demo numbers the paper's stand for reference, and the page says so.
    beside_paper = table5.get('papers_setting', False) or (
        table5['data'] == 'demo' and any(metric in table.PAPER['BL'] for row in rows for metric in row.values)
    )
    page = (
        _environment()
        .get_template('report.html.j2')
        .render(
            demo=table5['data'] == 'demo',
            rows=rows,
            verdicts=[one['text'] for one in table5.get('comparisons', ())],
            forest=_forest(table5.get('comparisons', ())),
            resolved_classes=resolved_classes(table5.get('class_comparisons', ())),
            groups=_groups(rows),
            accuracies=table.ACCURACIES,
            metrics=all_metrics(),
            paper=table.paper_rows() if beside_paper else [],
            notes=table.notes(rows, paper=beside_paper),
            seeds=sorted({seed for row in rows for runs in row.values.values() for seed in runs}),
            charts=_curve_figures([row.name for row in rows], read),
            generations=any(one.boundaries for one in read.values()),
            classes=_class_figures(table5),
            headings=headings,
            recall=Markup(recall_chart('recall', recall)) if recall else None,
            samples=_sample_figures(samples or {}),
            no_samples={task: some for task, some in (samples or {}).items() if isinstance(some, str)},
            confusions=_confusion_figures(confusions, headings),
            costs=costs,
            backbones=backbone_files(table5),
            stages=table5['stages'],
            seconds=table5['seconds'],
            provenance=dict(provenance or {}),
        )
    )
    with whole(out) as part:
        part.write_text(page, encoding='utf-8')
    return Path(out)


def _environment() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        'percent': table.percent,
        'signed': table.signed,
        'duration': duration,
        'plain': lambda value: value if isinstance(value, str) else json.dumps(value, ensure_ascii=False),
    }
    return environment


def duration(seconds: float) -> str:
    """Seconds in words of at most two units: ``'42 s'``, ``'3 min 05 s'``, ``'2 h 10 min'``."""
    whole = round(seconds)
    if whole < 60:
        return f'{whole} s'
    if whole < 3600:
        return f'{whole // 60} min {whole % 60:02d} s'
    return f'{whole // 3600} h {whole % 3600 // 60:02d} min'


def _groups(rows: Sequence[table.Row]) -> list[tuple[str, dict[str, str]]]:
    """Data sets, and the titles of their metrics below it, as far as there are results."""
    found = []
    for one in all_datasets().values():
        pairs = zip(one.metrics, TASKS[one.task].metrics, strict=True)
        titles = {m.name: of.title for m, of in pairs if any(row.values.get(m.name) for row in rows)}
        if titles:
            found.append((one.heading, titles))
    return found


def _curve_figures(names: Sequence[str], read: Mapping[str, Curves]) -> list[dict[str, Any]]:
    """Charts with what they show in words; every backbone keeps its colour whether it has curves or not."""
    every = {name: read.get(name, Curves()) for name in dict.fromkeys([*names, *read])}
    last = '; '.join(
        f'{name}: loss {one.loss[-1][1]:.3f}'
        + (f', test error {one.test_error[-1][1]:.2f}%' if one.top1 else '')
        + (f', training error {one.train_error[-1][1]:.2f}%' if one.train_top1 else '')
        for name, one in every.items()
        if one.loss
    )
    return [
        {'title': title, 'svg': Markup(svg), 'text': f'{title} over epochs. At the end {last}.'}
        for title, svg in curve_charts(every)
    ]


def _forest(comparisons: Sequence[Mapping[str, Any]]) -> Markup | None:
    metrics = all_metrics()
    rows = [
        (f'{one["name"]}, {metrics[one["metric"]].title}', one['difference'], one['low'], one['high'])
        for one in comparisons
    ]
    return Markup(forest_chart('forest', rows)) if rows else None


def resolved_classes(comparisons: Sequence[Mapping[str, Any]]) -> list[str]:
    """In words, for each task and backbone, the classes in which it differs, at 5% over all classes.

    Args:
        comparisons: ``class_comparisons`` of ``table5.json``.
    """
    said = []
    for key in dict.fromkeys((one['task'], one['name']) for one in comparisons):
        mine = [one for one in comparisons if (one['task'], one['name']) == key]
        better, worse = (
            [
                f'{one["class"]} ({100 * one["difference"]:+.1f})'
                for one in sorted(mine, key=lambda one: -abs(one['difference']))
                if one['p_holm'] < 0.05 and one['difference'] * sign > 0
            ]
            for sign in (1, -1)
        )
        parts = [
            f'{word} in {", ".join(some)}' for word, some in (('better', better), ('worse', worse)) if some
        ]
        found = '; '.join(parts) or f'no single class of {len(mine)} is resolved'
        said.append(f'{key[1]}, {TASKS[key[0]].word}: {found}')
    return said


def _class_figures(table5: Mapping[str, Any]) -> list[dict[str, Any]]:
    figures = []
    for dataset in all_datasets().values():
        key, unit = dataset.key, TASKS[dataset.task].unit
        per_class = {
            one['name']: one[key]['per_class']
            for one in table5['backbones']
            if (one.get(key) or {}).get('per_class')
        }
        if per_class:
            figures.append(
                {
                    'title': dataset.classes,
                    'svg': Markup(class_chart(f'classes-{key}', per_class, unit)),
                    'names': list(per_class),
                    'classes': {
                        name: [values.get(name) for values in per_class.values()]
                        for name in dict.fromkeys(name for values in per_class.values() for name in values)
                    },
                    'unit': unit,
                }
            )
    return figures


def _headings(table5: Mapping[str, Any]) -> dict[str, str]:
    """By task what its precision, confusion and samples are of: they are shown for one data set."""
    headings = {}
    for task in TASKS:
        names = [
            name
            for (of, name), dataset in all_datasets().items()
            if of == task and any(one.get(dataset.key) for one in table5['backbones'])
        ]
        dataset = detailed(task, names)
        headings[task] = dataset.heading if dataset else TASKS[task].word.capitalize()
    return headings


def _confusion_figures(confusions: Sequence[Confusion], headings: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            'title': f'{one.name}: {headings[one.task]}',
            'svg': Markup(confusion_chart(f'confusion-{index}', one.counts, one.classes)),
            'text': _most_often(most_confused(one.counts, one.classes)),
        }
        for index, one in enumerate(confusions)
    ]


def _most_often(confused: Sequence[tuple[str, str, float]]) -> str:
    # As the chart, which leaves smaller shares out.
    said = [f'{truth} as {said} {share:.0%}' for truth, said, share in confused if share >= LEAST_SHARE]
    return f'; most often {"; ".join(said)}' if said else ''


def _sample_figures(samples: Mapping[str, Sequence[Sample] | str]) -> dict[str, list[dict[str, Any]]]:
    """Samples with their pictures as data URLs, of the best quality that keeps the page small enough."""
    samples = {task: some for task, some in samples.items() if not isinstance(some, str)}
    panels = [panel for some in samples.values() for sample in some for panel in sample.panels]
    encoded: list[bytes] = []
    for quality in _QUALITIES:
        encoded = [_jpeg(panel.image, quality) for panel in panels]
        if sum(map(len, encoded)) <= _IMAGE_BYTES:
            break
    urls = iter(f'data:image/jpeg;base64,{base64.b64encode(one).decode()}' for one in encoded)
    return {
        task: [
            {
                'name': sample.name,
                'note': sample.note,
                'panels': [
                    {
                        'title': panel.title,
                        'text': panel.text,
                        'url': next(urls),
                        'width': panel.image.width,
                        'height': panel.image.height,
                    }
                    for panel in sample.panels
                ],
            }
            for sample in some
        ]
        for task, some in samples.items()
        if some
    }


def _jpeg(image: Image.Image, quality: int) -> bytes:
    buffer = io.BytesIO()
    image.convert('RGB').save(buffer, 'JPEG', quality=quality, optimize=True)
    return buffer.getvalue()
