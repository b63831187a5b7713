"""What the report shows of the runs themselves, and the report of a transfer work dir."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sd_pretrain.cli import InputError
from sd_pretrain.work_dir import read_json, write_json
from transfer import samples
from transfer.confusion import load_confusion
from transfer.image_scores import most_different, precision_recall
from transfer.predictions import load_predictions
from transfer.provenance import collect_provenance
from transfer.report import write_report
from transfer.results import NOTED, on_demo_data
from transfer.table5_json import build_table5
from transfer.tasks import detailed


@dataclass(frozen=True)
class Confusion:
    """Which classes a backbone takes for which: ``counts[truth, prediction]``."""

    task: str
    name: str
    counts: np.ndarray
    classes: list[str]


_DRAWN = {'det': samples.detection_samples, 'seg': samples.segmentation_samples}


def note_transfer(
    work_dir: Path,
    results: Sequence[Mapping[str, Any]],
    commands: Sequence[str],
    curves: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Compare the results of a transfer work dir, and write ``transfer.json``.

    Args:
        work_dir: of ``tools/transfer.sh``.
        results: its results, the baseline's first (:func:`transfer.results.collect`).
        commands: what was typed to get them; those of earlier calls stay before it.
        curves: for each backbone's name its pretraining work dir, where there is one; those of earlier calls
            stay, too.

    Returns:
        The content of ``transfer.json``: of the form of ``table5.json``, with ``commands`` and ``curves``.

    Raises:
        InputError: see :func:`transfer.table5_json.build_table5`.
    """
    demo = all(map(on_demo_data, results))
    before = read_json(work_dir / NOTED, 'delete it, the report is made anew', missing={})
    commands = list(dict.fromkeys([*before.get('commands', []), *commands]))
    now = {name: str(folder) for name, folder in (curves or {}).items()}
    earlier = {name: one for name, one in before.get('curves', {}).items() if one not in now.values()}
    curves = {name: folder for name, folder in (earlier | now).items() if Path(folder).is_dir()}
    content = build_table5(results, data='demo' if demo else 'real', stages=[])
    content |= {'commands': commands, 'curves': curves}
    write_json(work_dir / NOTED, content)
    return content


def report_transfer(work_dir: Path, results: Sequence[Mapping[str, Any]], content: Mapping[str, Any]) -> None:
    """Draw the samples of a transfer work dir, and write its ``report.html``.

    Args:
        work_dir: of ``tools/transfer.sh``.
        results: its results, the baseline's first.
        content: of its ``transfer.json`` (:func:`note_transfer`).
    """
    with quiet(work_dir / 'samples.log'):
        drawn = draw_samples(results)
    report_runs(work_dir, results, content, content['curves'], drawn, content['commands'])


def report_runs(
    work_dir: Path,
    results: Sequence[Mapping[str, Any]],
    content: Mapping[str, Any],
    curves: Mapping[str, str | Path],
    drawn: Mapping[str, list[samples.Sample] | str],
    commands: Sequence[str],
) -> None:
    """Write ``report.html`` with all that the runs have stored.

    Args:
        work_dir: where to.
        results: the fine-tunings, the baseline's first.
        content: of the form of ``table5.json``.
        curves: for each backbone's name its pretraining work dir, where there is one.
        drawn: of :func:`draw_samples`.
        commands: what was typed.
    """
    write_report(
        content,
        work_dir / 'report.html',
        curves=curves,
        samples=drawn,
        recall=recall_curves(results),
        confusions=confusions(results),
        costs=costs(results),
        provenance=collect_provenance(commands) | {'runs': configs_of(results)},
    )


def draw_samples(results: Sequence[Mapping[str, Any]]) -> dict[str, list[samples.Sample] | str]:
    """Draw for each task the test images on which the backbones differ most.

    The first dataset of a task is drawn, with the networks of each backbone's first seed. Where that
    cannot be done, as without the images or with a full GPU, there is a sentence that says why.
    """
    drawn: dict[str, list[samples.Sample] | str] = {}
    for task, draw in _DRAWN.items():
        mine = _first_dataset(results, task)
        if mine:
            firsts = {one['name']: Path(one['work_dir']) for one in reversed(mine)}
            order = dict.fromkeys(one['name'] for one in mine)
            try:
                drawn[task] = draw({name: firsts[name] for name in order}, most_different(mine))
            except (InputError, OSError, RuntimeError) as error:
                drawn[task] = f'There are no pictures: {" ".join(str(error).split())}.'
    return drawn


def recall_curves(results: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, np.ndarray]]:
    """By backbone and class the precision at evenly spaced recalls, the mean over the seeds (detection)."""
    found: dict[str, dict[str, list[np.ndarray]]] = {}
    for one in _first_dataset(results, 'det'):
        stored = load_predictions(one['work_dir'], 'det')
        if stored is None:
            return {}
        # A config may have other classes than VOC's twenty, or another order; those with a box are named.
        labels = np.flatnonzero(stored[0].boxes.sum(0))
        for name, label in zip(one['per_class'], labels, strict=True):
            curve = precision_recall(stored[0], label)
            found.setdefault(one['name'], {}).setdefault(name, []).append(curve)
    return {
        name: {label: np.mean(some, axis=0) for label, some in by_class.items()}
        for name, by_class in found.items()
    }


def confusions(results: Sequence[Mapping[str, Any]]) -> list[Confusion]:
    """The counts of each task and backbone, all seeds together, as far as the runs have stored them."""
    found: dict[tuple[str, str], Confusion] = {}
    for task in _DRAWN:
        for one in _first_dataset(results, task):
            stored = load_confusion(one['work_dir'])
            if stored is not None:
                counts, names = stored
                key = (task, one['name'])
                before = found[key].counts if key in found else 0
                found[key] = Confusion(task, one['name'], before + counts, names)
    return list(found.values())


def costs(results: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """By backbone, task and dataset: number of runs, seconds in all, GPU hours, and the highest peak memory.

    GPU hours are 0 where no GPU was used, and unknown, like the memory (MiB, of one GPU), where a run has not
    said.
    """
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in results:
        groups.setdefault((one['name'], f'{one["task"]} {one.get("dataset", "")}'.strip()), []).append(one)
    found = []
    for (name, task), runs in groups.items():
        gpus = [one.get('gpus') for one in runs]
        seconds = [one.get('seconds') or 0.0 for one in runs]
        hours = (
            None
            if None in gpus
            else sum(gpu * second for gpu, second in zip(gpus, seconds, strict=True)) / 3600
        )
        memory = [one['memory_mib'] for one in runs if one.get('memory_mib')]
        found.append(
            {
                'name': name,
                'task': task,
                'runs': len(runs),
                'seconds': sum(seconds),
                'gpu_hours': hours,
                'memory_mib': max(memory, default=None),
            }
        )
    return found


def configs_of(results: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """For each backbone, task and dataset the config, its hash and that of the image lists, and the seeds."""
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for one in results:
        groups.setdefault(f'{one["name"]}, {one["task"]} {one.get("dataset", "")}'.strip(), []).append(one)
    return {
        name: f'{runs[0].get("config")}, config sha256 {str(runs[0].get("config_sha256"))[:16]}, image lists '
        f'{str(runs[0].get("lists_sha256"))[:16]}, seeds {", ".join(str(one["seed"]) for one in runs)}'
        for name, runs in groups.items()
    }


@contextmanager
def quiet(log: Path) -> Iterator[None]:
    """Send what the libraries print while they load and predict to a file."""
    print(f'draw samples (log: {log})', flush=True)
    with log.open('w') as file, redirect_stdout(file), redirect_stderr(file):
        yield


def _first_dataset(results: Sequence[Mapping[str, Any]], task: str) -> list[Mapping[str, Any]]:
    mine = [one for one in results if one['task'] == task]
    dataset = detailed(task, {one.get('dataset') for one in mine})
    return [one for one in mine if dataset is None or one.get('dataset') == dataset.name]
