"""A finished pretraining as files that timm, and of ResNets torchvision and mmdet load, with model card."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from mmengine.config import Config
from torch import Tensor

from sd_pretrain.cli import InputError
from sd_pretrain.safe_load import load_checkpoint
from sd_pretrain.work_dir import read_json
from transfer import architecture, checkpoint_io, sources
from transfer.convert import cover, require_finite
from transfer.model_card import Facts, check_license, metafile, model_card, recipe, transfer_results
from transfer.timm_network import TimmNetwork, recorded_network
from transfer.verify import quiet, relative_difference

_TOLERANCE = 1e-5


@dataclass(frozen=True)
class Published:
    """The files that :func:`publish` has written."""

    pth: Path
    safetensors: Path
    card: Path
    metafile: Path


def publish(
    work_dir: Path, out: Path, results: Sequence[Path] = (), license: str = 'other', baseline: str = 'BL'
) -> Published:
    """Publish the network of a finished pretraining.

    The weights go out as a plain dictionary of tensors, a ResNet's under torchvision's names, which are
    timm's and mmdet's too, others' under timm's; both files are loaded by all these libraries, and compared,
    before anything appears in ``out``.

    Args:
        work_dir: of a finished pretraining.
        out: a new folder, or one that holds these very files.
        results: work dirs of ``tools/transfer.sh`` with fine-tunings of this network.
        license: an identifier that Hugging Face's cards know.
        baseline: what the transfer results are compared with, where it is among them.

    Raises:
        InputError: the pretraining has not ended, the folder holds something else, or the results are of
            other networks.
    """
    check_license(license)
    result = _result(work_dir)
    cfg = _config(work_dir, result)
    file = sources.resolve(work_dir).path
    checkpoint = load_checkpoint(file)
    network = recorded_network(checkpoint)
    if network is None:
        weights = architecture.read_weights(checkpoint, str(file))
        arch = architecture.detect_arch(weights.tensors, str(file))
        tensors, _, _ = cover(weights.tensors, arch, 'torchvision', str(file))
    else:
        arch = network.name
        tensors = network.read_weights(checkpoint, str(file), cfg.model.num_classes)
        require_finite(tensors, str(file))
    stem = Path(result['config']).stem
    source_sha256 = checkpoint_io.sha256_of(file)
    with tempfile.TemporaryDirectory(dir=_parent(out), prefix=f'.{out.name}.') as part:
        staged = Path(part)
        names = _write_weights(tensors, staged, stem)
        files = (staged / names[0], staged / names[1])
        if network is None:
            check_loadable(*files, arch, len(tensors['fc.weight']))
        else:
            check_timm_loads(files, network, tensors, cfg.model.num_classes)
        facts = Facts(
            name=stem,
            arch=arch,
            parameters=sum(value.numel() for name, value in tensors.items() if _is_parameter(name)),
            config=result['config'],
            recipe=recipe(cfg),
            network_args=None if network is None else network.args,
            accuracies={key: result[key] for key in ('top1', 'top5') if key in result},
            transfers=transfer_results(results, source_sha256, baseline),
            files={name: checkpoint_io.sha256_of(staged / name) for name in names},
            source_sha256=source_sha256,
            license=license,
        )
        (staged / 'README.md').write_text(model_card(facts))
        (staged / 'metafile.yml').write_text(metafile(facts))
        _move(staged, out)
    return Published(*(out / name for name in (*names, 'README.md', 'metafile.yml')))


def check_loadable(pth: Path, safetensors: Path, arch: str, classes: int) -> None:
    """Load both files with timm, torchvision and mmdet as their users do, and compare what they compute.

    Raises:
        InputError: logits or features disagree by more than 1e-5 relative.
    """
    import timm
    import torchvision
    from safetensors.torch import load_file

    from transfer import mmcv_ops

    mmcv_ops.install()
    from mmdet.models.backbones import ResNet

    reference = torchvision.models.get_model(arch, num_classes=classes)
    reference.load_state_dict(torch.load(pth, weights_only=True))
    again = torchvision.models.get_model(arch, num_classes=classes)
    again.load_state_dict(load_file(safetensors))
    networks = {'torchvision from safetensors': again}
    for file in (pth, safetensors):
        networks[f'timm from {file.suffix}'] = timm.create_model(
            arch, num_classes=classes, checkpoint_path=str(file)
        )
    backbone = ResNet(
        int(arch.removeprefix('resnet')),
        norm_eval=True,
        init_cfg={'type': 'Pretrained', 'checkpoint': str(pth)},
    )
    with quiet():
        backbone.init_weights()
    backbone.eval()  # mmdet's returns nothing
    images = torch.randn(2, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = reference.eval()(images)
        for name, network in networks.items():
            _require_equal(name, network.eval()(images), logits)
        pooled = backbone(images)[-1].mean((2, 3))
        _require_equal('mmdet', reference.fc(pooled), logits)


def check_timm_loads(
    files: Sequence[Path], network: TimmNetwork, tensors: Mapping[str, Tensor], classes: int
) -> None:
    """Load files with timm as their users do, and compare the logits with those of the pretraining's tensors.

    Raises:
        InputError: they disagree by more than 1e-5 relative.
    """
    import timm

    reference = network.build(classes)
    reference.load_state_dict(tensors)
    size = network.args.get('img_size') or reference.pretrained_cfg['input_size'][-1]
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = reference.eval()(images)
        for file in files:
            again = timm.create_model(
                network.name, num_classes=classes, checkpoint_path=str(file), **network.args
            )
            _require_equal(f'timm from {file.suffix}', again.eval()(images), logits, 'the pretraining')


def _require_equal(name: str, found: Tensor, wanted: Tensor, of: str = 'torchvision') -> None:
    error = relative_difference(found, wanted)
    if not error <= _TOLERANCE:
        raise InputError(f'{name} computes other logits than {of}: relative difference {error:.1e}')


def _result(work_dir: Path) -> dict[str, Any]:
    if not work_dir.is_dir():
        raise InputError(f'no work dir {work_dir}')
    path = work_dir / 'result.json'
    if not path.is_file():
        raise InputError(f'{work_dir} has no result.json: its pretraining has not ended (--resume goes on)')
    result = read_json(path, 'train anew in another work dir')
    if not isinstance(result, dict) or 'config' not in result:
        raise InputError(f'{path} is not that of a pretraining: name a work dir of tools/train.py')
    return result


def _config(work_dir: Path, result: Mapping[str, Any]) -> Config:
    path = work_dir / Path(result['config']).name
    if not path.is_file():
        raise InputError(f'{work_dir} holds no copy of its config, {path.name}: the recipe is not known')
    return Config.fromfile(path, import_custom_modules=False)


def _write_weights(tensors: Mapping[str, Tensor], folder: Path, stem: str) -> tuple[str, str]:
    """Write both files, named by their content; the same tensors give the same bytes."""
    from safetensors.torch import save_file

    plain = checkpoint_io.plain_tensors(tensors)
    with (folder / 'weights.pth').open('wb') as file:
        torch.save(plain, file)
    save_file(plain, folder / 'weights.safetensors', metadata={'format': 'pt'})
    shutil.copymode(folder / 'weights.pth', folder / 'weights.safetensors')  # it writes for the owner alone
    names = []
    for suffix in ('.pth', '.safetensors'):
        path = folder / f'weights{suffix}'
        names.append(f'{stem}-{checkpoint_io.sha256_of(path)[:8]}{suffix}')
        path.rename(folder / names[-1])
    return names[0], names[1]


def _is_parameter(name: str) -> bool:
    return not name.endswith(('running_mean', 'running_var', 'num_batches_tracked'))


def _parent(out: Path) -> Path:
    if out.exists() and not out.is_dir():
        raise InputError(f'{out} is a file: name a folder')
    out.parent.mkdir(parents=True, exist_ok=True)
    return out.parent


def _move(staged: Path, out: Path) -> None:
    """Move the files to their place; what is there already must be the same weights."""
    new = {path.name for path in staged.iterdir()}
    there = {path.name for path in out.iterdir()} if out.is_dir() else set()
    if there - new:
        raise InputError(
            f'{out} holds other files ({", ".join(sorted(there - new)[:3])}): name a new folder, or empty it'
        )
    out.mkdir(exist_ok=True)
    for path in staged.iterdir():
        os.replace(path, out / path.name)
