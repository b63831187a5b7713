import io
import pickle
import shutil
import tarfile

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import DataLoader

from sd_pretrain.cli import InputError
from sd_pretrain.ilsvrc_layouts import DEVKIT, find_split
from sd_pretrain.imagenet import ImageNetFolder, check_imagenet, decode, read_image

# ILSVRC ids as the devkit gives them: not in the order of the wnids; 5 is an inner node of the hierarchy.
ILSVRC_IDS = {'n00000000': 3, 'n00000001': 1, 'n00000002': 4, 'n00000003': 2}
SYNSETS = [*((number, wnid, 0) for wnid, number in ILSVRC_IDS.items()), (5, 'n00000009', 4)]
# The classes of the validation images 1 to 8.
VAL = [3, 0, 1, 1, 0, 2, 3, 2]


def encoded(image, kind='JPEG', **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(seed, size=(46, 40)):
    pixels = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)


TRAIN_FILES = {
    f'n{label:08d}_{number}.JPEG': (label, encoded(picture(100 * label + number)))
    for label in range(4)
    for number in (2, 10, 31)
}
VAL_FILES = {
    f'ILSVRC2012_val_{number:08d}.JPEG': (label, encoded(picture(1000 + number)))
    for number, label in enumerate(VAL, 1)
}
FILES = {'train': TRAIN_FILES, 'val': VAL_FILES}


def write_folders(root, split):
    for name, (label, content) in FILES[split].items():
        path = root / split / f'n{label:08d}' / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def write_flat_val(root):
    (root / 'val').mkdir(parents=True)
    for name, (_, content) in VAL_FILES.items():
        (root / 'val' / name).write_bytes(content)


def write_devkit(folder, synsets=SYNSETS):
    """The kit's two files, in the structure of the official ones."""
    kind = [('ILSVRC2012_ID', 'O'), ('WNID', 'O'), ('words', 'O'), ('gloss', 'O'), ('num_children', 'O')]
    rows = [(number, wnid, 'a thing', 'what it is', children) for number, wnid, children in synsets]
    data = folder / DEVKIT / 'data'
    data.mkdir(parents=True)
    savemat(data / 'meta.mat', {'synsets': np.array(rows, dtype=kind)[:, None]})
    truth = ''.join(f'{ILSVRC_IDS[f"n{label:08d}"]}\n' for label in VAL)
    (data / 'ILSVRC2012_validation_ground_truth.txt').write_text(truth)


def write_parquet(folder, split, shards=2, group=3, with_path=True):
    """Shards as Hugging Face writes them: rows in any order, file names with the wnid appended."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for name, (label, content) in FILES[split].items():
        path = name.replace('.JPEG', f'_n{label:08d}.JPEG')
        rows.append({'image': {'bytes': content} | ({'path': path} if with_path else {}), 'label': label})
    rows = [rows[at] for at in np.random.default_rng(0).permutation(len(rows))]
    stem = {'train': 'train', 'val': 'validation'}[split]
    for shard in range(shards):
        table = pyarrow.Table.from_pylist(rows[shard::shards])
        path = folder / f'{stem}-{shard:05d}-of-{shards:05d}.parquet'
        pyarrow.parquet.write_table(table, path, row_group_size=group)


def make(root, layout):
    if layout == 'folders':
        write_folders(root, 'train')
        write_folders(root, 'val')
    elif layout == 'flat val':
        write_folders(root, 'train')
        write_flat_val(root)
        write_devkit(root)
    elif layout == 'parquet':
        for split in FILES:
            write_parquet(root / 'data', split)
    return root


@pytest.fixture
def root(tmp_path):
    return tmp_path / 'ILSVRC2012'


@pytest.mark.parametrize('layout', ['folders', 'flat val', 'parquet'])
def test_every_layout_gives_the_same_samples_in_the_same_order(root, layout):
    make(root, layout)
    assert check_imagenet(root) == {'classes': 4, 'train': 12, 'val': 8}
    for split, files in FILES.items():
        wanted = [
            content for _, (_, content) in sorted(files.items(), key=lambda item: (item[1][0], item[0]))
        ]
        samples = find_split(root, split)
        assert samples.classes == tuple(f'n{label:08d}' for label in range(4))
        assert samples.labels.tolist() == sorted(label for label, _ in files.values())
        assert [samples.read(index) for index in range(len(wanted))] == wanted
    item = ImageNetFolder(str(root), 'val', size=32, resize=36)[7]
    assert item['labels'] == 3
    assert item['inputs'].shape == (3, 32, 32)


def test_splits_may_differ_in_their_layout(root):
    write_folders(root, 'val')
    write_parquet(root, 'train', shards=1)
    assert check_imagenet(root) == {'classes': 4, 'train': 12, 'val': 8}


@pytest.mark.parametrize('place', ['folder beside', 'archive', 'archive beside'])
def test_devkit_is_found_packed_or_not_in_the_root_or_beside_it(root, place):
    make(root, 'flat val')
    expected = find_split(root, 'val').labels.tolist()
    target = root.parent if 'beside' in place else root
    if 'archive' in place:
        with tarfile.open(target / f'{DEVKIT}.tar.gz', 'w:gz') as archive:
            archive.add(root / DEVKIT, arcname=DEVKIT)
        shutil.rmtree(root / DEVKIT)
    else:
        (root / DEVKIT).rename(target / DEVKIT)
    assert find_split(root, 'val').labels.tolist() == expected


def test_part_of_the_flat_validation_set_keeps_its_numbers(root):
    make(root, 'flat val')
    for number in (1, 3, 4, 7):  # all of the classes 3 and 1
        (root / 'val' / f'ILSVRC2012_val_{number:08d}.JPEG').unlink()
    samples = find_split(root, 'val')
    assert samples.classes == ('n00000000', 'n00000002')
    assert [samples.where(index)[-10:] for index in range(4)] == [f'{k:05d}.JPEG' for k in (2, 5, 6, 8)]
    with pytest.raises(InputError, match='val lacks 2 classes that train has: n00000001, n00000003'):
        check_imagenet(root)


def break_no_devkit(root):
    shutil.rmtree(root / DEVKIT)


def break_truncated_meta(root):
    path = root / DEVKIT / 'data' / 'meta.mat'
    path.write_bytes(path.read_bytes()[:150])


def break_no_ground_truth(root):
    (root / DEVKIT / 'data' / 'ILSVRC2012_validation_ground_truth.txt').unlink()


def break_other_meta(root):
    shutil.rmtree(root / DEVKIT)
    write_devkit(root, SYNSETS[1:])


def break_unknown_number(root):
    shutil.copy(root / 'val' / 'ILSVRC2012_val_00000001.JPEG', root / 'val' / 'ILSVRC2012_val_00000009.JPEG')


def break_sorting_broken_off(root):
    (root / 'val' / 'n00000000').mkdir()


@pytest.mark.parametrize(
    ('damage', 'message'),
    [
        (break_no_devkit, rf'development kit: put {DEVKIT}\.tar\.gz'),
        (break_truncated_meta, rf'{DEVKIT} cannot be read as the development kit'),
        (break_no_ground_truth, rf'{DEVKIT} cannot be read .*validation_ground_truth\.txt'),
        (break_other_meta, 'names the class 3, which meta.mat does not have'),
        (break_unknown_number, r'val_00000009\.JPEG has no line in the ground truth .* which has 8'),
        (break_sorting_broken_off, 'both 1 class folders and 8 images that are in none'),
    ],
)
def test_broken_flat_layout_says_what_to_do(root, damage, message):
    damage(make(root, 'flat val'))
    with pytest.raises(InputError, match=message):
        find_split(root, 'val')


def test_packed_class_archives_are_mentioned(root):
    (root / 'train').mkdir(parents=True)
    (root / 'train' / 'n00000000.tar').touch()
    with pytest.raises(InputError, match='1 class archives are not unpacked yet'):
        find_split(root, 'train')


def test_no_layout_at_all(root):
    root.mkdir()
    with pytest.raises(InputError, match=r"no folder 'train' and no parquet files .* image-net\.org"):
        check_imagenet(root)


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


def test_cmyk_and_disguised_files_come_out_in_the_colours_of_the_picture(tmp_path):
    """The files of ILSVRC2012 that a plain RGB JPEG decoder stumbles over: all are called ``.JPEG``."""
    original = picture(7, (80, 60))
    wanted = torch.from_numpy(np.array(original)).permute(2, 0, 1).int()
    grey = torch.from_numpy(np.array(original.convert('L'))).int().expand(3, -1, -1)
    for name, image, kind, expected, within in (
        ('cmyk', original.convert('CMYK'), 'JPEG', wanted, 40),
        ('progressive', original, 'JPEG', wanted, 40),
        ('png', original, 'PNG', wanted, 0),
        ('rgba', original.convert('RGBA'), 'PNG', wanted, 0),
        ('grey', original.convert('L'), 'JPEG', grey, 12),
        ('grey_png', original.convert('L'), 'PNG', grey, 0),
        ('bmp', original, 'BMP', wanted, 0),
    ):
        options = {'quality': 95, 'progressive': name == 'progressive'} if kind == 'JPEG' else {}
        path = tmp_path / f'{name}.JPEG'
        path.write_bytes(encoded(image, kind, **options))
        found = read_image(path)
        assert found.dtype == torch.uint8
        assert found.shape == (3, 60, 80), name
        assert (found.int() - expected).abs().max() <= within, name


def test_sixteen_bits_keep_their_upper_eight():
    levels = np.array([[0, 255, 256], [32768, 65279, 65535]], np.uint16)
    image = decode(encoded(Image.fromarray(levels), 'PNG'))
    assert image.dtype == torch.uint8
    assert image.tolist() == 3 * [[[0, 0, 1], [128, 254, 255]]]


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees
    original = picture(3, (80, 60))
    assert torch.equal(decode(encoded(original, exif=exif)), decode(encoded(original)))


@pytest.mark.parametrize('share', [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize('kind', ['JPEG', 'PNG'])
def test_truncated_file_names_itself(tmp_path, kind, share):
    content = encoded(picture(5, (160, 120)), kind)
    path = tmp_path / 'n00000000_7.JPEG'
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r'cannot read image .*n00000000_7\.JPEG: .*; replace or remove it'):
        read_image(path)
