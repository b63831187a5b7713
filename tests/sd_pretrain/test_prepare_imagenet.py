"""tools/prepare_imagenet.py: a tree whose JPEGs have restart markers and the same pixels."""

import io
import os
import re
import shutil

import numpy as np
import pytest
import torch
from ilsvrc_common import encoded, make, picture
from PIL import Image

from sd_pretrain import restart_tree
from sd_pretrain.imagenet import ImageNetFolder
from sd_pretrain.jpeg_file import parse_baseline
from sd_pretrain.restart_tree import COPIED, DIFFERENT, OTHER, REWRITTEN, THERE, rewrite_tree, summary


@pytest.fixture
def source(tmp_path):
    """Class folders, flat validation images, the development kit, and files that are no baseline JPEGs."""
    root = make(tmp_path / 'source', 'flat val')
    folder = root / 'train' / 'n00000000'
    image = Image.fromarray(np.zeros((40, 40, 3), np.uint8))
    image.save(folder / 'progressive.JPEG', progressive=True)
    image.save(folder / 'portable.JPEG', 'PNG')
    (folder / 'damaged.JPEG').write_bytes(b'\xff\xd8 nothing')
    return root


def files(root):
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob('*') if path.is_file()}


def test_tree_has_every_file_and_every_pixel(source, tmp_path, run_tool, capsys):
    target = tmp_path / 'target'
    assert run_tool('prepare_imagenet.py', source, target, '--restart-markers', '--workers', 2) == 0
    before, after = files(source), files(target)
    assert before.keys() == after.keys()
    rewritten = 0
    for name, content in after.items():
        if parse_baseline(content):
            rewritten += 1
            assert parse_baseline(content).interval
            images = [np.array(Image.open(io.BytesIO(one))) for one in (before[name], content)]
            assert np.array_equal(*images), name
        else:
            assert content == before[name], name
    assert rewritten == 12 + 8
    said = capsys.readouterr().out
    assert f'20 {REWRITTEN}: ' in said and f'3 {COPIED}: ' in said and f'2 {OTHER}: ' in said


def test_training_sees_the_same_crops(source, tmp_path):
    (source / 'train' / 'n00000000' / 'damaged.JPEG').unlink()
    rewrite_tree(source, tmp_path / 'target', workers=1)
    for split in ('train', 'val'):
        old, new = (ImageNetFolder(str(root), split, 32, 36) for root in (source, tmp_path / 'target'))
        assert len(old) == len(new) and old.metainfo == new.metainfo
        for data in (old, new):
            data.set_epoch(seed=3, epoch=1)
        for one, other in zip(*(data.__getitems__(range(len(old))) for data in (old, new)), strict=True):
            assert torch.equal(one['inputs'], other['inputs']) and one['labels'] == other['labels']


def test_broken_off_run_goes_on(source, tmp_path):
    target = tmp_path / 'target'
    first = rewrite_tree(source, target, workers=1)
    whole = files(target)
    gone = target / 'train' / 'n00000002' / 'n00000002_2.JPEG'
    stale = target / 'train' / 'n00000003' / 'n00000003_2.JPEG'
    kept = target / 'train' / 'n00000001' / 'n00000001_2.JPEG'
    gone.rename(gone.with_name('n00000002_2.JPEG.part'))
    os.utime(source / stale.relative_to(target), (10**9, 10**9))
    kept_at = kept.stat().st_ino
    again = rewrite_tree(source, target, workers=1)
    assert files(target) == whole
    assert kept.stat().st_ino == kept_at
    assert again[REWRITTEN][0] == 2
    assert again[THERE][0] == sum(total[0] for total in first.values()) - 2


def test_what_does_not_verify_is_copied(source, tmp_path, monkeypatch):
    """A coder that gives another picture for each."""
    real = restart_tree.add_restart_markers
    other = real(encoded(picture(77)))
    monkeypatch.setattr(restart_tree, 'add_restart_markers', lambda content: real(content) and other)
    totals = rewrite_tree(source, tmp_path / 'target', workers=1)
    assert totals[DIFFERENT][0] == 20
    assert files(tmp_path / 'target') == files(source)


def test_summary_by_hand():
    lines = summary(
        {'copied': [1, 2_000_000, 2_000_000], 'rewritten': [1234, 10**9, 1_050_000_000]}
    ).splitlines()
    assert lines == ['1 copied: 2.0 MB', '1,234 rewritten: 1,000.0 MB -> 1,050.0 MB (+5.0%)']


@pytest.mark.parametrize(
    'case, said',
    [
        ('missing', 'no folder .*nothing'),
        ('inside', 'lie in one another'),
        ('same', 'lie in one another'),
        ('empty', r'has no images \(\.jpeg'),
        ('parquet', 'unpack_parquet'),
        ('no space', 'goes on'),
    ],
)
def test_mistakes_are_said(source, tmp_path, run_tool, capsys, case, said):
    target = {'inside': source / 'fast', 'same': source, 'no space': tmp_path / 'file'}.get(
        case, tmp_path / 'out'
    )
    (tmp_path / 'file').write_text('a file, no folder')
    if case == 'missing':
        source = tmp_path / 'nothing'
    elif case == 'empty':
        shutil.rmtree(source / 'train')
        shutil.rmtree(source / 'val')
    elif case == 'parquet':
        make(source, 'parquet')
    assert run_tool('prepare_imagenet.py', source, target, '--restart-markers', '--workers', '1') == 2
    assert re.search(said, capsys.readouterr().err)


def test_what_is_to_be_done_must_be_said(source, tmp_path, run_tool, capsys):
    assert run_tool('prepare_imagenet.py', source, tmp_path / 'target') == 2
    assert '--restart-markers' in capsys.readouterr().err
