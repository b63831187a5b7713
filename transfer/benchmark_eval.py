"""Evaluation and fine-tuning side by side with stock mmdet and mmseg, for ``tools/benchmark.py eval``."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from sd_pretrain.benchmark import Section, interleaved, ratio, spread
from transfer.tasks import DATASETS, TABLE5

_ROOT = Path(__file__).resolve().parents[1]
_EVALUATED = 16
# Makes about as many of the 32 training images of the emoji world as VOC2007 has, 5,011.
_REPEATED = 160
_TITLES = {'det': 'detection (Faster R-CNN)', 'seg': 'segmentation (DeepLabv3)'}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of this part."""
    parser.add_argument('--task', choices=tuple(_TITLES), help='the tables of one task (default: of both)')
    parser.add_argument(
        '--depth',
        type=int,
        choices=(18, 34, 50, 101, 152),
        help='of the fine-tuned ResNets, in the full-size configs (default: 101 on a GPU, the demo on a CPU)',
    )
    parser.add_argument(
        '--step-batch', type=int, help='images of a fine-tuning step (default: the whole batch of the recipe)'
    )


def measure(args: argparse.Namespace) -> Iterator[Section]:
    """Yield the tables: metrics, then training and evaluation, of the task asked for or of both."""
    from transfer import mmcv_ops

    mmcv_ops.install()
    tasks = [task for task, _ in TABLE5 if args.task in (task, None)]
    for task in tasks:
        yield _METRICS[task](args)
    depth = args.depth or (101 if args.device == 'cuda' else None)
    with tempfile.TemporaryDirectory() as folder:
        data = _data(args, Path(folder), depth)
        for task in tasks:
            yield from _task_sections(args, task, depth, data, Path(folder))


def _map_section(args: argparse.Namespace) -> Section:
    from mmdet.evaluation.functional import eval_map

    from transfer.voc_map import evaluate

    images, classes = (1000 if args.quick else 4952), 20
    results = synthetic_results(images, classes)
    annotations, found = zip(*results, strict=True)

    def stock() -> float:
        return eval_map(
            found, annotations, eval_mode='11points', use_legacy_coordinate=True, logger='silent'
        )[0]

    def ours() -> float:
        aps = [one['ap']['11points'] for one in evaluate(results, classes) if one['num_gts']]
        return np.array(aps).mean().item()

    difference = abs(ours() - stock())
    seconds = interleaved({'eval_map': stock, 'ours': ours}, args.rounds or 3, warmup=0)
    return Section(
        name='eval_map',
        title=f'VOC mAP of {images:,} images, {classes} classes, 50 detections an image',
        columns=('case', 'kinds of AP', 'ms', "share of mmdet's time"),
        rows=[
            _row("mmdet's eval_map (4 processes)", seconds['eval_map'], seconds['eval_map'], '1'),
            _row('ours', seconds['ours'], seconds['eval_map'], '2'),
        ],
        notes=[f'Difference of the two mAP: {difference:.1e}.'],
        data={'seconds': seconds, 'difference': difference, 'images': images},
    )


def _row(name: str, seconds: list[float], reference: list[float], *more: str) -> tuple[str, ...]:
    return (name, *more, spread([1000 * one for one in seconds]).show(1), ratio(seconds, reference).show(3))


def synthetic_results(
    images: int, classes: int, found: int = 50, seed: int = 0
) -> list[tuple[dict[str, np.ndarray], list[np.ndarray]]]:
    """Random boxes and detections near and far from them, in the form that VOC metrics take."""
    rng = np.random.default_rng(seed)

    def boxes(count: int) -> np.ndarray:
        corner = rng.uniform(0, 300, (count, 2))
        return np.hstack([corner, corner + rng.uniform(20, 200, (count, 2))]).astype(np.float32)

    results = []
    for _ in range(images):
        count = int(rng.integers(1, 6))
        truth, label, ignored = boxes(count), rng.integers(0, classes, count), rng.random(count) < 0.15
        chosen = rng.integers(0, count, found)
        near = truth[chosen] + rng.normal(0, 12, (found, 4)).astype(np.float32)
        named = np.where(rng.random(found) < 0.5, label[chosen], rng.integers(0, classes, found))
        scored = np.hstack([near, rng.random((found, 1), dtype=np.float32)])
        annotation = {
            'bboxes': truth[~ignored],
            'labels': label[~ignored],
            'bboxes_ignore': truth[ignored],
            'labels_ignore': label[ignored],
        }
        results.append((annotation, [scored[named == one] for one in range(classes)]))
    return results


def _pixels_section(args: argparse.Namespace) -> Section:
    from mmseg.evaluation.metrics import IoUMetric

    from transfer.iou_metric import ExactIoUMetric

    batch, classes = 8, 21
    generator = torch.Generator().manual_seed(0)
    truth, predicted = (
        torch.randint(0, classes, (batch, 1, 500, 375), generator=generator).to(args.device) for _ in range(2)
    )
    samples = [
        {'pred_sem_seg': {'data': one}, 'gt_sem_seg': {'data': other}}
        for one, other in zip(predicted, truth, strict=True)
    ]

    def counting(kind: type) -> Callable[[], None]:
        metric = kind(prefix='x')
        metric.dataset_meta = {'classes': [str(one) for one in range(classes)]}

        def count() -> None:
            metric.process({}, samples)
            metric.results.clear()

        return count

    cases = {'IoUMetric': counting(IoUMetric), 'ours': counting(ExactIoUMetric)}
    seconds = interleaved(cases, args.rounds or (5 if args.quick else 20), args.device)
    return Section(
        name='eval_pixels',
        title=f'mIoU: counting the pixels of {batch} images of 500x375, {classes} classes',
        columns=('case', 'ms', "share of mmseg's time"),
        rows=[
            _row("mmseg's IoUMetric", seconds['IoUMetric'], seconds['IoUMetric']),
            _row('ours, with the confusion of classes', seconds['ours'], seconds['IoUMetric']),
        ],
        data={'seconds': seconds},
    )


def _data(args: argparse.Namespace, folder: Path, depth: int | None) -> Path:
    """Where ``VOCdevkit`` is: the user's, checked, or a small emoji world."""
    if args.data_root is not None:
        from transfer.check_data import check_detection, check_segmentation

        check_detection(args.data_root / 'VOCdevkit/VOC2007')
        check_segmentation(args.data_root / 'VOCdevkit/VOC2012')
        return args.data_root
    from transfer.emoji_world import WorldSize, ensure

    pixels = (160, 128) if depth is None else (500, 375)
    size = WorldSize(1, 1, 72, 32, 16, 16, 16, 16, scene_px=pixels)
    ensure(folder / 'world', size=size)
    return folder / 'world'


_METRICS = {'det': _map_section, 'seg': _pixels_section}


def _task_sections(
    args: argparse.Namespace, task: str, depth: int | None, data: Path, folder: Path
) -> Iterable[Section]:
    cases: dict[str, dict[str, bool]] = {
        'stock, float32': {},
        'ours, float32': dict(ours=True),
        'ours, bfloat16': dict(ours=True, amp=True),
    }
    if task == 'det':
        cases['ours, bfloat16, heads image by image'] = dict(ours=True, amp=True, batched_heads=False)
    if args.device == 'cuda':
        # mmengine's mixed precision does not exist on a CPU.
        cases['stock, AMP'] = dict(amp=True)
    runs = {
        name: _Run(task, depth, data, folder / f'{task}{index}', args.step_batch, **kind)
        for index, (name, kind) in enumerate(cases.items())
    }
    where = f'{_TITLES[task]}, ResNet-{depth}' if depth else f'{_TITLES[task]} of the demo'
    steps = (1 if args.quick else 3) * (10 if args.device == 'cuda' else 1)
    rounds = args.rounds or (3 if args.quick else 10)
    seconds = interleaved(
        {name: lambda run=run: run.train(steps) for name, run in runs.items()}, rounds, args.device
    )
    seconds = {name: [one / steps for one in some] for name, some in seconds.items()}
    waited = ', '.join(f'{name}: {1000 * median(run.waited):.1f}' for name, run in runs.items())
    yield _against_stock(
        f'finetune_{task}',
        f'A fine-tuning step: {where}, {runs["stock, float32"].batch} images, loading included',
        seconds,
        [
            'Stock: the same config as mmdet and mmseg run it by themselves, mmcv ops as installed here.',
            f'Of these ms, the median spent on getting the images: {waited}.',
        ],
    )
    runs = {name: runs[name] for name in ('stock, float32', 'ours, float32')}
    seconds = interleaved(
        {name: run.evaluate for name, run in runs.items()}, max(2, rounds // 3), args.device
    )
    sizes = ', '.join(f'{name}: {run.val_batch}' for name, run in runs.items())
    yield _against_stock(
        f'evaluate_{task}', f'Evaluation: {where}', seconds, [f'{_EVALUATED} images; in a batch: {sizes}.']
    )


def _against_stock(name: str, title: str, seconds: dict[str, list[float]], notes: list[str]) -> Section:
    stock = seconds['stock, float32']
    rows = [
        (case, spread([1000 * one for one in some]).show(1), ratio(stock, some).show())
        for case, some in seconds.items()
    ]
    if 'stock, AMP' in seconds:
        for case in seconds:
            if case.startswith('ours, bfloat16'):
                gain = ratio(seconds['stock, AMP'], seconds[case]).show()
                notes = [*notes, f'{case.capitalize()} over stock AMP: {gain}.']
    return Section(name, title, ('case', 'ms', 'times as fast as stock'), rows, notes, {'seconds': seconds})


class _Run:
    """A fine-tuning, ours or as mmdet and mmseg alone would do it, that can be asked for single steps."""

    def __init__(
        self,
        task: str,
        depth: int | None,
        data: Path,
        work_dir: Path,
        batch: int | None,
        ours: bool = False,
        amp: bool = False,
        batched_heads: bool = True,
    ):
        from mmengine.runner import Runner

        from sd_pretrain.cli import set_data_root, split_total_batch
        from transfer import det_speed, finetune
        from transfer.metrics import use_exact_metrics
        from transfer.run_record import load_config
        from transfer.speed import wait_less

        papers = DATASETS[task, dict(TABLE5)[task]]
        config = papers.config.format(network=f'r{depth}') if depth else papers.demo_config
        cfg = load_config(_ROOT / config, amp=amp and ours)
        set_data_root(cfg, data)
        finetune.plain_bn(cfg.model)
        cfg.merge_from_dict({'work_dir': str(work_dir), 'log_level': 'ERROR', 'randomness': {'seed': 0}})
        cfg.batched_heads = batched_heads
        cfg.model.backbone.init_cfg = None
        if task == 'det':
            cfg.model.roi_head.shared_head.init_cfg = None
        cfg.visualizer.name = str(work_dir)
        cfg.val_dataloader.dataset.indices = _EVALUATED
        if depth and (data / 'world.json').is_file():
            # An epoch of two or four iterations would time little but its start.
            once = cfg.train_dataloader.dataset
            cfg.train_dataloader.dataset = dict(type='RepeatDataset', times=_REPEATED, dataset=once)
        cfg.total_batch_size = batch or cfg.total_batch_size
        split_total_batch(cfg, world_size=1)
        self.benchmark = cfg.env_cfg.cudnn_benchmark and ours
        if ours:
            wait_less(cfg)
            cfg.val_evaluator = use_exact_metrics(cfg.val_evaluator)
            if task == 'det':
                det_speed.batch_evaluation(cfg)
        else:
            cfg.val_dataloader.batch_size = 1
            cfg.optim_wrapper.optimizer.pop('fused', None)
            if amp:
                cfg.optim_wrapper.type = 'AmpOptimWrapper'
        self.runner = (finetune.FinetuneRunner if ours else Runner).from_cfg(cfg)
        self.batch, self.val_batch = cfg.train_dataloader.batch_size, cfg.val_dataloader.batch_size
        if ours and task == 'seg':
            from transfer.seg_speed import batch_evaluation

            self.val_batch = batch_evaluation(self.runner.model, self.runner._val_dataloader)
        self.runner._train_loop = self.runner.build_train_loop(self.runner._train_loop)
        self.runner.optim_wrapper = self.runner.build_optim_wrapper(self.runner.optim_wrapper)
        self.runner._val_loop = self.runner.build_val_loop(self.runner._val_loop)
        self.runner.param_schedulers = self.runner.build_param_scheduler(self.runner.param_schedulers)
        self.runner._init_model_weights()
        self.runner.call_hook('before_run')
        self.runner.call_hook('before_train')
        self.batches: Iterator[tuple[int, Any]] = iter(())
        self.waited: list[float] = []  # seconds until a batch was there, of each step

    def train(self, steps: int) -> None:
        """Load batches, and train on them, with all hooks of an iteration."""
        torch.backends.cudnn.benchmark = self.benchmark
        self.runner.model.train()
        for _ in range(steps):
            started = time.perf_counter()
            batch = next(self.batches, None)
            if batch is None:
                self.runner.call_hook('before_train_epoch')
                self.batches = enumerate(self.runner.train_dataloader)
                batch = next(self.batches)
            self.waited.append(time.perf_counter() - started)
            self.runner.train_loop.run_iter(*batch)

    @torch.no_grad()
    def evaluate(self) -> None:
        """Evaluate on some test images."""
        torch.backends.cudnn.benchmark = self.benchmark
        self.runner.model.eval()
        evaluator, loader = self.runner.val_evaluator, self.runner.val_dataloader
        evaluator.dataset_meta = loader.dataset.metainfo
        for batch in loader:
            evaluator.process(data_samples=self.runner.model.val_step(batch), data_batch=batch)
        evaluator.evaluate(len(loader.dataset))
