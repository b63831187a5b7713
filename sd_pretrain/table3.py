"""The paper's Table 3: errors on CIFAR-100 by BL, SE and SD (Section 4.1)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sd_pretrain.cifar_files import FOLDER, ensure_cifar100
from sd_pretrain.experiments import Algorithm, Experiments
from sd_pretrain.paper_table import Column, Layout, ensemble_column, settings_note, snapshot_column
from sd_pretrain.table_runs import check_nets, make_table

ALGORITHMS = (
    Algorithm('bl', 'BL'),
    Algorithm('se', 'SE'),
    Algorithm('sd_t2', 'SD', 2.0),
    Algorithm('sd_t3', 'SD', 3.0),
)
NETS = {
    'resnet20': 'ResNet20',
    'resnet32': 'ResNet32',
    'resnet56': 'ResNet56',
    'resnet110': 'ResNet110',
    'densenet100': 'DenseNet100',
    'densenet190': 'DenseNet190',
}
# Table 3: at the end of each mini-generation, at the best epoch, of the ensemble.
PAPER = {
    'resnet20': {
        'bl': (None, None, None, 33.57, 33.57, None),
        'se': (36.17, 33.36, 32.98, 32.66, 32.54, 30.86),
        'sd_t2': (36.17, 33.78, 32.98, 32.31, 32.31, 32.08),
        'sd_t3': (36.17, 33.69, 32.24, 31.97, 31.76, 30.76),
    },
    'resnet32': {
        'bl': (None, None, None, 31.61, 31.61, None),
        'se': (33.78, 32.15, 31.41, 30.74, 30.51, 28.93),
        'sd_t2': (33.78, 32.07, 31.05, 30.67, 30.57, 29.80),
        'sd_t3': (33.78, 31.52, 30.64, 30.32, 30.16, 28.71),
    },
    'resnet56': {
        'bl': (None, None, None, 30.23, 29.94, None),
        'se': (32.85, 31.60, 30.45, 29.68, 29.55, 27.93),
        'sd_t2': (32.85, 30.47, 29.72, 29.29, 29.22, 28.11),
        'sd_t3': (32.85, 30.82, 29.55, 29.37, 29.28, 27.74),
    },
    'resnet110': {
        'bl': (None, None, None, 28.77, 28.53, None),
        'se': (31.89, 29.81, 29.07, 28.27, 28.09, 26.45),
        'sd_t2': (31.89, 29.84, 28.71, 27.71, 27.52, 27.19),
        'sd_t3': (31.89, 29.22, 28.37, 27.87, 27.75, 26.19),
    },
    'densenet100': {
        'bl': (None, None, None, 22.49, 22.00, None),
        'se': (24.31, 22.76, 22.16, 22.18, 22.00, 19.63),
        'sd_t2': (24.31, 23.10, 22.06, 21.78, 21.59, 20.27),
        'sd_t3': (24.31, 23.19, 21.60, 21.17, 21.17, 19.71),
    },
    'densenet190': {
        'bl': (None, None, None, 16.82, 16.69, None),
        'se': (18.98, 18.12, 16.95, 16.84, 16.70, 15.70),
        'sd_t2': (18.98, 17.48, 16.32, 18.02, 16.06, 15.72),
        'sd_t3': (18.98, 17.67, 16.95, 18.65, 16.33, 15.92),
    },
}
LAYOUT = Layout(
    number=3,
    columns=(
        *(snapshot_column(k, f'M_#L{k}') for k in (1, 2, 3, 4)),
        Column('best', 'best', lambda found, _: found['best'] and found['best']['top1']),
        ensemble_column('ensemble'),
    ),
    last='L4',
    generations=4,
    algorithms=ALGORITHMS,
    nets=NETS,
    paper=PAPER,
)
# A quick run shows that everything works: 160 iterations of 50 images, which no network learns much from.
QUICK_ENDS = (2, 4, 6, 8)
QUICK_OPTIONS = (
    'total_batch_size=50',
    'train_dataloader.dataset.subset=1000',
    'val_dataloader.dataset.subset=500',
    'test_dataloader.dataset.subset=500',
    'default_hooks.logger.interval=5',
)
QUICK_NOTE = (
    'Quick: 1,000 of the 50,000 training images, 500 of the 10,000 test images, 8 epochs instead of 164 or '
    "300. Our numbers show that everything runs, and cannot be compared with the paper's."
)
_CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'cifar100'


def config(net: str, algorithm: Algorithm) -> str:
    """The config of one row: ``configs/cifar100/sd_resnet20_t2.py``."""
    name, _, suffix = algorithm.key.partition('_')
    return str(_CONFIGS / f'{name}_{net}{"_" + suffix if suffix else ""}.py')


def run_table3(
    work_dir: Path,
    data_root: Path,
    nets: Sequence[str],
    *,
    quick: bool = False,
    options: Sequence[str] = (),
    so_far: bool = False,
    **training: Any,
) -> tuple[Path, Path]:
    """Run what is not finished, and write ``table3.json`` and ``table3.md``.

    Args:
        work_dir: where all of it goes.
        data_root: folder of ``cifar-100-python``, which is downloaded if it is not there.
        nets: keys of ``NETS``.
        quick: a few images and epochs.
        options: further ``KEY=VALUE`` for all configs.
        so_far: run nothing; the table has the snapshots that unfinished runs have by now.
        **training: ``seeds``, ``gpus``, ``parallel``, ``amp`` of :class:`Experiments`.

    Returns:
        The paths of both.

    Raises:
        InputError: anything the user can mend.
        RunFailedError: a run failed.
    """
    check_nets(LAYOUT, nets)
    counts = ensure_cifar100(data_root / FOLDER, full_size=not quick)
    experiments = Experiments(
        work_dir=work_dir,
        data='cifar100 quick' if quick else 'cifar100',
        data_root=data_root,
        algorithms=ALGORITHMS,
        config=config,
        ends=QUICK_ENDS if quick else None,
        options=(*(QUICK_OPTIONS if quick else ()), *options),
        **training,
    )
    notes = (*((QUICK_NOTE,) if quick else ()), *settings_note(options, experiments.amp))
    return make_table(LAYOUT, experiments, nets, counts, notes=notes, so_far=so_far)
