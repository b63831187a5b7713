"""Probe the frozen features of a backbone: ``python -m transfer.probe CONFIG --backbone FILE``.

The probes are those of :mod:`transfer.probes`: a linear SVM on all of trainval, nearest neighbours, and SVMs
on 1, 2, 4, ... images a class; mAP over the classes on test, and top-1 accuracy of the first two where each
image shows one class. Only the last of these depend on the seed, and
all of them with random weights.
"""

from __future__ import annotations

import json
import time
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config

from sd_pretrain.cli import InputError, run_main, set_data_root
from sd_pretrain.launch import is_main_process
from sd_pretrain.memory import keep_freed_memory
from sd_pretrain.work_dir import write_json
from transfer.backbone import Backbone, put_into, read_backbone
from transfer.features import build_backbone, extract, feature_key, kept
from transfer.finetune import parse_args
from transfer.image_lists import list_file
from transfer.labelled_images import class_names, read_images
from transfer.predictions import save_predictions
from transfer.probes import knn_scores, linear_scores, low_shot_scores
from transfer.ranking import Scores, class_aps, top1
from transfer.run_record import load_config, open_run
from transfer.tasks import dataset_of

_SETTINGS = ('view', 'svm', 'low_shot', 'knn')


def probe(args: Namespace) -> dict[str, Any] | None:
    """Run all probes as the command line says, and write ``result.json`` and ``predictions.npz``.

    One process does it all, on one GPU; the others of a distributed run return ``None`` at once.

    Returns:
        The content of ``result.json``.

    Raises:
        InputError: the config is none of a probe, or the data does not suffice for it.
    """
    if not is_main_process(args.launcher):
        return None
    keep_freed_memory()
    cfg = _config(args)
    backbone = read_backbone(args.backbone)
    run, finished = open_run(args, cfg, backbone)
    if finished is not None:
        return finished
    put_into(cfg, backbone)  # refuses one of another depth
    check_enough(cfg)
    write_json(args.work_dir / 'run.json', run)
    started = time.monotonic()
    scores, names, costs = _scores(args, cfg, backbone)
    summary = _summary(cfg, scores, backbone)
    result = {**run, **summary, 'svm_costs': costs, 'seconds': time.monotonic() - started}
    save_predictions(args.work_dir, scores, names)
    write_json(args.work_dir / 'result.json', result)
    return result


def _config(args: Namespace) -> Config:
    cfg = load_config(args.config, args.cfg_options, args.amp)
    missing = [name for name in _SETTINGS if name not in cfg]
    if cfg.task != 'probe' or missing:
        lacks = f' (no {", ".join(missing)})' if missing else ''
        raise InputError(f'{args.config} is no config of a probe{lacks}: take one of configs/probe')
    if args.data_root:
        set_data_root(cfg, args.data_root)
    return cfg


def check_run(argv: list[str]) -> None:
    """Check what a command line of this module would find wrong with its config and images.

    Raises:
        InputError: the config is none of a probe, or the data does not suffice for it.
    """
    check_enough(_config(parse_args(argv)))


def check_enough(cfg: Config) -> None:
    """Check that the images to fit on suffice for the probes.

    Raises:
        InputError: a class has too few, or there are fewer images than neighbours; says what to set.
    """
    path, labels = list_file(cfg.train_dataloader.dataset), read_images(cfg, 'train').labels
    if len(labels) < cfg.knn.k:
        raise InputError(f'{path} has {len(labels)} images, fewer than {cfg.knn.k} neighbours; set knn.k')
    counts = (labels > 0).sum(0)
    rarest = int(counts.argmin())
    there, shots = int(counts[rarest]), list(cfg.low_shot.shots)
    folds = cfg.svm.folds if len(cfg.svm.costs) > 1 else 1
    fewer = []
    if there < max(shots, default=1):
        fewer.append(f'low_shot.shots={[one for one in shots if one <= there] or [1]}'.replace(' ', ''))
    if there < folds:
        fewer.append(f'svm.folds={there}' if there > 1 else 'svm.costs=[1.0]')
    if there < 1 or fewer:
        raise InputError(
            f'{path}: {there} images show a {class_names(cfg)[rarest]} and {max(folds, *shots, 1)} are needed'
            + (f'; take fewer, with --cfg-options {" ".join(fewer)}' if there else '')
        )


def _scores(args: Namespace, cfg: Config, backbone: Backbone) -> tuple[Scores, list[str], dict[str, float]]:
    """Scores of all probes, the names of the test images, and the cost of each class's SVM."""
    say = partial(_say, args.work_dir / 'probe.log')
    # What no seed changes is kept where the runs with other seeds find it.
    folder = args.work_dir.parent if args.work_dir.name.startswith('seed') else args.work_dir

    def compute_features() -> dict[str, np.ndarray]:
        network, equal = build_backbone(cfg, backbone, args.seed)
        say(f'backbone: {equal} of {equal} tensors equal those of {backbone.path}')
        return extract(cfg, network, say)

    key = feature_key(cfg, backbone, args.seed)
    data = kept(folder / f'features-{key}.npz', compute_features)
    fit = (data['train_features'], data['train_labels'], data['val_features'])
    say(f'features of {len(fit[0])} + {len(fit[2])} images, {fit[0].shape[1]} numbers each')

    def compute_seedless() -> dict[str, np.ndarray]:
        linear, costs = linear_scores(*fit, **cfg.svm, jobs=torch.get_num_threads())
        return {'linear': linear, 'costs': costs, 'knn': knn_scores(*fit, **cfg.knn)}

    key = feature_key(cfg, backbone, args.seed, cfg.svm.to_dict(), cfg.knn.to_dict())
    seedless = kept(folder / f'scores-{key}.npz', compute_seedless)
    every = {'linear': seedless['linear'], 'knn': seedless['knn']}
    for shots in cfg.low_shot.shots:
        say(f'SVMs on {shots} images a class')
        every[f'low_shot_{shots}'] = low_shot_scores(
            *fit,
            shots=shots,
            seed=args.seed,
            cost=cfg.low_shot.cost,
            positive_weight=cfg.svm.positive_weight,
        )
    scores = Scores(
        np.array(list(every)), np.stack(list(every.values())).astype(np.float32), data['val_labels']
    )
    for name in every:
        say(f'{name}: mAP {100 * np.nanmean(class_aps(scores, name)):.2f}')
    costs = dict(zip(class_names(cfg), seedless['costs'].tolist(), strict=True))
    return scores, data['val_names'].tolist(), costs


def _say(log: Path, line: str) -> None:
    stamped = f'{time.strftime("%Y/%m/%d %H:%M:%S")} - probe - INFO - {line}'
    print(stamped, flush=True)
    with log.open('a') as file:
        print(stamped, file=file)


def _summary(cfg: Config, scores: Scores, backbone: Backbone) -> dict[str, Any]:
    """Return what result.json says of the scores, as fractions."""
    metrics, values = dataset_of(cfg.task, cfg.dataset).metrics, {}
    for one in metrics:
        kind, *measure = one.how
        if scores.of_kind(kind) and not measure:
            values[one.name] = float(np.nanmean(class_aps(scores, kind)))
        elif scores.of_kind(kind) and scores.one_class_each:
            values[one.name] = top1(scores, kind)
    per_class = class_aps(scores, *metrics[0].how)
    return {
        'metrics': values,
        'per_class': {
            name: float(value)
            for name, value in zip(class_names(cfg), per_class, strict=True)
            if not np.isnan(value)
        },
        'low_shot': {
            name.removeprefix('low_shot_'): float(np.nanmean(class_aps(scores, name)))
            for name in scores.probe.tolist()
            if name.startswith('low_shot_')
        },
        # Another seed would give the same.
        'seedless': [
            one.name for one in metrics if one.name in values and one.seedless and not backbone.random
        ],
    }


def main(argv: list[str] | None = None) -> None:
    """Entry point of ``python -m transfer.probe``."""
    result = probe(parse_args(argv, 'python -m transfer.probe', __doc__.splitlines()[0]))
    if result is not None:
        print(json.dumps(result['metrics']))


if __name__ == '__main__':
    run_main(main)
