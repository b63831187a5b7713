"""ILSVRC2012 as parquet shards."""

import pickle
import shutil

import pyarrow
import pyarrow.parquet
import pytest
import torch
from ilsvrc_common import (
    FILES,
    VAL_FILES,
    make,
    write_folders,
    write_parquet,
)
from torch.utils.data import DataLoader

from sd_pretrain.cli import InputError
from sd_pretrain.ilsvrc_layouts import find_split
from sd_pretrain.imagenet import ImageNetFolder


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'ILSVRC2012'


def test_parquet_without_names_keeps_the_order_of_the_shards(root):
    write_parquet(root, 'val', with_path=False)
    samples = find_split(root, 'val')
    assert samples.classes == ('0', '1', '2', '3')
    assert sorted(map(samples.read, range(8))) == sorted(content for _, content in VAL_FILES.values())
    places = samples.places.tolist()
    assert all(places[k] < places[k + 1] for k in range(0, 8, 2))


def test_parquet_works_in_loader_workers(root):
    """Also if this process has read before it forks."""
    make(root, 'parquet')
    data = ImageNetFolder(str(root), 'val', size=32, resize=36)
    alone = [data[index]['inputs'] for index in range(8)]
    loader = DataLoader(data, batch_size=2, num_workers=2)
    assert torch.equal(torch.cat([batch['inputs'] for batch in loader]), torch.stack(alone))
    assert torch.equal(pickle.loads(pickle.dumps(data))[5]['inputs'], alone[5])


def test_parquet_shards_are_not_held_in_memory(root):
    make(root, 'parquet')
    samples = find_split(root, 'train')
    for index in (0, 11, 5, 0, 7, 3):
        samples.read(index)
    assert len(samples._groups) <= 2


def break_missing_shard(data):
    (data / 'validation-00001-of-00002.parquet').unlink()


def break_two_sets(data):
    shutil.copy(data / 'validation-00000-of-00002.parquet', data / 'validation-00000-of-00001.parquet')


def break_truncated_shard(data):
    path = data / 'validation-00000-of-00002.parquet'
    path.write_bytes(path.read_bytes()[:1000])


def break_other_columns(data):
    table = pyarrow.table({'text': ['a']})
    pyarrow.parquet.write_table(table, data / 'validation-00000-of-00002.parquet')


def break_test_split(data):
    rows = [{'image': {'bytes': b'', 'path': None}, 'label': -1}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), data / 'validation-00000-of-00002.parquet')


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (break_missing_shard, 'lacks 1 of 2 shards, the first is validation-00001-of-00002.parquet'),
        (break_two_sets, 'more than one set of val shards'),
        (break_truncated_shard, 'cannot read .*validation-00000-of-00002.parquet'),
        (break_other_columns, r'has no column image\.bytes and label \(it has text\)'),
        (break_test_split, 'row 0 of group 0 has no label'),
    ],
)
def test_broken_parquet_says_what_to_do(root, damage, message):
    damage(make(root, 'parquet') / 'data')
    with pytest.raises(InputError, match=message):
        find_split(root, 'val')


def test_damaged_image_in_a_shard_names_shard_and_row(root, monkeypatch):
    broken = dict(VAL_FILES)
    broken['ILSVRC2012_val_00000002.JPEG'] = (0, VAL_FILES['ILSVRC2012_val_00000002.JPEG'][1][:300])
    monkeypatch.setitem(FILES, 'val', broken)
    write_parquet(root, 'val', shards=1)
    data = ImageNetFolder(str(root), 'val', size=32, resize=36)
    with pytest.raises(
        InputError, match=r'validation-00000-of-00001\.parquet, row \d of group \d: .*runcated'
    ):
        data[0]


def test_shards_unpack_into_the_class_folders_byte_for_byte(root, tmp_path, run_tool):
    make(root, 'parquet')
    write_folders(tmp_path / 'wanted', 'train')
    write_folders(tmp_path / 'wanted', 'val')
    half_written = tmp_path / 'out' / 'train' / 'n00000000' / 'n00000000_2.JPEG.part'
    half_written.parent.mkdir(parents=True)
    half_written.write_bytes(b'half')
    assert run_tool('unpack_parquet.py', root, tmp_path / 'out') == 0

    def content(folder):
        return {
            str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob('*') if path.is_file()
        }

    assert content(tmp_path / 'out') == content(tmp_path / 'wanted')
    assert run_tool('unpack_parquet.py', tmp_path / 'out', tmp_path / 'other') == 2
