"""Errors of snapshots and of their ensembles, from the logits of the validation images."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from mmengine.device import get_device
from mmengine.registry import MODELS, DefaultScope
from mmengine.runner import Runner
from torch import Tensor

from sd_pretrain.checkpoint import check_fits, read_checkpoint
from sd_pretrain.curves import read_curves
from sd_pretrain.memory import keep_freed_memory
from sd_pretrain.prepare import fit_machine, mini_generations
from sd_pretrain.run_record import check_snapshots
from sd_pretrain.train import readable_worker_errors
from sd_pretrain.work_dir import write_json

TOPK = (1, 5)
COMBINATIONS = ('probabilities', 'logits')
ERRORS = 'errors.json'


def snapshot_logits(cfg: Config, checkpoints: Sequence[str | Path]) -> tuple[list[Tensor], Tensor]:
    """Run checkpoints on the test images of a config, in the order of its own loader, in one process.

    Args:
        cfg: from :func:`sd_pretrain.prepare.load_config`; its loaders are fitted to the machine in place.
        checkpoints: ``snapshot_k.pth`` or ``epoch_N.pth`` files of that config.

    Returns:
        Logits ``(N, C)`` of each checkpoint and the true classes ``(N,)``, on the CPU.

    Raises:
        InputError: a checkpoint is missing, damaged, or of another network; an image cannot be read.
    """
    keep_freed_memory()
    fit_machine(cfg, 1)
    loader = Runner.build_dataloader(cfg.test_dataloader)
    with DefaultScope.overwrite_default_scope('mmengine'):
        model = MODELS.build({**cfg.model, 'data_preprocessor': cfg.get('data_preprocessor')})
    model = model.to(get_device()).eval()
    every, labels = [], None
    for checkpoint in checkpoints:
        content = read_checkpoint(checkpoint)
        check_fits(model, content, checkpoint)
        model.load_state_dict(content['state_dict'])
        with readable_worker_errors():
            batches = list(_batches(model, loader))
        every.append(torch.cat([logits for logits, _ in batches]))
        labels = torch.cat([truth for _, truth in batches])
    return every, labels


@torch.no_grad()
def _batches(model: Any, loader: Any) -> Iterator[tuple[Tensor, Tensor]]:
    for batch in loader:
        data = model.data_preprocessor(batch)
        yield model(data['inputs']).float().cpu(), data['labels'].cpu()


def errors(scores: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 error in percent, unrounded.

    Args:
        scores: ``(N, C)``, the larger the likelier; with fewer than five classes, top-5 counts every image.
        labels: true classes ``(N,)``.

    Returns:
        ``{'top1', 'top5'}``.
    """
    best = scores.topk(min(max(TOPK), scores.shape[1]), dim=1).indices
    hits = best == labels[:, None]
    return {f'top{k}': 100 - 100 * hits[:, :k].any(1).sum().item() / len(labels) for k in TOPK}


def ensemble(
    logits: Sequence[Tensor], temperature: float | None = None, combine: str = 'probabilities'
) -> Tensor:
    """Scores of the ensemble of the snapshots of one run.

    "The logits of M_#Lk are multiplied by T^(k-1) for ensemble of SD" (Table 3): a student is fitted to its
    teacher's logits divided by T and is itself not divided (Section 3.3.3), so its own become smaller by
    about T from mini-generation to mini-generation; the factor brings all of them to one scale. What is
    averaged then the paper does not say. Here it is the softmax probabilities: the column compares SD with
    Snapshot Ensembles [21], whose ensemble is the mean of the softmax outputs, and without the factor (SE)
    this is theirs exactly.

    Args:
        logits: ``(N, C)`` of snapshots 1 to K, in their order.
        temperature: T of SD; ``None`` for SE, whose logits stay as they are.
        combine: ``'probabilities'``, or ``'logits'`` for the mean of the (multiplied) logits.

    Returns:
        ``(N, C)``: probabilities, or logits.
    """
    if combine not in COMBINATIONS:
        raise ValueError(f'combine must be one of {COMBINATIONS}, found {combine!r}')
    # Doubles: T^(k-1) takes probabilities to the edge of what single precision can tell apart.
    scaled = [one.double() * (temperature or 1.0) ** index for index, one in enumerate(logits)]
    if combine == 'probabilities':
        scaled = [one.softmax(1) for one in scaled]
    return torch.stack(scaled).mean(0)


def run_errors(cfg: Config, temperature: float | None = None, snapshots: int | None = None) -> dict[str, Any]:
    """All errors of a run, in percent; evaluated once and kept in the work dir's ``errors.json``.

    Args:
        cfg: the run's config, from :func:`sd_pretrain.prepare.load_config`.
        temperature: T of SD, for the ensemble; ``None`` for SE.
        snapshots: how many there are yet; default: the run is finished and has all.

    Returns:
        ``generations``: their number, all in all; ``snapshots``: ``{'top1', 'top5'}`` of each that is there,
        in order; ``best``: the lowest top-1 error after any epoch, and that ``epoch`` (as the paper's "best",
        chosen on the very images it is measured on); ``ensemble`` and ``ensemble_of_logits``: as a
        snapshot's, ``None`` for a run of one snapshot. The last three are ``None`` for an unfinished run.

    Raises:
        InputError: a snapshot or the log is missing or damaged.
    """
    work_dir = Path(cfg.work_dir)
    generations = len(mini_generations(cfg)['ends'])
    finished = snapshots is None
    if finished:
        check_snapshots(work_dir, generations)
    paths = [work_dir / f'snapshot_{k}.pth' for k in range(1, (generations if finished else snapshots) + 1)]
    files = [[path.name, path.stat().st_size, path.stat().st_mtime_ns] for path in paths if path.is_file()]
    kept = work_dir / ERRORS
    if kept.is_file():
        try:
            found = json.loads(kept.read_text())
            same = found['files'] == files and found['temperature'] == temperature
            if same and found['generations'] == generations and (found['best'] is not None) == finished:
                return found
        except (ValueError, KeyError, TypeError):
            pass  # evaluated again
    logits, labels = snapshot_logits(cfg, paths)
    result = {
        'files': files,
        'temperature': temperature,
        'generations': generations,
        'snapshots': [errors(one, labels) for one in logits],
        'best': None,
        'ensemble': None,
        'ensemble_of_logits': None,
    }
    if finished:
        best, epoch = min((error, int(epoch)) for epoch, error in read_curves(work_dir).test_error)
        result['best'] = {'top1': best, 'epoch': epoch}
    if finished and generations > 1:
        result['ensemble'] = errors(ensemble(logits, temperature), labels)
        result['ensemble_of_logits'] = errors(ensemble(logits, temperature, 'logits'), labels)
    write_json(kept, result)
    return result
