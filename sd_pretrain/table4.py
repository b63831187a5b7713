"""The paper's Table 4: errors on ILSVRC2012 by BL, SE and SD, and of SE's fusion (Section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sd_pretrain.experiments import Algorithm, Experiments
from sd_pretrain.imagenet import check_imagenet
from sd_pretrain.paper_table import Layout, ensemble_column, settings_note, snapshot_column
from sd_pretrain.table_runs import check_nets, make_table

ALGORITHMS = (Algorithm('bl', 'BL'), Algorithm('se', 'SE'), Algorithm('sd', 'SD', 2.0))
NETS = {'r101': 'ResNet101', 'r152': 'ResNet152'}
# Table 4: top-1 and top-5 after each mini-generation. The text of Section 4.2.2: SE's two snapshots, fused.
PAPER = {
    'r101': {
        'bl': (None, None, 21.62, 5.80, None, None),
        'se': (22.94, 6.51, 22.14, 6.07, 21.66, None),
        'sd': (22.94, 6.51, 21.25, 5.55, None, None),
    },
    'r152': {
        'bl': (None, None, 21.17, 5.66, None, None),
        'se': (22.56, 6.44, 21.84, 5.84, 21.19, None),
        'sd': (22.56, 6.44, 20.93, 5.55, None, None),
    },
}
LAYOUT = Layout(
    number=4,
    columns=(
        snapshot_column(1, 'M_#L1 top-1'),
        snapshot_column(1, 'M_#L1 top-5', 'top5'),
        snapshot_column(2, 'M_#L2 top-1'),
        snapshot_column(2, 'M_#L2 top-5', 'top5'),
        ensemble_column('fused top-1'),
        ensemble_column('fused top-5', 'top5'),
    ),
    last='L2',
    generations=2,
    algorithms=ALGORITHMS,
    nets=NETS,
    paper=PAPER,
)
# A demo shows that everything works, on the networks themselves: 36 iterations at 32 px on the CPU.
DEMO_ENDS = (2, 4)
DEMO_OPTIONS = (
    'total_batch_size=32',
    'model.num_classes=100',
    'train_dataloader.num_workers=0',
    'val_dataloader.num_workers=0',
    'test_dataloader.num_workers=0',
    'train_dataloader.dataset.size=32',
    'train_dataloader.dataset.subset=300',
    'val_dataloader.dataset.size=32',
    'val_dataloader.dataset.resize=36',
    'val_dataloader.dataset.subset=200',
    'test_dataloader.dataset.size=32',
    'test_dataloader.dataset.resize=36',
    'test_dataloader.dataset.subset=200',
    'optim_wrapper.optimizer.lr=0.01',
    'default_hooks.logger.interval=1',
    # Half a gigabyte each.
    'default_hooks.checkpoint.interval=2',
    'default_hooks.checkpoint.max_keep_ckpts=1',
)
DEMO_NOTE = (
    'Demo: 300 drawn images of 100 classes at 32 px, 4 epochs instead of 90, tested on 200. Our numbers show '
    "that everything runs, and cannot be compared with the paper's."
)
_CONFIGS = Path(__file__).resolve().parents[1] / 'configs'


def config(net: str, algorithm: Algorithm) -> str:
    """The config of one row: ``configs/sd_r152_imagenet.py``."""
    return str(_CONFIGS / f'{algorithm.key}_{net}_imagenet.py')


def run_table4(
    work_dir: Path,
    data_root: Path,
    nets: Sequence[str] = tuple(NETS),
    *,
    demo: bool = False,
    options: Sequence[str] = (),
    so_far: bool = False,
    **training: Any,
) -> tuple[Path, Path]:
    """Run what is not finished, and write ``table4.json`` and ``table4.md``.

    Args:
        work_dir: where all of it goes.
        data_root: folder of ``ILSVRC2012``.
        nets: keys of ``NETS``.
        demo: a few small images and epochs.
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
    counts = check_imagenet(data_root / 'ILSVRC2012', full_size=not demo)
    experiments = Experiments(
        work_dir=work_dir,
        data='demo' if demo else 'ilsvrc2012',
        data_root=data_root,
        algorithms=ALGORITHMS,
        config=config,
        ends=DEMO_ENDS if demo else None,
        options=(*(DEMO_OPTIONS if demo else ()), *options),
        **training,
    )
    notes = (*((DEMO_NOTE,) if demo else ()), *settings_note(options, experiments.amp))
    return make_table(LAYOUT, experiments, nets, counts, notes=notes, so_far=so_far)
