"""From any ResNet checkpoint to a published backbone file, with proof that all of it arrives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from sd_pretrain.cli import InputError

if TYPE_CHECKING:
    from torch import Tensor

TARGETS = ('mmdet', 'mmseg', 'torchvision', 'timm', 'sd_pretrain')


@dataclass
class Conversion:
    """What :func:`convert` did."""

    path: Path
    sha256: str
    arch: str
    target: str
    source: str
    matched: int
    """Tensors of the target network, each matched by name and shape."""
    shared_head: int = 0
    """The same for Faster R-CNN C4's shared head (mmdet only)."""
    classifier: bool = False
    features: dict[str, float] = field(default_factory=dict)
    """Relative difference by stage; empty when not verified."""
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[str]:
        """The report a tool prints."""
        head = f' (C4 shared head: {self.shared_head} of {self.shared_head})' if self.shared_head else ''
        name = f'ResNet-{self.arch.removeprefix("resnet")}'
        agree = ', '.join(f'{stage} {difference:.1e}' for stage, difference in self.features.items())
        return [
            f'{self.arch} from {self.source}: '
            f'{self.matched} of {self.matched} tensors matched for {self.target} {name}{head}',
            *(f'note: {note}' for note in self.notes),
            f'features agree: {agree}' if agree else 'features not compared',
            f'{self.path}  sha256 {self.sha256}',
        ]


def convert(
    src: str | Path,
    dst: str | Path,
    to: str,
    verify: bool = True,
    expect_arch: str | None = None,
    key: str | None = None,
) -> Conversion:
    """Convert a ResNet-18 to -152 checkpoint to a tensors-only file of another library's layout.

    Nothing appears at the destination before all proofs have succeeded; nothing that is there is overwritten.

    Args:
        src: Checkpoint file of this project, torchvision, timm or mmpretrain; pretraining work dir; or
            ``torchvision:NAME`` / ``timm:NAME`` (see :func:`transfer.sources.resolve`).
        dst: Folder, or path of the file without the hash (see :func:`transfer.checkpoint_io.stage`).
        to: One of :data:`TARGETS`; files for mmdet (C4's shared head included) and mmseg have no classifier.
        verify: Compare the features of all four stages (see :func:`transfer.verify.compare`).
        expect_arch: Refuse a source of another architecture.
        key: Entry of the checkpoint to take, e.g. ``state_dict_ema``.

    Raises:
        InputError: the source is missing, damaged, unsafe, of another architecture or incomplete; the
            destination cannot be written; the features disagree.
    """
    if to not in TARGETS:
        raise InputError(f'unknown target {to!r}: one of {", ".join(TARGETS)}')
    from sd_pretrain.safe_load import load_checkpoint
    from transfer import architecture, checkpoint_io, sources

    file, label, notes, _ = sources.resolve(src)
    where = label if label.startswith(sources.FETCHED) else str(file)
    checkpoint = load_checkpoint(file)
    source_sha256 = checkpoint_io.sha256_of(file)
    if checkpoint_io.is_published(checkpoint.get('meta')):
        checkpoint_io.check_hashed_name(file, source_sha256)
    weights = architecture.read_weights(checkpoint, where, key)
    arch = architecture.detect_arch(weights.tensors, where)
    if expect_arch not in (None, arch):
        raise InputError(
            f'{where} is a {arch}, but a {expect_arch} is needed: give a checkpoint of that depth'
        )
    if weights.ignored:
        parts = sorted({name.split('.')[0] for name in weights.ignored})
        notes.append(f'{len(weights.ignored)} tensors beside the network left out ({", ".join(parts[:5])})')

    state_dict, shared_head, filled = cover(weights.tensors, arch, to, where)
    if filled:
        notes.append(f'{filled} num_batches_tracked that the source lacks set to 0')
    classifier = 'fc.weight' in state_dict
    if not classifier and to in ('torchvision', 'timm', 'sd_pretrain'):
        notes.append('the source has no classifier: backbone only')
    meta = {
        'schema': checkpoint_io.SCHEMA,
        'arch': arch,
        'target': to,
        'source': label,
        'source_sha256': source_sha256,
        'classifier': classifier,
        'num_classes': len(state_dict['fc.weight']) if classifier else 0,
        'tensors': len(state_dict),
    }
    prefix = 'network.' if to == 'sd_pretrain' else ''
    named = {prefix + name: tensor for name, tensor in state_dict.items()}
    temporary, final, sha256 = checkpoint_io.stage(meta, named, dst, f'{arch}_{to}')
    try:
        features = {}
        if verify:
            from transfer.verify import compare

            library = 'timm' if 'network.' in weights.prefix or label.startswith('timm:') else 'torchvision'
            features = compare(temporary, arch, to, {**weights.tensors, **state_dict}, library)
        checkpoint_io.commit(temporary, final, sha256)
    finally:
        temporary.unlink(missing_ok=True)
    return Conversion(
        final,
        sha256,
        arch,
        to,
        where,
        len(state_dict),
        shared_head,
        classifier,
        features,
        notes,
    )


def cover(
    tensors: Mapping[str, Tensor], arch: str, to: str, where: str
) -> tuple[dict[str, Tensor], int, int]:
    """Match every parameter and buffer of the real target with a source tensor by name and shape.

    Args:
        tensors: The source's, under torchvision's names.
        arch: Such as ``'resnet152'``.
        to: One of :data:`TARGETS`.
        where: What to call the source in a message.

    Returns:
        The target's tensors in its order; how many the C4 shared head takes; how many were filled in.

    Raises:
        InputError: tensors are missing, of another shape, too many, or not finite.
    """
    import torch

    from transfer.verify import expected_tensors

    classes = len(tensors['fc.weight']) if 'fc.weight' in tensors else 0
    parts = expected_tensors(arch, to, classes)
    found: dict[str, Tensor] = {}
    missing, wrong, filled = [], [], 0
    for name, wanted in parts['network'].items():
        if name in tensors:
            found[name] = tensors[name]
        elif name.endswith('.num_batches_tracked'):
            # Older checkpoints lack this counter; it matters only to BN without momentum; no target has that.
            found[name] = torch.zeros((), dtype=torch.long)
            filled += 1
        else:
            missing.append(name)
            continue
        if found[name].shape != wanted.shape:
            wrong.append(f'{name} is {tuple(found[name].shape)}, not {tuple(wanted.shape)}')
    head = parts.get('shared_head', {})
    missing += [name for name in head if name not in found and name not in missing]
    wrong += [
        f'{name} (shared head)' for name in head if name in found and found[name].shape != head[name].shape
    ]
    total = len(parts['network'])
    for problem, names in (('missing', missing), ('of another shape', wrong)):
        if names:
            more = f' and {len(names) - 8} more' if len(names) > 8 else ''
            raise InputError(
                f'{where}: {len(names)} of {total} tensors of {to} {arch} are {problem}: '
                f'{", ".join(names[:8])}{more}'
            )
    surplus = [name for name in tensors if name not in found and not name.startswith('fc.')]
    if surplus:
        raise InputError(f'{where}: tensors that {to} {arch} has no place for: {", ".join(surplus[:8])}')
    require_finite(found, where)
    return found, len(head), filled


def require_finite(tensors: Mapping[str, Tensor], where: str) -> None:
    """Raise InputError where there are NaN or infinite values; names some of the tensors."""
    broken = [
        name for name, value in tensors.items() if value.is_floating_point() and not value.isfinite().all()
    ]
    if broken:
        raise InputError(
            f'{where}: NaN or infinite values in {", ".join(broken[:8])}: its training has diverged'
        )
