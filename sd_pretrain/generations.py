"""Training in generations (Section 3.1): each one is taught by the last, the first by nobody."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sd_pretrain.cli import InputError
from sd_pretrain.launch import check_gpus
from sd_pretrain.markdown import markdown_table
from sd_pretrain.prepare import load_config
from sd_pretrain.pretrainings import Pretraining, run_pretrainings
from sd_pretrain.run_record import RESULT
from sd_pretrain.work_dir import write_json

_TEACHER = 'custom_hooks.0.teacher'


@dataclass(frozen=True)
class Generations:
    """A family of configs and how many generations to train.

    Args:
        config: config of the taught generations, with a ``teacher`` out of a file and the name of the first
            generation's config beside it, ``patriarch`` (the paper's ``M^(0)``).
        count: number of generations, the first included.
        work_dir: holds ``generation_1``, ``generation_2``, ... and the table.
        options: ``KEY=VALUE`` of ``--cfg-options``, for all generations.
        seed: seed of the first generation; each next has the next one, and so other initial weights.
        data_root: where the data is; default: as the configs say.
        gpus: processes of one run.
        amp: train in bfloat16.
    """

    config: Path
    count: int
    work_dir: Path
    options: tuple[str, ...] = ()
    seed: int = 0
    data_root: Path | None = None
    gpus: int = 1
    amp: bool = False


def run_generations(what: Generations) -> Path:
    """Train what is not done yet, one generation after the other, and write the table.

    Returns:
        The path of ``generations.md``; ``generations.json`` lies beside it.

    Raises:
        InputError: the config is of no such family, or anything else the user can mend.
        RunFailedError: a run failed.
    """
    if what.count < 1:
        raise InputError(f'at least 1 generation, found {what.count}')
    check_gpus(what.gpus)
    first = first_config(what.config)
    rows: list[dict[str, Any]] = []
    for generation in range(1, what.count + 1):
        work_dir = what.work_dir / f'generation_{generation}'
        config, options = first, [f'randomness.seed={what.seed + generation - 1}']
        if generation > 1:
            config = what.config
            options += _teacher_options(what, generation, rows[-1])
        run = Pretraining(
            f'generation {generation}', str(config), work_dir, options=(*options, *what.options)
        )
        run_pretrainings(
            f'Generation {generation} of {what.count}: {config.stem}',
            [run],
            data_root=what.data_root,
            gpus=what.gpus,
            amp=what.amp,
        )
        result = json.loads((work_dir / RESULT).read_text())
        rows.append(
            {
                'generation': generation,
                'config': str(config),
                'seed': what.seed + generation - 1,
                'checkpoint': str(work_dir / result['checkpoint']),
                'top1': result['top1'],
                'top5': result['top5'],
            }
        )
    content = {'schema': 1, 'config': str(what.config), 'options': list(what.options), 'generations': rows}
    write_json(what.work_dir / 'generations.json', content)
    path = what.work_dir / 'generations.md'
    path.write_text(generations_markdown(rows))
    return path


def first_config(config: Path) -> Path:
    """The config of the first generation, which a family's config names as ``patriarch``, beside it.

    Raises:
        InputError: it names none, or has no teacher out of a file.
    """
    cfg = load_config(config)
    hooks = cfg.get('custom_hooks') or []
    if not cfg.get('patriarch') or not hooks or not hooks[0].get('teacher'):
        raise InputError(
            f"{config} is no config of taught generations: it needs patriarch='<config of the first "
            "generation>' and, in its first hook, a teacher; see configs/cifar100/ban_resnet20.py"
        )
    path = config.parent / cfg.patriarch
    if not path.is_file():
        raise InputError(f'{config} names the first generation {path}, which is not there')
    return path


def generations_markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The table of the generations' errors; ``top1`` and ``top5`` of ``rows`` are fractions."""
    head = ['generation', 'config', 'top-1 error, %', 'top-5 error, %']
    cells = [
        [
            str(row['generation']),
            Path(row['config']).stem,
            *(f'{100 - 100 * row[key]:.2f}' for key in ('top1', 'top5')),
        ]
        for row in rows
    ]
    note = 'One run each: how far the differences between generations can be trusted is not known.'
    return f'{markdown_table(head, cells, text_columns=2)}\n\n{note}\n'


def _teacher_options(what: Generations, generation: int, last: dict[str, Any]) -> list[str]:
    options = [f'{_TEACHER}.checkpoint="{last["checkpoint"]}"']
    if generation > 2:
        # From here on the teacher is of the student's own network, not of the first generation's.
        teacher = load_config(what.config).custom_hooks[0].teacher
        options += [f'{_TEACHER}.{key}=None' for key in ('network', 'network_args') if teacher.get(key)]
    return options
