"""Configs of mmdet and mmseg that were not written for this project: their task and how they are measured."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mmengine.config import Config

from sd_pretrain.cli import InputError
from transfer.image_lists import data_folder, inner, open_datasets, with_inner
from transfer.tasks import DATASETS, TASKS, dataset_of
from transfer.voc import CLASSES

_NEEDED = (
    *('model', 'optim_wrapper', 'train_cfg', 'train_dataloader'),
    *('val_cfg', 'val_dataloader', 'val_evaluator'),
)
# What trains for longer or at other rates as the metrics of a validation say.
_STEERING = ('EarlyStopping', 'ReduceOnPlateau')
# What draws images by their classes, and the datasets that have no ``get_cat_ids`` for it.
_BY_CLASSES = ('ClassBalancedDataset', 'ClassAwareSampler')
_WITHOUT_CLASSES = ('RepeatDataset', 'ConcatDataset', 'MultiImageMixDataset', 'PascalVOCDataset')


def adopt(cfg: Config, processes: int = 1) -> None:
    """Give a stock detector's or segmentor's config (changed in place) a task, a dataset and our metrics.

    Model, schedule and data stay as they are: a batch is that of one process, and all of them together are
    noted, so that a run on another number of GPUs is another run. Configs of this project name their task and
    are left alone. One for data of the user's own says ``dataset``, what that is called.

    Args:
        cfg: the config.
        processes: how many train.

    Raises:
        InputError: it is for another library, other data or another metric.
    """
    if 'task' in cfg:
        return
    name = Path(cfg.filename).name
    scopes = {one.scope: task for task, one in TASKS.items() if one.scope}
    task = scopes.get(cfg.get('default_scope'))
    if task is None:
        raise InputError(
            f'{name} is no config of a transfer task: it names none, and its default_scope is '
            f'{cfg.get("default_scope")!r}, not {" or ".join(map(repr, scopes))}'
        )
    missing = [one for one in _NEEDED if not cfg.get(one)]
    if missing:
        raise InputError(f'{name} lacks {", ".join(missing)}: it cannot be trained and evaluated')
    init = cfg.model.get('init_cfg')
    for what, whole in (
        ('load_from', cfg.get('load_from')),
        ('model.init_cfg', init.get('checkpoint') if isinstance(init, dict) else None),
    ):
        if whole:
            raise InputError(
                f'{name} loads the whole model from {whole}, the backbone with it: set {what}=None'
            )
    dataset = cfg.get('dataset')
    own = isinstance(dataset, str) and dataset_of(task, dataset).own
    if not own:
        dataset = _voc(cfg, task)
    _check_images(cfg)
    _check_data(cfg)
    check_test_pipeline(cfg)
    _check_hooks(cfg, task)
    if task == 'det':
        _check_no_masks(cfg)
        if not own:
            check_heads(cfg, _voc_classes(cfg))
    cfg.merge_from_dict({'task': task, 'dataset': dataset})
    cfg.total_batch_size = processes * cfg.train_dataloader.batch_size
    cfg.default_hooks = cfg.get('default_hooks') or {}
    # mmseg's older way to say init_cfg, which would stand against the backbone's.
    if 'pretrained' in cfg.model:
        cfg.model.pretrained = None
    cfg.val_evaluator = cfg.test_evaluator = TASKS[task].evaluator
    # Of each image it is known by its place what was predicted, of all of them.
    cfg.val_dataloader.sampler = {'type': 'DefaultSampler', 'shuffle': False}
    if cfg.val_dataloader.get('drop_last'):
        cfg.val_dataloader.drop_last = False
    # What is measured is what pictures are drawn of; and a config may have no test at all.
    cfg.test_dataloader, cfg.test_cfg = cfg.val_dataloader, {'type': 'TestLoop'}


def _check_images(cfg: Config) -> None:
    """Refuse images in BGR, and such as nothing normalises."""
    name, images = Path(cfg.filename).name, cfg.model.get('data_preprocessor') or {}
    steps = [
        step
        for one in open_datasets([cfg.train_dataloader.dataset])
        for step in one.get('pipeline') or []
        if 'Normalize' in str(step.get('type'))
    ]
    if images.get('mean'):
        rgb, where = images.get('bgr_to_rgb'), 'model.data_preprocessor.bgr_to_rgb=True'
    elif steps:
        rgb, where = steps[0].get('to_rgb', True), 'to_rgb=True in its Normalize'
    elif 'TimmPyramid' in str(cfg.model.backbone.get('type')):
        return  # brings the values of its pretraining
    else:
        raise InputError(
            f"{name} does not normalise its images, and the checkpoint's network knows them so: set mean, "
            'std and bgr_to_rgb=True of model.data_preprocessor, as the configs here do'
        )
    if not rgb:
        raise InputError(
            f"{name} leaves images in BGR, and the checkpoint's network knows RGB: set {where}, and the mean "
            'and std that go with it'
        )


def _check_data(cfg: Config) -> None:
    """Refuse several views of a test image, and draws by classes from datasets that cannot say them."""
    name = Path(cfg.filename).name
    tested = open_datasets([cfg.val_dataloader.dataset])
    steps = [str(step.get('type')) for one in tested for step in one.get('pipeline') or []]
    if any('TestTimeAug' in step for step in steps):
        raise InputError(
            f'{name} tests with TestTimeAug, and networks are measured on one view of an image: take it '
            'out of val_dataloader.dataset.pipeline'
        )
    loader = cfg.train_dataloader
    drawing = [(loader.get('sampler') or {}, loader.dataset)]
    drawing += [(one, part) for one in with_inner([loader.dataset]) for part in inner(one)]
    for one, dataset in drawing:
        by, of = str(one.get('type')), str(dataset.get('type'))
        if any(word in by for word in _BY_CLASSES) and of.endswith(_WITHOUT_CLASSES):
            raise InputError(
                f'{name} has a {by} of a {of}, which cannot say the classes of an image: have it of one of '
                "mmdet's VOCDataset, or take it out"
            )


def check_test_pipeline(cfg: Config) -> None:
    """Refuse test images that come with no truth, or with one that is resized as they are.

    Raises:
        InputError: there are such; predictions are compared with the truth in the size that images have.
    """
    name = Path(cfg.filename).name
    for one in open_datasets([cfg.val_dataloader.dataset]):
        steps = [str(step.get('type')) for step in one.get('pipeline') or []]
        loading = [place for place, step in enumerate(steps) if 'LoadAnnotations' in step]
        if not loading:
            raise InputError(
                f'{name} tests without the truth: val_dataloader.dataset.pipeline lacks LoadAnnotations'
            )
        resized = [step for step in steps[loading[0] :] if 'Resize' in step]
        if resized:
            raise InputError(
                f'{name} resizes the truth of test images: LoadAnnotations comes after {resized[0]} in '
                'val_dataloader.dataset.pipeline'
            )


def _check_hooks(cfg: Config, task: str) -> None:
    """Refuse what watches a metric that is not measured, or has the test images steer the training."""
    name = Path(cfg.filename).name
    best = ((cfg.get('default_hooks') or {}).get('checkpoint') or {}).get('save_best')
    known = ['auto', *(metric.source.removesuffix('_exact') for metric in TASKS[task].metrics)]
    wrong = [one for one in (best if isinstance(best, list) else [best]) if one and one not in known]
    if wrong:
        raise InputError(
            f'{name} saves the best network by {wrong[0]}, which is not measured: set '
            f'default_hooks.checkpoint.save_best to one of {", ".join(known)}, or to None'
        )
    for key in ('default_hooks', 'custom_hooks', 'param_scheduler'):
        parts = cfg.get(key) or []
        if isinstance(parts, dict):
            parts = [parts, *parts.values()]
        types = [str(one.get('type')) for one in parts if isinstance(one, dict)]
        steering = [one for one in types if any(word in one for word in _STEERING)]
        if steering:
            raise InputError(
                f'{name} has {steering[0]}, which trains as the test images want it, and they are to judge: '
                f'take it out of {key}'
            )


def _check_no_masks(cfg: Config) -> None:
    """Refuse a detector of masks: what is measured are boxes."""
    name = Path(cfg.filename).name
    for place, part in (('model', cfg.model), ('model.roi_head', cfg.model.get('roi_head') or {})):
        masks = [key for key in ('mask_head', 'panoptic_head', 'semantic_head') if part.get(key)]
        if masks:
            raise InputError(
                f'{name} has a {place}.{masks[0]}, which learns masks, and boxes alone are measured: '
                'set it to None where the detector does without'
            )


def check_heads(cfg: Config, classes: int) -> None:
    """Refuse heads of another number of classes than the data's.

    Raises:
        InputError: there is such a head; names it.
    """
    places = {'model': cfg.model, 'model.roi_head': cfg.model.get('roi_head') or {}}
    for place, part in places.items():
        for key in ('bbox_head', 'decode_head', 'auxiliary_head'):
            heads = part.get(key) or []
            for head in heads if isinstance(heads, list | tuple) else [heads]:
                found = head.get('num_classes', classes)
                if found != classes:
                    raise InputError(
                        f'{Path(cfg.filename).name} has {found} classes, and the data has {classes}: set '
                        f'{place}.{key}.num_classes={classes}'
                    )


def _voc(cfg: Config, task: str) -> str:
    """Which of the data sets here a config is for.

    Raises:
        InputError: none of them, or it measures otherwise.
    """
    name = Path(cfg.filename).name
    trained, tested = (_years([cfg[part].dataset]) for part in ('train_dataloader', 'val_dataloader'))
    known = {(one.task, one.images): one.name for one in DATASETS.values() if one.images}
    dataset = known.get((task, (trained, tested)))
    if dataset is None:
        there = ', '.join(f'{task} {dataset}' for (task, _), dataset in known.items())
        raise InputError(
            f'{name} trains on {" and ".join(trained) or "no VOC data"} and tests on '
            f'{" and ".join(tested) or "no VOC data"}: there are {there}; a config for data of your own says '
            "what that is called: dataset = 'NAME'"
        )
    types, (needed, *_) = _types(cfg.val_evaluator), _types(TASKS[task].evaluator)
    if needed not in types:
        raise InputError(f'{name} measures with {", ".join(map(str, types))}: {needed} is needed')
    return dataset


def _voc_classes(cfg: Config) -> int:
    """How many classes the boxes are of: VOC's, or those that the config names."""
    classes = (open_datasets([cfg.val_dataloader.dataset])[0].get('metainfo') or {}).get('classes')
    return len(classes) if isinstance(classes, list | tuple) else len(CLASSES)


def _years(datasets: Iterable[dict]) -> tuple[str, ...]:
    return tuple(sorted({data_folder(one).name for one in open_datasets(datasets) if one.get('ann_file')}))


def _types(evaluator: Any) -> list[str | None]:
    return [one and one.get('type') for one in (evaluator if isinstance(evaluator, list) else [evaluator])]
