"""The paper's Table 5 from nothing: pretrain BL and SD, convert, fine-tune on both tasks, compare.

Every stage is a documented tool of its own; this module only says in which order, with which configs, and how
long each took. Broken off and started again, it goes on where it was.
"""

from __future__ import annotations

import json
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

import torch

from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.cli import COMPILE, InputError, split_total_batch
from sd_pretrain.launch import check_gpus
from sd_pretrain.pretrainings import Pretraining, run_pretrainings
from sd_pretrain.work_dir import claim, read_json, write_json
from transfer import contenders, runner
from transfer.run_record import load_config
from transfer.speed import check_amp
from transfer.tasks import DATASETS, TABLE5
from transfer.transfer_report import draw_samples, quiet, report_runs

SCRATCH = 'scratch'


@dataclass(frozen=True)
class Table5:
    """What to run.

    Args:
        work_dir: where the table, the report and the fine-tunings go; on the demo data the pretrainings too.
        data_root: folder of ``ILSVRC2012`` and ``VOCdevkit``; ``None`` means the embedded demo data.
        demo_data: where the demo data is, or is made.
        arch: ``'r18'`` to ``'r152'`` on real data; the demo has ``'r18'``.
        gpus: GPUs of one run; 1 runs on the CPU where there is none.
        seeds: seeds of the fine-tunings.
        pretrainings: how often BL and SD are pretrained, with seeds from 0; of several each is fine-tuned
            once, with its seed.
        parallel: runs side by side.
        scratch: add a row of fine-tunings from random weights.
        amp: train in bfloat16; see :attr:`in_bf16`.
        compile: compile network and augmentation of the pretrainings.
    """

    work_dir: Path = Path('work_dirs/table5')
    data_root: Path | None = None
    demo_data: Path = Path('work_dirs/demo_data')
    arch: str = 'r152'
    gpus: int = 1
    seeds: tuple[int, ...] = (0,)
    pretrainings: int = 1
    parallel: int = 1
    scratch: bool = False
    amp: bool = False
    compile: bool = False

    @property
    def demo(self) -> bool:
        """Whether this is the small run on the embedded data."""
        return self.data_root is None

    @property
    def in_bf16(self) -> bool:
        """Whether to train in bfloat16: if asked to, and the demo anyway on a CPU that computes in it."""
        return self.amp or (self.demo and not torch.cuda.is_available() and cpu_has_bf16())

    def pretrain_config(self, name: str) -> Path:
        """The config of ``'BL'`` or ``'SD'``."""
        stem = f'demo/{name.lower()}_r18_demo' if self.demo else f'{name.lower()}_{self.arch}_imagenet'
        return Path('configs') / f'{stem}.py'

    def transfer_config(self, pair: tuple[str, str]) -> str:
        """The config of a task."""
        dataset = DATASETS[pair]
        return dataset.demo_config if self.demo else dataset.config.format(network=self.arch)

    def pretrain_dirs(self, name: str) -> list[Path]:
        """Where pretrainings go, by seed; on real data the first where tools/transfer.sh looks for it."""
        first = Path('work_dirs') / self.pretrain_config(name).stem
        if self.demo:
            first = self.work_dir / 'pretrain' / name.lower()
        others = [first.with_name(f'{first.name}_seed{seed}') for seed in range(1, self.pretrainings)]
        return [first, *others]


class _Stages:
    """Seconds spent in each stage, over all starts of the same run, kept in a file."""

    def __init__(self, path: Path):
        self.path = path
        self.seconds: dict[str, float] = read_json(path, 'delete it, the times start anew', missing={})

    @contextmanager
    def __call__(self, name: str, anew: bool = False) -> Iterator[None]:
        """Time a stage; ``anew``: one that every start does again, so that only the last time counts."""
        before = 0.0 if anew else self.seconds.get(name, 0.0)
        started = time.monotonic()
        try:
            yield
        finally:
            self.seconds[name] = before + time.monotonic() - started
            write_json(self.path, self.seconds)

    def listed(self) -> list[dict]:
        return [{'name': name, 'seconds': seconds} for name, seconds in self.seconds.items()]


def run_table5(what: Table5) -> Path:
    """Run all stages and write ``table5.json``, ``table5.md`` and ``report.html`` into the work dir.

    Returns:
        The path of ``table5.json``.

    Raises:
        InputError: anything the user can mend; data and GPUs are checked before the first training.
        RunFailedError: a stage failed; carries the end of its log.
    """
    check_gpus(what.gpus, what.parallel)
    check_amp(what.amp)
    if what.pretrainings > 1 and what.seeds != tuple(range(what.pretrainings)):
        raise InputError('several pretrainings have the seeds of the fine-tunings: leave --seeds out')
    _check_seeds(what)
    for pair in TABLE5:
        split_total_batch(load_config(what.transfer_config(pair)), what.gpus)
    stages = _Stages(what.work_dir / 'stages.json')
    with stages('data'):
        data_root = _data(what)
        _claim_work_dir(what, data_root)
    with stages('pretrain'):
        _pretrain(what, data_root)
    options = runner.Options(
        seeds=what.seeds,
        gpus=what.gpus,
        parallel=what.parallel,
        data_root=str(data_root),
        demo=what.demo,
        work_dir=what.work_dir / 'transfer',
        amp=what.in_bf16,
    )
    with stages('convert'):
        backbones = {
            name: [
                contenders.backbone_file(name, str(folder), options.work_dir / 'backbones')
                for folder in what.pretrain_dirs(name)
            ]
            for name in ('BL', 'SD')
        }
    if what.scratch:
        backbones[SCRATCH] = ['none']
    results = []
    for task, dataset in TABLE5:
        with stages(task):
            results += runner.run_transfer(task, dataset, backbones, options)
    _write_table(what, results, stages)  # Whatever may happen to the pictures, the numbers are there.
    with stages('samples', anew=True), quiet(what.work_dir / 'samples.log'):
        drawn = draw_samples(results)
    table5 = _write_table(what, results, stages)
    curves = contenders.numbered({name: what.pretrain_dirs(name) for name in ('BL', 'SD')})
    report_runs(what.work_dir, results, table5, curves, drawn, [shlex.join(sys.orig_argv)])
    return what.work_dir / 'table5.json'


def _check_seeds(what: Table5) -> None:
    """Refuse several pretrainings where fine-tunings with their seeds are there, of the first one."""
    for name in ('BL', 'SD') if what.pretrainings > 1 else ():
        for path in sorted(what.work_dir.glob(f'transfer/*/{name}/seed*/run.json')):
            run = read_json(path, f'delete {path.parent} to run anew')
            if run['seed'] != 0 and run.get('pretraining') is None:
                raise InputError(
                    f'{path.parent} is a fine-tuning of the first pretraining with seed {run["seed"]}, which '
                    'is for another one with --pretrainings: take another --work-dir, or delete it'
                )


def _data(what: Table5) -> Path:
    from sd_pretrain.imagenet import check_imagenet
    from transfer import emoji_world
    from transfer.check_data import check_detection, check_segmentation

    if what.data_root is None:
        if emoji_world.ensure(what.demo_data):
            print(f'made the demo data: {what.demo_data}', flush=True)
        return what.demo_data
    checks = (
        (check_imagenet, 'ILSVRC2012'),
        (check_detection, 'VOCdevkit/VOC2007'),
        (check_segmentation, 'VOCdevkit/VOC2012'),
    )
    wrong = []
    for check, folder in checks:
        try:
            print(f'{what.data_root / folder}: {check(what.data_root / folder, full_size=True)}', flush=True)
        except InputError as error:
            wrong.append(str(error))
    if wrong:
        raise InputError('\n       '.join(wrong))
    return what.data_root


def _pretrain(what: Table5, data_root: Path) -> None:
    options = (COMPILE,) if what.compile else ()
    runs = [
        Pretraining(
            f'{name} seed {seed}' if what.pretrainings > 1 else name,
            str(what.pretrain_config(name)),
            folder,
            (*options, f'randomness.seed={seed}') if seed else options,
        )
        for name in ('BL', 'SD')
        for seed, folder in enumerate(what.pretrain_dirs(name))
    ]
    # On GPUs one after the other, each with all of them; on the CPU side by side.
    parallel = 1 if torch.cuda.device_count() > 0 else what.parallel
    run_pretrainings(
        'pretrain BL and SD', runs, data_root=data_root, gpus=what.gpus, parallel=parallel, amp=what.in_bf16
    )


def _claim_work_dir(what: Table5, data_root: Path) -> None:
    """Note what the work dir is for, or refuse one that is for something else."""
    wanted = {
        'data': 'demo' if what.demo else 'real',
        'arch': 'r18' if what.demo else what.arch,
        'amp': what.amp,
    }
    if what.demo:
        wanted['world'] = json.loads((data_root / 'world.json').read_text())
    claim(what.work_dir, wanted)


def _write_table(what: Table5, results: list[dict], stages: _Stages) -> dict:
    """Write ``table5.json`` and ``table5.md``; returns the content of the first."""
    from transfer.table5_json import build_table5, table5_markdown

    found = {name: [_pretrain_result(folder) for folder in what.pretrain_dirs(name)] for name in ('BL', 'SD')}
    table5 = build_table5(
        results,
        data='demo' if what.demo else 'real',
        stages=stages.listed(),
        pretrain={
            name: {key: fmean(one[key] for one in several) for key in ('top1', 'top5')}
            | {'seconds': sum(one['seconds'] for one in several)}
            for name, several in found.items()
        },
        baseline='BL',
    )
    write_json(what.work_dir / 'table5.json', table5)
    (what.work_dir / 'table5.md').write_text(table5_markdown(table5))
    return table5


def _pretrain_result(work_dir: Path) -> dict:
    path = work_dir / 'result.json'
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f'{path} is missing or does not parse ({error}); delete {work_dir} and start again'
        ) from None
