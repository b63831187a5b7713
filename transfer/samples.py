"""What the fine-tuned networks say about some test images, side by side with the truth."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from mmengine.config import Config
from mmengine.device import get_device
from PIL import Image

from sd_pretrain.cli import InputError
from transfer.draw import Detection, Legend, classes_in, draw_boxes, draw_mask
from transfer.image_lists import open_datasets
from transfer.image_scores import MIN_SCORE, NAMES, ImageDifference
from transfer.predictions import image_names, image_paths
from transfer.speed import prepare_model
from transfer.truth import boxes_of, mask_of, open_dataset

MAX_BOXES = 8
TRUTH = 'truth'
_Name = TypeVar('_Name')


@dataclass(frozen=True)
class Panel:
    """A drawn picture: whose it is (``'truth'`` or a backbone's name), and what it shows in words."""

    title: str
    image: Image.Image
    text: str


@dataclass(frozen=True)
class Sample:
    """One test image: its name, the truth and each backbone's prediction, and why it was chosen."""

    name: str
    panels: tuple[Panel, ...]
    note: str = ''


def detection_samples(
    runs: Mapping[str, str | Path], differences: Sequence[ImageDifference] = (), count: int = 4
) -> list[Sample]:
    """Draw the detections of several fine-tuned detectors on the same test images.

    Boxes with a score of at least 0.3 are drawn, at most 8 an image.

    Args:
        runs: for each backbone's name the work dir of a finished detection run.
        differences: the images, of :func:`transfer.image_scores.most_different`.
        count: without them, the number of images that are chosen by the truth alone.

    Raises:
        InputError: a work dir lacks its config, result or checkpoint.
    """
    tested = _Tested(runs, 'mmdet')
    names = tested.meta['classes']
    return tested.samples(
        'det',
        differences,
        count,
        truth=lambda dataset, index, _: boxes_of(dataset, index),
        classes=lambda boxes: {one.name for one in boxes},
        predict=_detect,
        draw=lambda image, boxes: draw_boxes(image, boxes, names),
        say=lambda boxes: ', '.join(map(str, boxes)) or 'no box',
    )


def segmentation_samples(
    runs: Mapping[str, str | Path], differences: Sequence[ImageDifference] = (), count: int = 4
) -> list[Sample]:
    """Draw the masks of several fine-tuned segmentors; see :func:`detection_samples`."""
    tested = _Tested(runs, 'mmseg')
    legend = Legend(tested.meta['classes'], tested.meta['palette'])

    def say(labels: np.ndarray) -> str:
        said = [f'{legend.names[k]} {np.mean(labels == k):.0%}' for k in classes_in(labels, legend)]
        return ', '.join(said) or 'background only'

    return tested.samples(
        'seg',
        differences,
        count,
        truth=mask_of,
        classes=lambda labels: classes_in(labels, legend),
        predict=_segment,
        draw=lambda image, labels: draw_mask(image, labels, legend),
        say=say,
    )


class _Tested:
    """The test images of several runs: datasets that list them, paths and names.

    Args:
        runs: for each backbone's name the work dir of a finished run.
        scope: ``'mmdet'`` or ``'mmseg'``.
    """

    def __init__(self, runs: Mapping[str, str | Path], scope: str):
        self.runs = {name: _run_files(Path(work_dir)) for name, work_dir in runs.items()}
        cfg, _ = next(iter(self.runs.values()))
        self.places, self.paths = [], []
        for one in open_datasets([cfg.test_dataloader.dataset]):
            dataset = open_dataset(one, scope)
            self.meta = dataset.metainfo
            self.places += [(dataset, index, one.get('pipeline') or []) for index in range(len(dataset))]
            self.paths += image_paths(dataset)
        self.names = image_names(self.paths)

    def samples(
        self,
        task: str,
        differences: Sequence[ImageDifference],
        count: int,
        *,
        truth: Callable[[Any, int, list[dict]], Any],
        classes: Callable[[Any], Collection],
        predict: Callable[[Config, Path, Sequence[Path]], Sequence[Any]],
        draw: Callable[[Image.Image, Any], Image.Image],
        say: Callable[[Any], str],
    ) -> list[Sample]:
        """The images that differ; without any, of ``count`` that the truth alone chooses.

        Args:
            task: ``'det'`` or ``'seg'``.
            differences: see :func:`detection_samples`.
            count: the same.
            truth: of an image, by its dataset, its place there and the pipeline.
            classes: that a truth or prediction shows.
            predict: of a config, a checkpoint and images.
            draw: a truth or prediction onto its image.
            say: what is drawn, in words.
        """
        at = {name: place for place, name in enumerate(self.names)}
        chosen = [at[one.image] for one in differences] or choose(
            range(len(self.names)), lambda place: len(classes(truth(*self.places[place]))), count
        )
        paths = [self.paths[place] for place in chosen]
        columns = {TRUTH: [truth(*self.places[place]) for place in chosen]}
        columns |= {name: predict(*files, paths) for name, files in self.runs.items()}
        notes = {
            one.image: f'{NAMES[task]}: '
            + ', '.join(f'{name} {score:.2f}' for name, score in one.scores.items())
            for one in differences
        }
        samples = []
        for index, place in enumerate(chosen):
            with Image.open(self.paths[place]) as image:
                image.load()
            panels = [
                Panel(title, draw(image, shown[index]), f'{title}: {say(shown[index])}')
                for title, shown in columns.items()
            ]
            name = self.names[place]
            samples.append(Sample(name, tuple(panels), notes.get(name, '')))
        return samples


def choose(names: Sequence[_Name], classes: Callable[[_Name], int], count: int) -> list[_Name]:
    """Pick ``count`` images spread over a list: of each equal part the first with two classes or more.

    The choice looks at the truth alone, so it favours no network.
    """
    count = min(count, len(names))
    chosen = []
    for part in range(count):
        members = names[part * len(names) // count : (part + 1) * len(names) // count]
        chosen.append(next((name for name in members if classes(name) > 1), members[0]))
    return chosen


def _run_files(work_dir: Path) -> tuple[Config, Path]:
    """Config dump and last checkpoint of a finished run."""
    try:
        result = json.loads((work_dir / 'result.json').read_text())
        config, checkpoint = work_dir / Path(result['config']).name, work_dir / result['checkpoint']
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f'{work_dir} is no finished fine-tuning ({error}); run tools/transfer.sh') from None
    for path in (config, checkpoint):
        if not path.is_file():
            raise InputError(f'{work_dir} lacks {path.name}')
    return Config.fromfile(config), checkpoint


def _detect(cfg: Config, checkpoint: Path, paths: Sequence[Path]) -> list[list[Detection]]:
    _prepare()
    from mmdet.apis import inference_detector, init_detector

    model = prepare_model(init_detector(cfg, str(checkpoint), device=get_device()))
    classes = model.dataset_meta['classes']
    found = []
    for result in inference_detector(model, [str(path) for path in paths]):
        predicted = result.pred_instances.cpu()
        rows = zip(
            predicted.labels.tolist(), predicted.bboxes.tolist(), predicted.scores.tolist(), strict=True
        )
        kept = [
            Detection(classes[label], tuple(box), score) for label, box, score in rows if score >= MIN_SCORE
        ]
        found.append(sorted(kept, key=lambda one: -one.score)[:MAX_BOXES])
    return found


def _segment(cfg: Config, checkpoint: Path, paths: Sequence[Path]) -> list[np.ndarray]:
    _prepare()
    from mmseg.apis import inference_model, init_model

    model = init_model(cfg, str(checkpoint), device=get_device())
    # One by one: whole images differ in size.
    return [inference_model(model, str(path)).pred_sem_seg.data[0].cpu().numpy() for path in paths]


def _prepare() -> None:
    from transfer import mmcv_ops

    mmcv_ops.install()
