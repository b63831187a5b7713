"""What a published network's card (Hugging Face) and index entry (OpenMMLab's metafile) say."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCardData
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from mmengine.config import Config

from sd_pretrain.cli import InputError
from sd_pretrain.schedule import snapshot_hooks
from transfer import evidence, table
from transfer.checkpoint_io import read_meta, sha256_of
from transfer.results import collect, on_demo_data
from transfer.tasks import TASKS, all_datasets, all_metrics

LICENSES = (
    *('apache-2.0', 'mit', 'bsd-2-clause', 'bsd-3-clause', 'cc0-1.0', 'cc-by-4.0', 'cc-by-sa-4.0'),
    *('cc-by-nc-4.0', 'cc-by-nc-sa-4.0', 'gpl-3.0', 'lgpl-3.0', 'openrail', 'other'),
)
PAPER = {
    'Title': 'Snapshot Distillation: Teacher-Student Optimization in One Generation',
    'URL': 'https://arxiv.org/abs/1812.00123',
}
_ACCURACIES = {'top1': 'Top 1 Accuracy', 'top5': 'Top 5 Accuracy'}
_DEMO = 'emoji world (demo)'


@dataclass(frozen=True)
class Transfer:
    """A metric after fine-tuning: mean (a fraction) over ``seeds``, and what is said of its difference."""

    task: str
    dataset: str
    metric: str
    value: float
    seeds: tuple[int, ...]
    verdict: str | None


@dataclass(frozen=True)
class Transfers:
    """The metrics, and the Markdown tables of all backbones of their work dirs."""

    values: tuple[Transfer, ...] = ()
    tables: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """All that is known of a network when it is published; no ``network_args``: it is a plain ResNet."""

    name: str
    arch: str
    parameters: int
    config: str
    recipe: dict[str, Any]
    accuracies: dict[str, float]
    transfers: Transfers
    files: dict[str, str]
    source_sha256: str
    license: str
    network_args: dict[str, Any] | None = None

    @property
    def pth(self) -> str:
        """Name of the PyTorch file."""
        return next(name for name in self.files if name.endswith('.pth'))

    @property
    def safetensors(self) -> str:
        """Name of the safetensors file."""
        return next(name for name in self.files if name.endswith('.safetensors'))

    @property
    def data(self) -> str:
        """What it was trained on."""
        return _DEMO if _is_demo(self.config) else str(self.recipe['data'])

    @property
    def imagenet(self) -> bool:
        """Whether it was trained on ILSVRC2012's thousand classes."""
        return self.recipe['classes'] == 1000 and 'imagenet' in self.name


def check_license(name: str) -> None:
    """Raise InputError where Hugging Face's cards do not know a licence."""
    if name not in LICENSES:
        raise InputError(f'unknown licence {name!r}: one of {", ".join(LICENSES)}')


def recipe(cfg: Config) -> dict[str, Any]:
    """Read the recipe of a pretraining off its config."""
    optimizer = cfg.optim_wrapper.optimizer
    hook = next(iter(snapshot_hooks(cfg)), None)
    distilled = hook is not None and hook.get('distill', True)
    algorithm = 'BL (baseline)'
    if distilled and hook.get('teacher'):
        algorithm = 'teacher-student optimisation, taught by another run'
    elif distilled:
        algorithm = 'SD (Snapshot Distillation)'
    elif hook is not None and len(hook.ends) > 1:
        algorithm = 'SE (Snapshot Ensemble)'
    dataset = cfg.train_dataloader.dataset
    found = {
        'algorithm': algorithm,
        'network': cfg.model.network,
        'classes': cfg.model.num_classes,
        'data': dataset.get('data_root', ''),
        'image size': dataset.get('size'),
        'epochs': cfg.train_cfg.max_epochs,
        'total batch': cfg.total_batch_size,
        'optimizer': optimizer.type.removeprefix('Fused')
        + (f', momentum {optimizer.momentum}' if 'momentum' in optimizer else '')
        + (' (Nesterov)' if optimizer.get('nesterov') else ''),
        'learning rate': optimizer.lr,
        'weight decay': optimizer.get('weight_decay', 0),
        'seed': cfg.get('randomness', {}).get('seed'),
    }
    if hook is not None:
        found |= {'mini-generations (K)': len(hook.ends), 'ends (epochs)': list(hook.ends)}
        if distilled:
            found['temperature (T)'] = hook.get('temperature')
    return {key: value for key, value in found.items() if value is not None}


def transfer_results(folders: Sequence[Path], source_sha256: str, baseline: str) -> Transfers:
    """Collect the fine-tunings of the network with that checkpoint from transfer work dirs.

    Raises:
        InputError: a folder has none of them.
    """
    values: list[Transfer] = []
    tables: list[str] = []
    for folder in folders:
        results = collect(folder, first=[baseline])
        files = _converted(folder, results, source_sha256)
        ours = [one for one in results if one.get('sha256') in files]
        if not ours:
            raise InputError(f'{folder} has no finished fine-tuning of this network, only of others')
        names = {one['name'] for one in ours}
        verdicts = {
            (one.name, one.metric): one.verdict.text for one in evidence.compare(results) if one.name in names
        }
        for metric in all_metrics():
            runs = [one for one in ours if metric in one['metrics']]
            if runs:
                values.append(
                    Transfer(
                        runs[0]['task'],
                        _dataset(runs[0]),
                        metric,
                        fmean(one['metrics'][metric] for one in runs),
                        tuple(one['seed'] for one in runs),
                        verdicts.get((runs[0]['name'], metric)),
                    )
                )
        tables.append(table.format_table(results, fmt='markdown'))
        methods = {row.name for row in table.rows(results) if row.pretrainings}
        which = dict.fromkeys(f'{one["name"]}, seed {one["seed"]}' for one in ours if one['name'] in methods)
        if which:
            tables.append(f'This network is {" and ".join(which)}; verdicts are about all pretrainings.')
    return Transfers(tuple(values), tuple(tables))


def model_card(facts: Facts) -> str:
    """The card as Markdown, with Hugging Face's front matter."""
    data = ModelCardData(
        library_name='timm',
        license=facts.license,
        license_name='see-the-owner' if facts.license == 'other' else None,
        pipeline_tag='image-classification',
        tags=['image-classification', 'timm', 'snapshot-distillation', facts.arch],
        datasets=['ILSVRC/imagenet-1k'] if facts.imagenet else None,
        model_name=facts.name,
        eval_results=_eval_results(facts) or None,
    )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / 'templates'),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    body = environment.get_template('model_card.md.j2').render(
        facts=facts, accuracies=_ACCURACIES, percent=table.percent, paper=PAPER
    )
    return f'---\n{data.to_yaml()}\n---\n\n{body}'


def metafile(facts: Facts) -> str:
    """The entry of OpenMMLab's model index, as YAML."""
    data = 'ImageNet-1k' if facts.imagenet else facts.data
    results = []
    if facts.accuracies:
        metrics = {_ACCURACIES[key]: round(100 * value, 2) for key, value in facts.accuracies.items()}
        results.append({'Task': 'Image Classification', 'Dataset': data, 'Metrics': metrics})
    transfers: list[dict[str, Any]] = []
    for one in facts.transfers.values:
        title = all_metrics()[one.metric].title
        head = {'Task': TASKS[one.task].openmmlab, 'Dataset': one.dataset}
        # Another work dir may have the same metric, of another detector.
        fits = (part for part in transfers if part.items() >= head.items() and title not in part['Metrics'])
        entry = next(fits, None)
        if entry is None:
            transfers.append(entry := head | {'Metrics': {}})
        entry['Metrics'][title] = round(100 * one.value, 2)
    collection = 'Snapshot Distillation'
    entry = {
        'Collections': [
            {
                'Name': collection,
                'Metadata': {
                    'Training Data': data,
                    'Training Techniques': [facts.recipe['algorithm'], _technique(facts), 'Weight Decay'],
                    'Architecture': ['ResNet' if facts.network_args is None else facts.arch],
                },
                'Paper': PAPER,
                'README': 'README.md',
            }
        ],
        'Models': [
            {
                'Name': facts.name,
                'In Collection': collection,
                'Config': facts.config,
                'Metadata': {
                    'Training Data': data,
                    'Epochs': facts.recipe['epochs'],
                    'Batch Size': facts.recipe['total batch'],
                    'Parameters': facts.parameters,
                },
                'Results': [*results, *transfers],
                'Weights': facts.pth,
            }
        ],
    }
    return yaml.safe_dump(entry, sort_keys=False, allow_unicode=True)


def _technique(facts: Facts) -> str:
    optimizer = str(facts.recipe.get('optimizer', ''))
    return 'SGD with Momentum' if optimizer.startswith('SGD, momentum') else optimizer


def _is_demo(config: str) -> bool:
    return 'demo' in Path(config).parts


def _dataset(result: Mapping[str, Any]) -> str:
    if on_demo_data(result):
        return _DEMO
    known = all_datasets().get((result['task'], result.get('dataset')))
    return known.card if known else result.get('dataset', '')


def _eval_results(facts: Facts) -> list[EvalResult]:
    kind, name = ('ILSVRC/imagenet-1k', 'ILSVRC2012') if facts.imagenet else ('custom', facts.data)
    found = [
        EvalResult(
            task_type='image-classification',
            dataset_type=kind,
            dataset_name=name,
            dataset_split='val',
            metric_type='accuracy',
            metric_name=_ACCURACIES[key],
            metric_value=round(100 * value, 2),
        )
        for key, value in facts.accuracies.items()
    ]
    for one in facts.transfers.values:
        found.append(
            EvalResult(
                task_type=TASKS[one.task].hugging_face,
                dataset_type='custom',
                dataset_name=one.dataset,
                metric_type=TASKS[one.task].metric_type,
                metric_name=all_metrics()[one.metric].title,
                metric_value=round(100 * one.value, 2),
            )
        )
    return found


def _converted(folder: Path, results: Sequence[Mapping[str, Any]], source_sha256: str) -> set[str]:
    """SHA-256 of the backbone files of these results that are that checkpoint, or were converted from it."""
    used = [Path(one['backbone']) for one in results if one.get('backbone')]
    digests = {source_sha256}
    for path in {*(folder / 'backbones').glob('*.pth'), *used}:
        with suppress(InputError):  # no converted file
            if read_meta(path)['source_sha256'] == source_sha256:
                digests.add(sha256_of(path))
    return digests
