"""ILSVRC2012 in folders, as a flat validation set, and files that are not what they say."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from ilsvrc_common import (
    FILES,
    SYNSETS,
    encoded,
    make,
    picture,
    write_devkit,
    write_folders,
    write_parquet,
)
from PIL import Image

from sd_pretrain.cli import InputError
from sd_pretrain.ilsvrc_layouts import DEVKIT, find_split
from sd_pretrain.imagenet import ImageNetFolder, check_imagenet, decode


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


def test_cmyk_and_disguised_files_come_out_in_the_colours_of_the_picture():
    """The files of ILSVRC2012 that a plain RGB JPEG decoder stumbles over: all are called ``.JPEG``."""
    original = picture(7, (80, 60))
    wanted = torch.from_numpy(np.array(original)).permute(2, 0, 1).int()
    grey = torch.from_numpy(np.array(original.convert('L'))).int().expand(3, -1, -1)
    palette = original.convert('P')
    coarse = torch.from_numpy(np.array(palette.convert('RGB'))).permute(2, 0, 1).int()
    for name, image, kind, expected, within in (
        ('cmyk', original.convert('CMYK'), 'JPEG', wanted, 40),
        ('progressive', original, 'JPEG', wanted, 40),
        ('png', original, 'PNG', wanted, 0),
        ('rgba', original.convert('RGBA'), 'PNG', wanted, 0),
        ('grey', original.convert('L'), 'JPEG', grey, 12),
        ('grey_png', original.convert('L'), 'PNG', grey, 0),
        ('palette', palette, 'PNG', coarse, 0),
        ('bmp', original, 'BMP', wanted, 0),
    ):
        options = {'quality': 95, 'progressive': name == 'progressive'} if kind == 'JPEG' else {}
        found = decode(encoded(image, kind, **options))
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
def test_truncated_file_names_itself(root, kind, share):
    content = encoded(picture(5, (160, 120)), kind)
    path = root / 'train' / 'n00000000' / 'n00000000_7.JPEG'
    path.parent.mkdir(parents=True)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InputError, match=r'cannot read image .*n00000000_7\.JPEG: .*; replace or remove it'):
        ImageNetFolder(str(root))[0]
