"""The paper's Table 2: teachers that share their first epochs with the student (Section 3.3.2).

One network is trained to the end, ``M_#300``. Its states after 0, 75 and 150 epochs are trained on with other
shuffling and augmentation: these are the teachers ``M^T_#0``, ``M^T_#75`` and ``M^T_#150``. Then the same
states are trained on as students, by Eqn 2 from there on. All six pairs that the paper prints are trained:
``#0`` by ``#0^T``; ``#75`` by ``#0^T`` and ``#75^T``; ``#150`` by ``#0^T``, ``#75^T`` and ``#150^T``. The
others are probabilistically the same as one of these.

The paper states no temperature for this table; if nothing else is said it is 2 here, as for its other
CIFAR-100 runs (Section 4.1.1), with ``lambda_S = 1 + 1/T`` and ``lambda_T = 1``. A student goes on with the
shuffling of ``M_#300``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from mmengine.config import Config

from sd_pretrain.cifar_files import ensure_cifar100
from sd_pretrain.cli import InputError
from sd_pretrain.experiments import epochs_done, parse_options
from sd_pretrain.launch import check_gpus
from sd_pretrain.prepare import load_config
from sd_pretrain.pretrainings import Pretraining, fork, run_pretrainings
from sd_pretrain.run_record import check_snapshots
from sd_pretrain.snapshot_hook import check_loss_args
from sd_pretrain.table2_report import TEMPERATURE, write_table2
from sd_pretrain.work_dir import claim

NETWORKS = ('densenet100', 'densenet190', 'resnet20', 'resnet32', 'resnet56', 'resnet110')
_CONFIGS = Path(__file__).resolve().parents[1] / 'configs' / 'cifar100'
_QUICK_EPOCHS = 4
_QUICK = (
    f'train_cfg.max_epochs={_QUICK_EPOCHS}',
    f'custom_hooks.0.ends=[{_QUICK_EPOCHS}]',
    f'param_scheduler.0.periods=[{_QUICK_EPOCHS}]',
    'total_batch_size=50',
    'train_dataloader.dataset.subset=1000',
    'val_dataloader.dataset.subset=1000',
    'default_hooks.logger.interval=5',
)


@dataclass(frozen=True)
class Table2:
    """What to train.

    Args:
        work_dir: holds a folder for each repetition, and the table.
        net: one of ``NETWORKS``; the paper's is densenet100.
        seeds: one for each repetition; the paper's numbers are averages of two.
        quick: 1,000 images and 4 epochs, to see it work.
        options: further ``KEY=VALUE`` of ``--cfg-options``, for all runs.
        data_root: where the data is; default: as the config says.
        gpus: processes of one run.
        parallel: runs side by side.
        amp: train in bfloat16.
        temperature: of the teachers' logits.
    """

    work_dir: Path
    net: str = 'densenet100'
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    options: tuple[str, ...] = ()
    data_root: Path | None = None
    gpus: int = 1
    parallel: int = 1
    amp: bool = False
    temperature: float = TEMPERATURE

    @property
    def config(self) -> Path:
        """The baseline's config, which all runs share."""
        return _CONFIGS / f'bl_{self.net}.py'

    @cached_property
    def cfg(self) -> Config:
        """The same with the options of all runs."""
        options = parse_options((*(_QUICK if self.quick else ()), *self.options))
        return load_config(self.config, self.data_root, options=options)

    @property
    def epochs(self) -> int:
        """Length of each run."""
        return self.cfg.train_cfg.max_epochs

    @property
    def starts(self) -> tuple[int, int, int]:
        """The paper's 0, 75 and 150 epochs of 300: none, a quarter and half of the run."""
        return (0, self.epochs // 4, self.epochs // 2)


def pairs(starts: tuple[int, int, int]) -> list[tuple[int, int]]:
    """The pairs (student's start, teacher's start) that the paper fills its table with."""
    return [(student, teacher) for student in starts for teacher in starts if teacher <= student]


def run_table2(what: Table2) -> Path:
    """Train what is not done yet, and write ``table2.md`` and ``table2.json`` into the work dir.

    Returns:
        The path of ``table2.md``.

    Raises:
        InputError: anything the user can mend.
        RunFailedError: a run failed; carries the end of its log.
    """
    check_gpus(what.gpus, what.parallel, share=True)
    check_loss_args({'temperature': what.temperature})
    if what.cfg.custom_hooks[0].get('temperature') is not None:
        raise InputError('--cfg-options set a temperature; that of Table 2 is --temperature T')
    counts = ensure_cifar100(what.cfg.train_dataloader.dataset.data_root, full_size=not what.quick)
    wanted = {
        'data': 'cifar100 quick' if what.quick else 'cifar100',
        'counts': counts,
        'amp': what.amp,
        'net': what.net,
        'temperature': what.temperature,
        'options': list(what.options),
    }
    claim(what.work_dir, wanted)
    repetitions = [Repetition(what, seed) for seed in what.seeds]
    _, quarter, half = what.starts
    for start, before in ((quarter, None), (half, quarter)):
        title = f'First {start} epochs, which all share'
        _run(what, title, [run for one in repetitions for run in one.common(start, before)])
    _run(what, 'Teachers', [run for one in repetitions for run in one.teachers()])
    for one in repetitions:
        for start in what.starts:
            check_snapshots(one.teacher(start), 1)
    _run(what, 'Students', [run for one in repetitions for run in one.students()])
    return write_table2(
        what.work_dir,
        net=what.net,
        epochs=what.epochs,
        starts=what.starts,
        temperature=what.temperature,
        quick=what.quick,
        options=what.options,
        amp=what.amp,
        counts=counts,
        repetitions={one.seed: one.folders() for one in repetitions},
    )


def _run(what: Table2, title: str, runs: list[Pretraining]) -> None:
    if runs:
        run_pretrainings(
            title, runs, data_root=what.data_root, gpus=what.gpus, parallel=what.parallel, amp=what.amp
        )


@dataclass(frozen=True)
class Repetition:
    """All runs of one seed: its initial weights, and the shuffling of ``M_#300`` and of the students."""

    what: Table2
    seed: int

    @property
    def folder(self) -> Path:
        """Where they all are."""
        return self.what.work_dir / f'seed_{self.seed}'

    def common(self, start: int, before: int | None) -> list[Pretraining]:
        """The part up to ``start``, going on from a copy of that up to ``before``; none if it is there."""
        work_dir = self.folder / f'common_{start}'
        if before is not None:
            fork(self.folder / f'common_{before}', work_dir)
        if epochs_done(work_dir) == start:
            return []
        return [self._run(f'common {start}', work_dir, seed=self.seed, stop_after=start)]

    def teachers(self) -> list[Pretraining]:
        """``M_#300``, and the teachers: trained on from each start, each with a randomness of its own."""
        half = self.what.starts[-1]
        whole = self.folder / f'm_{self.what.epochs}'
        # No fork: the same run goes on.
        fork(self.folder / f'common_{half}', whole)
        runs = [self._run(f'M#{self.what.epochs}', whole, seed=self.seed)]
        for start in self.what.starts:
            run = self._run(
                f'#{start}^T',
                self.teacher(start),
                # Not a seed that any repetition has as its own.
                seed=1000 * (self.seed + 1) + start,
                fork_of=self._common_part(start),
            )
            runs.append(run)
        return runs

    def students(self) -> list[Pretraining]:
        """One run for each cell of the table."""
        runs = []
        for student, teacher in pairs(self.what.starts):
            lesson = {
                'distill': 'True',
                'temperature': str(self.what.temperature),
                'teacher.checkpoint': f'"{self.teacher(teacher) / "snapshot_1.pth"}"',
                'teacher.from_epoch': str(student),
            }
            run = self._run(
                f'#{student} by #{teacher}^T',
                self._cell(student, teacher),
                seed=self.seed,
                fork_of=self._common_part(student),
                lesson=lesson,
            )
            runs.append(run)
        return runs

    def teacher(self, start: int) -> Path:
        """Work dir of the teacher that is trained on from ``start``."""
        return self.folder / f't_{start}'

    def folders(self) -> dict[str, Path]:
        """Work dirs by what they hold: ``'M'``, ``'T<start>'`` and ``'S<start> T<start>'``."""
        starts = self.what.starts
        return {
            'M': self.folder / f'm_{self.what.epochs}',
            **{f'T{start}': self.teacher(start) for start in starts},
            **{f'S{s} T{t}': self._cell(s, t) for s, t in pairs(starts)},
        }

    def _common_part(self, start: int) -> Path | None:
        # Nothing is shared up to epoch 0 but the initial weights, which model.init_seed gives.
        return self.folder / f'common_{start}' if start else None

    def _cell(self, student: int, teacher: int) -> Path:
        return self.folder / f's_{student}_by_t_{teacher}'

    def _run(
        self,
        name: str,
        work_dir: Path,
        seed: int,
        stop_after: int | None = None,
        fork_of: Path | None = None,
        lesson: Mapping[str, str] | None = None,
    ) -> Pretraining:
        options = [
            f'model.init_seed={self.seed}',
            f'randomness.seed={seed}',
            *(_QUICK if self.what.quick else ()),
            *(f'custom_hooks.0.{key}={value}' for key, value in (lesson or {}).items()),
            *self.what.options,
        ]
        if len(self.what.seeds) > 1:
            name = f'{name} ({self.seed})'
        return Pretraining(name, str(self.what.config), work_dir, tuple(options), fork_of, stop_after)
