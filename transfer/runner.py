"""Plan and run the fine-tunings of several backbones on one task: which config, and what is done already."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sd_pretrain.cli import InputError, set_data_root, split_total_batch
from sd_pretrain.launch import check_gpus
from transfer import finetune
from transfer.architecture import ARCHS
from transfer.backbone import RANDOM, Backbone, config_arch, put_into, read_backbone
from transfer.contenders import backbone_file, each_of
from transfer.image_lists import data_folder, datasets_of
from transfer.results import collect, require_comparable
from transfer.run_record import check_work_dir, describe, load_config
from transfer.slurm import slurm_parameters
from transfer.speed import check_amp, check_float16
from transfer.start import dry_lines, runs_at_a_time, start
from transfer.tasks import DATASETS, TASKS, Dataset, dataset_of

_DEMO_DATA = 'work_dirs/demo_data'


@dataclass(frozen=True)
class Options:
    """How to fine-tune.

    Args:
        seeds: seeds of each backbone.
        gpus: GPUs of one run; 1 runs on the CPU where there is none, 0 on Slurm nodes without.
        parallel: runs at a time; default: on this machine one for each ``gpus`` GPUs, or one; on Slurm all.
        data_root: where ``VOCdevkit`` is; default: ``data``, with ``demo`` the embedded data.
        config: config for all runs; default: by task, depth and ``demo``.
        demo: the small configs.
        work_dir: gets ``<task>_<dataset>/<name>/seed<k>`` folders, and ``backbones``.
        amp: train in bfloat16.
        cfg_options: passed on to each run.
        slurm: options for sbatch (:func:`transfer.slurm.slurm_parameters`); ``None``: run on this machine.
        dry_run: say what would be run, and run nothing.
    """

    seeds: Sequence[int] = (0,)
    gpus: int = 1
    parallel: int | None = None
    data_root: str | None = None
    config: str | None = None
    demo: bool = False
    work_dir: Path = Path('work_dirs/transfer')
    amp: bool = False
    cfg_options: Sequence[str] = ()
    slurm: str | None = None
    dry_run: bool = False


@dataclass(frozen=True)
class Run:
    """One fine-tuning: one backbone, one seed.

    ``state`` is what its work dir holds of it, ``identity`` what its result will say of what was run.
    """

    name: str
    seed: int
    work_dir: Path
    arguments: list[str] = field(repr=False)
    state: str
    identity: dict[str, Any] = field(repr=False)
    module: str


def find_task(task: str, dataset: str, config: str | None = None) -> Dataset:
    """Look a data set of a task up; with a ``config`` it may be a user's own.

    Raises:
        InputError: there is none of that name; lists those there are.
    """
    if (task, dataset) in DATASETS:
        return DATASETS[task, dataset]
    if config and task in TASKS:
        return dataset_of(task, dataset)
    known = ', '.join(' '.join(pair) for pair in DATASETS)
    raise InputError(
        f'unknown task {task!r} on dataset {dataset!r}: there are {known}; data of your own need a --config'
    )


def plan(
    asked: Dataset, files: Mapping[str, str | Sequence[str]], folder: Path, options: Options
) -> list[Run]:
    """Say which runs there are and what of each is done; nothing is written.

    Args:
        asked: what to fine-tune on.
        files: name to backbone file or ``'none'``, or to several of them: pretrainings, one for each seed.
        folder: gets ``<name>/seed<k>`` folders.
        options: how to fine-tune.

    Raises:
        InputError: a config is missing or of another depth, a work dir holds another run, the data is wrong,
            or the pretrainings of a name are not several of one network, as many as there are seeds.
    """
    backbones = {name: [read_backbone(path) for path in each_of(paths)] for name, paths in files.items()}
    archs = [one.arch for several in backbones.values() for one in several if one.arch is not None]
    seeded = [
        (name, *one) for name, several in backbones.items() for one in _seeded(name, several, options.seeds)
    ]
    runs: list[Run] = []
    checked: list[Any] = []
    for name, backbone, pretraining, seeds in seeded:
        config = _config_for(asked, backbone.arch, archs, options)
        arguments = _arguments(config, name, backbone.path, pretraining, options)
        parsed = finetune.parse_args([*arguments, '--work-dir', '.'])
        processes = max(1, options.gpus)
        cfg = load_config(config, parsed.cfg_options, options.amp, processes)
        config_arch(cfg)
        if (cfg.task, cfg.dataset) != (asked.task, asked.name):
            raise InputError(f'{config} is for {cfg.task} {cfg.dataset}, not {asked.task} {asked.name}')
        set_data_root(cfg, parsed.data_root or 'data')
        _check_data(asked, cfg, checked)
        identities = {seed: {'name': name, **describe(cfg, backbone, seed, pretraining)} for seed in seeds}
        # Both raise where the config does not fit.
        put_into(cfg, backbone)
        split_total_batch(cfg, processes)
        for seed, identity in identities.items():
            work_dir = folder / name / f'seed{seed}'
            own = [*arguments, '--seed', str(seed), '--work-dir', str(work_dir), '--resume']
            state = check_work_dir(work_dir, identity)
            if state != 'all' and options.slurm is None:
                check_float16(cfg)
            runs.append(Run(name, seed, work_dir, own, state, identity, TASKS[asked.task].module))
    return runs


def run_transfer(
    task: str, dataset: str, checkpoints: Mapping[str, str | Sequence[str]], options: Options
) -> list[dict[str, Any]]:
    """Fine-tune every backbone with every seed; what is finished stays, what is broken off goes on.

    Args:
        task: a key of :data:`transfer.tasks.TASKS`.
        dataset: a data set of it.
        checkpoints: name to checkpoint, pretraining work dir or ``'none'``, or to several; see
            :func:`transfer.contenders.named_checkpoints`.
        options: how to fine-tune.

    Returns:
        The content of each run's ``result.json`` with its ``work_dir``, by backbone and seed; nothing after a
        dry run.

    Raises:
        InputError: anything the user can mend; found before the first run starts, as far as that is possible.
        RunFailedError: runs failed; carries the ends of their logs.
    """
    found = find_task(task, dataset, options.config)
    if options.slurm is None:
        check_gpus(options.gpus, runs_at_a_time(options))
        check_amp(options.amp)
    else:
        slurm_parameters(options.slurm, options.gpus)
    if options.demo and options.data_root is None:
        from transfer import emoji_world

        emoji_world.ensure(Path(_DEMO_DATA))
    files = {
        name: [backbone_file(name, source, options.work_dir / 'backbones') for source in each_of(sources)]
        for name, sources in checkpoints.items()
    }
    runs = plan(found, files, options.work_dir / f'{task}_{dataset}', options)
    # They go into one table: what cannot stand side by side there must be known before the first GPU hour.
    before = collect(options.work_dir) if options.work_dir.is_dir() else []
    require_comparable([*before, *(run.identity for run in runs)])
    waiting = [run for run in runs if run.state != 'all']
    if task == 'probe' and waiting:
        from transfer.probe import check_run

        check_run(waiting[0].arguments)  # they all fit on the same images, by the same settings
    for run in runs:
        if run.state == 'all':
            print(f'{run.work_dir}: finished before', flush=True)
    title = f'{task} on {dataset}: {len(waiting)} of {len(runs)} runs to do'
    if options.dry_run:
        print('\n'.join([title, *dry_lines(waiting, options)]))
        return []
    if waiting:
        start(title, waiting, options.work_dir / f'{task}_{dataset}', options)
    return [
        json.loads((run.work_dir / 'result.json').read_text()) | {'work_dir': str(run.work_dir)}
        for run in runs
    ]


def _config_for(asked: Dataset, arch: str | None, archs: Sequence[str], options: Options) -> str:
    """The config of a network; random weights without a name take the first plain ResNet of ``archs``."""
    if options.config:
        return options.config
    resnets = [one for one in archs if one in ARCHS]
    if len(resnets) < len(archs) and asked.pyramid_config:
        return asked.pyramid_demo_config if options.demo else asked.pyramid_config
    arch = arch or next(iter(resnets), None)
    if arch is None and archs:
        raise InputError(
            f'{RANDOM!r} beside no plain ResNet has no network to go by: say {RANDOM}:{archs[0]}'
        )
    if options.demo:
        return asked.demo_config.format(network='r18' if arch in (None, *ARCHS) else 'timm')
    if arch is None:
        raise InputError(f'{RANDOM!r} alone has no network to go by: say {RANDOM}:resnet50, or --config')
    config = asked.config.format(network=arch.replace('resnet', 'r') if arch in ARCHS else 'timm')
    if not Path(config).is_file():
        there = ', '.join(sorted(path.name for path in Path(config).parent.glob('*.py')))
        raise InputError(f'no config for a {arch} ({config}): write one, or say --config. There are {there}')
    return config


def _check_data(asked: Dataset, cfg: Any, checked: list[Any]) -> None:
    """Check the data of a config, its data root set, as far as it is not among what was ``checked``."""
    if asked.own:
        if cfg.filename not in checked:
            from transfer.own_data import check_own_data

            check_own_data(cfg)
            checked.append(cfg.filename)
        return
    lists: dict[str, list[str]] = {}
    masks = {}
    for dataset in datasets_of(cfg):
        stem = Path(dataset.ann_file).stem
        lists.setdefault(str(data_folder(dataset)), []).append(stem)
        if 'seg_map_path' in (dataset.get('data_prefix') or {}):
            masks[stem] = Path(dataset.data_prefix.seg_map_path).name
    for root, stems in lists.items():
        key = (root, *dict.fromkeys(stems))
        if key not in checked:
            asked.check(root, lists=key[1:], **({'masks': masks} if masks else {}))
            checked.append(key)


def _seeded(
    name: str, backbones: Sequence[Backbone], seeds: Sequence[int]
) -> list[tuple[Backbone, int | None, Sequence[int]]]:
    """Each backbone of a name, the how-manieth of several pretrainings it is, and its seeds."""
    if len(backbones) == 1:
        return [(backbones[0], None, seeds)]
    if len(backbones) != len(seeds):
        raise InputError(
            f'{name} has {len(backbones)} pretrainings, each for a seed of its own, and there are '
            f'{len(seeds)} seeds: say --seeds {len(backbones)}; a name with more or fewer pretrainings goes '
            'into a call of its own'
        )
    for place, one in enumerate(backbones):
        same = [other.path for other in backbones[:place] if one.same_weights(other)]
        if same:
            raise InputError(
                f'{name} has {same[0]} and {one.path}, the same weights: that is one pretraining'
            )
    archs = {one.arch or one.path for one in backbones}
    if len(archs) > 1:
        raise InputError(f'{name} has pretrainings of several networks: {", ".join(sorted(archs))}')
    return [(one, place, [seed]) for place, (one, seed) in enumerate(zip(backbones, seeds, strict=True), 1)]


def _arguments(config: str, name: str, backbone: str, pretraining: int | None, options: Options) -> list[str]:
    """Return the arguments of a task's module that all seeds of a backbone share."""
    data_root = options.data_root or (_DEMO_DATA if options.demo else None)
    return [
        *[config, '--backbone', backbone, '--name', name],
        *(['--pretraining', str(pretraining)] if pretraining else []),
        *(['--data-root', data_root] if data_root else []),
        *(['--amp'] if options.amp else []),
        *(['--launcher', 'pytorch'] if options.gpus > 1 else []),
        *(['--cfg-options', *options.cfg_options] if options.cfg_options else []),
    ]
