"""What SD costs in whole: runs from image files to the last snapshot, BL and SD of two mini-generations."""

from __future__ import annotations

import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from sd_pretrain.benchmark import Section, ratio, spread
from sd_pretrain.experiments import schedule_options
from sd_pretrain.jobs import raise_for
from sd_pretrain.process import Job, ended_by_signals, signal_group, start, stop

if TYPE_CHECKING:
    from sd_pretrain.benchmark_steps import Setting

_ROOT = Path(__file__).resolve().parents[1]
# Few epochs of many steps: those of ILSVRC2012 have 5,005, after which a checkpoint takes no time.
_EPOCHS = 2
_BATCHES = 60
_TURN_SECONDS = 2.0
# What mmengine logs right before the first step.
_BEGUN = 'Checkpoints will be saved to'
_CLASSES = 24
# ILSVRC2012's share of validation images: 50,000 beside 1,281,167.
_VALIDATED = 0.039


def whole_runs(setting: Setting, batch: int, size: int, rounds: int, data_root: Path | None) -> Section:
    """Train BL and SD by ``tools/train.py`` and the configs for ILSVRC2012, and compare their seconds.

    Args:
        setting: network, device, precision and whether to compile.
        batch: images a step.
        size: their side in pixels.
        rounds: runs of each.
        data_root: folder of ``ILSVRC2012``; its images are taken over and over, until they are enough for an
            epoch. Default: generated ones.

    Raises:
        InputError: ``data_root`` has no ILSVRC2012, or a run has found something that can be mended.
    """
    from sd_pretrain.pretrainings import Pretraining, pretraining_job

    other = setting.other_precision
    cases = {'BL': ('bl', 'auto'), 'SD': ('sd', 'auto'), f'SD, teacher in {other}': ('sd', other)}
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        classes, about = _link_images(data_root, root / 'data' / 'ILSVRC2012', batch * _BATCHES)
        for index in range(rounds):
            jobs = []
            for name, (kind, precision) in cases.items():
                options = _options(setting, kind, batch, size, classes, precision)
                config = str(_ROOT / 'configs' / f'{kind}_r18_imagenet.py')
                run = Pretraining(name, config, root / f'{index}' / name.replace(' ', '_'), options)
                jobs.append(pretraining_job(run, data_root=root / 'data', amp=setting.amp))
            for name, value in zip(cases, take_turns(jobs), strict=True):
                seconds[name].append(value)
            shutil.rmtree(root / f'{index}')
    ratios = {name: ratio(values, seconds['BL']) for name, values in seconds.items()}
    kind = setting.numbers + (', compiled' if setting.compile else '')
    return Section(
        name=f'whole_{setting.arch}_{size}' + ('_amp' if setting.amp else ''),
        title=f'Whole runs of {setting.arch}, K=2, {batch} images of {size} px a step, {kind}',
        columns=('run', 'seconds', 'over BL'),
        rows=[[name, spread(values).show(1), ratios[name].show(3)] for name, values in seconds.items()],
        notes=(
            f'{rounds} runs of each: {_EPOCHS} epochs of {_BATCHES} steps on {about}, with augmentation, '
            'validation and checkpoints. '
            f'They take turns of {_TURN_SECONDS:.0f} s, and count from their first step.',
        ),
        data={'seconds': seconds, 'over_bl': {name: one._asdict() for name, one in ratios.items()}},
    )


def take_turns(jobs: Sequence[Job], begun: str = _BEGUN, turn: float = _TURN_SECONDS) -> list[float]:
    """Run processes to their ends, one at a time, a few seconds each: what disturbs one disturbs all.

    Args:
        jobs: the processes.
        begun: what a process logs as it begins with what is timed; until then it runs alone.
        turn: seconds of a turn; then a process is stopped, with its children (SIGSTOP).

    Returns:
        Seconds that each of them ran since.

    Raises:
        InputError, RunFailedError: as :func:`sd_pretrain.jobs.run_jobs`.
    """
    processes: list[subprocess.Popen] = []
    seconds = [0.0] * len(jobs)

    def ended(index: int) -> bool:
        code = processes[index].poll()
        if code is not None:
            raise_for(code, jobs[index], jobs[index].log.read_text(errors='replace').split('\n')[-25:])
        return code is not None

    try:
        with ended_by_signals():
            for index, job in enumerate(jobs):
                processes.append(start(job))
                while not ended(index) and begun not in job.log.read_text(errors='replace'):
                    time.sleep(0.01)
                signal_group(processes[index], signal.SIGSTOP)
            going = list(range(len(jobs)))
            while going:
                for index in list(going):
                    since = time.monotonic()
                    signal_group(processes[index], signal.SIGCONT)
                    with suppress(subprocess.TimeoutExpired):
                        processes[index].wait(turn)
                    signal_group(processes[index], signal.SIGSTOP)
                    seconds[index] += time.monotonic() - since
                    if ended(index):
                        going.remove(index)
    finally:
        for process in processes:
            signal_group(process, signal.SIGCONT)
            stop(process)
    return seconds


def _link_images(data_root: Path | None, folder: Path, count: int) -> tuple[int, str]:
    """Class folders of links, ``count`` for training; returns the number of classes, and what is linked."""
    from sd_pretrain.benchmark_images import generate_photos
    from sd_pretrain.cli import InputError
    from sd_pretrain.ilsvrc_layouts import find_split

    generated = data_root is None
    source = generate_photos(folder.parent / 'generated') if generated else data_root / 'ILSVRC2012'
    find_split(source, 'train')
    classes, linked = min(_CLASSES, count), 0
    for split, wanted in (('val', max(round(count * _VALIDATED), classes)), ('train', count)):
        images = source / ('train' if generated else split)
        folders = sorted(one for one in images.glob('*') if one.is_dir())
        found = [sorted(one.iterdir()) for one in folders[:classes]]
        if not found or not all(found):
            raise InputError(f'{images} has no class folders with images, which --whole needs')
        classes = len(found)
        for index in range(wanted):
            files = found[index % classes]
            file = files[index // classes % len(files)]
            link = folder / split / file.parent.name / f'{index}_{file.name}'
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(file.resolve())
        linked = min(sum(map(len, found)), wanted)
    return classes, f'{count} {"generated" if generated else "real"} images ({linked} files)'


def _options(
    setting: Setting, kind: str, batch: int, size: int, classes: int, precision: str
) -> tuple[str, ...]:
    return (
        *schedule_options([_EPOCHS] if kind == 'bl' else [_EPOCHS // 2, _EPOCHS]),
        f'custom_hooks.0.teacher_options.precision={precision}',
        f'model.network={setting.arch}',
        f'model.num_classes={classes}',
        f'model.compile={setting.compile}',
        f'total_batch_size={batch}',
        f'train_dataloader.dataset.size={size}',
        f'val_dataloader.dataset.size={size}',
        f'val_dataloader.dataset.resize={size * 8 // 7}',
    )
