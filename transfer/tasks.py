"""The tasks, their data sets and their metrics: each fact about them, for all that runs and shows them."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from sd_pretrain.cli import InputError
from transfer import check_data


@dataclass(frozen=True)
class Metric:
    """A metric on the test images, a fraction.

    Args:
        name: in ``result.json``.
        title: in tables, verdicts and cards.
        how: what the functions that compute it from stored predictions are told beside them.
        source: what mmdet's or mmseg's evaluation calls it, exact (:mod:`transfer.metrics`).
        seedless: whether a seed changes it with random weights alone.
    """

    name: str
    title: str
    how: tuple[str, ...] = ()
    source: str = ''
    seedless: bool = False


@dataclass(frozen=True)
class Task:
    """What all data sets of a task share.

    Args:
        word: the task in a sentence.
        unit: of the values of single classes.
        metrics: the first is the main one, the mean of ``per_class`` in ``result.json``.
        hugging_face: what Hugging Face calls the task.
        metric_type: what it calls the metrics.
        openmmlab: what OpenMMLab calls the task.
        module: what runs it.
        scope: ``default_scope`` of foreign configs (:mod:`transfer.foreign_config`); empty: there are none.
        evaluator: with which those are measured.
    """

    word: str
    unit: str
    metrics: tuple[Metric, ...]
    hugging_face: str
    metric_type: str
    openmmlab: str
    module: str = 'transfer.finetune'
    scope: str = ''
    evaluator: Any = None


@dataclass(frozen=True)
class Dataset:
    """A data set of a task.

    Args:
        task: a key of :data:`TASKS`.
        name: the data set.
        key: of its entries in ``table5.json``.
        config: for each network: ``r152``, or ``timm`` for what is no plain ResNet; empty for a user's own.
        demo_config: the small ones for the emoji world.
        pyramid_config: for all networks where one of them is no plain ResNet; without it each has its own.
        pyramid_demo_config: the small one.
        check: of one folder of it, with the names of its lists (:mod:`transfer.check_data`); of a user's own
            see :mod:`transfer.own_data`.
        heading: of its columns in the report.
        classes: title of its chart of classes.
        card: its name in model cards.
        prefix: of the titles of its metrics, whose names then end in ``_<name>``; empty for the task's first
            data set.
        images: folders that a foreign config must train on, and test on, to be one for it.
    """

    task: str
    name: str
    key: str
    config: str
    demo_config: str
    check: Callable[..., Any] | None
    heading: str
    classes: str
    card: str
    prefix: str = ''
    pyramid_config: str = ''
    pyramid_demo_config: str = ''
    images: tuple[tuple[str, ...], tuple[str, ...]] | None = None

    @property
    def own(self) -> bool:
        """Whether it is a user's own, for which there is no config here."""
        return not self.config

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Its metrics, the main one first."""
        of_task = TASKS[self.task].metrics
        if not self.prefix:
            return of_task
        return tuple(
            replace(one, name=f'{one.name}_{self.name}', title=f'{self.prefix} {one.title}')
            for one in of_task
        )


TASKS = {
    'det': Task(
        word='detection',
        unit='AP 11-point (%)',
        metrics=(
            Metric('mAP_11point', 'mAP 11-point', ('11points',), '11point/mAP'),
            Metric('mAP_area', 'mAP area', ('area',), 'area/mAP'),
        ),
        hugging_face='object-detection',
        metric_type='mAP',
        openmmlab='Object Detection',
        scope='mmdet',
        evaluator=[
            {'type': 'VOCMetric', 'metric': 'mAP', 'eval_mode': '11points', 'prefix': '11point'},
            {'type': 'VOCMetric', 'metric': 'mAP', 'eval_mode': 'area', 'prefix': 'area'},
        ],
    ),
    'seg': Task(
        word='segmentation',
        unit='IoU (%)',
        metrics=(Metric('mIoU', 'mIoU', source='mIoU_exact'),),
        hugging_face='image-segmentation',
        metric_type='mean_iou',
        openmmlab='Semantic Segmentation',
        scope='mmseg',
        evaluator={'type': 'IoUMetric', 'iou_metrics': ['mIoU']},
    ),
    'probe': Task(
        word='linear probe',
        unit='AP (%)',
        metrics=(
            Metric('mAP_linear', 'mAP linear', ('linear',), seedless=True),
            Metric('mAP_knn', 'mAP k-NN', ('knn',), seedless=True),
            Metric('mAP_low_shot', 'mAP low-shot', ('low_shot',)),
            # Of images that show one class each.
            Metric('top1_linear', 'top-1 linear', ('linear', 'top1'), seedless=True),
            Metric('top1_knn', 'top-1 k-NN', ('knn', 'top1'), seedless=True),
        ),
        hugging_face='image-classification',
        metric_type='mAP',
        openmmlab='Image Classification',
        module='transfer.probe',
    ),
}

_VOC07 = 'PASCAL VOC 2007'
# In the order of their columns.
DATASETS = {
    (one.task, one.name): one
    for one in (
        Dataset(
            task='det',
            name='voc07',
            key='det',
            config='configs/det/faster-rcnn_{network}-c4_8xb2_voc07.py',
            demo_config='configs/demo/faster-rcnn_r18-c4_demo-voc07.py',
            pyramid_config='configs/det/faster-rcnn_timm-fpn_8xb2_voc07.py',
            pyramid_demo_config='configs/demo/faster-rcnn_timm-fpn_demo-voc07.py',
            check=check_data.check_detection,
            heading='Detection, VOC2007',
            classes='Detection: AP of each class',
            card=_VOC07,
            images=(('VOC2007',), ('VOC2007',)),
        ),
        # Trained on more images it is another experiment, with columns of its own.
        Dataset(
            task='det',
            name='voc0712',
            key='det0712',
            config='configs/det/faster-rcnn_{network}-c4_8xb2_voc0712.py',
            demo_config='configs/demo/faster-rcnn_r18-c4_demo-voc0712.py',
            pyramid_config='configs/det/faster-rcnn_timm-fpn_8xb2_voc0712.py',
            pyramid_demo_config='configs/demo/faster-rcnn_timm-fpn_demo-voc0712.py',
            check=check_data.check_detection,
            heading='Detection, VOC2007 after VOC07+12',
            classes='Detection after VOC07+12: AP of each class',
            card=f'{_VOC07} (trained on 2007 and 2012)',
            prefix='07+12',
            images=(('VOC2007', 'VOC2012'), ('VOC2007',)),
        ),
        Dataset(
            task='seg',
            name='voc12',
            key='seg',
            config='configs/seg/deeplabv3_{network}-d16-syncbn_8xb1_voc12aug.py',
            demo_config='configs/demo/deeplabv3_r18-d16_demo-voc12.py',
            pyramid_config='configs/seg/fpn_timm_8xb1_voc12aug.py',
            pyramid_demo_config='configs/demo/fpn_timm_demo-voc12.py',
            check=check_data.check_segmentation,
            heading='Segmentation, VOC2012',
            classes='Segmentation: IoU of each class',
            card='PASCAL VOC 2012',
            images=(('VOC2012',), ('VOC2012',)),
        ),
        Dataset(
            task='probe',
            name='voc07',
            key='probe',
            config='configs/probe/svm-knn_{network}-frozen_voc07.py',
            demo_config='configs/demo/svm-knn_{network}-frozen_demo-voc07.py',
            check=check_data.check_detection,
            heading='Probes of frozen features, VOC2007',
            classes='Linear probe: AP of each class',
            card=_VOC07,
        ),
    )
}
# The paper's.
TABLE5 = (('det', 'voc07'), ('seg', 'voc12'))


# Those of users' own that were met.
_OWN: dict[tuple[str, str], Dataset] = {}
# What can name a folder.
NAME = re.compile(r'[A-Za-z0-9][A-Za-z0-9._+-]*')


def all_datasets() -> dict[tuple[str, str], Dataset]:
    """By task and name the data sets here, and those of users' own that were met, by task and name."""
    order = list(TASKS)
    return {**DATASETS, **dict(sorted(_OWN.items(), key=lambda one: (order.index(one[0][0]), one[0][1])))}


def dataset_of(task: str, name: str) -> Dataset:
    """The entry of a data set; where there is none it is a user's own.

    Raises:
        InputError: the name cannot name a folder.
    """
    if (task, name) not in all_datasets():
        if not NAME.fullmatch(str(name)):
            raise InputError(f'{name!r} cannot name a folder: use letters, digits and . _ + -')
        word = TASKS[task].word.capitalize()
        _OWN[task, name] = Dataset(
            task=task,
            name=name,
            key=f'{task}_{name}',
            config='',
            demo_config='',
            check=None,
            heading=f'{word}, {name}',
            classes=f'{word}, {name}: {TASKS[task].unit.split()[0]} of each class',
            card=name,
            prefix=name,
        )
    return all_datasets()[task, name]


def all_metrics() -> dict[str, Metric]:
    """The metrics of all data sets by name, in the order of their columns."""
    return {one.name: one for dataset in all_datasets().values() for one in dataset.metrics}


def detailed(task: str, names: Collection[str]) -> Dataset | None:
    """The first of ``names``: the data set of a task that a report looks at class by class and in samples."""
    return next((one for one in all_datasets().values() if one.task == task and one.name in names), None)
