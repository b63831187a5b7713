"""The emoji world: the same bytes everywhere, the official layouts, boxes and masks that fit the images."""

import xml.etree.ElementTree as ElementTree
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import PIL
import pytest
from PIL import Image

from sd_pretrain.cli import InputError
from transfer.emoji_scenes import PRETRAIN_SPRITES, mask_of, scene
from transfer.emoji_world import WorldSize, digest, ensure
from transfer.voc import CLASSES

TINY = WorldSize(
    pretrain_train=2, pretrain_val=1, det_trainval=6, det_test=3, seg_train=3, seg_aug=4, seg_val=2
)
TINY_DIGEST = 'ec1c28ba734aec6ee5e85357a10c907efd5d08ea75e1ee39fb7229cb397c4b76'


@pytest.fixture(scope='module')
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp('world') / 'demo'
    assert ensure(root, seed=0, size=TINY)
    return root


def names(path):
    return path.read_text().split()


def test_the_bytes_are_those_of_every_machine_with_the_pins(world):
    if PIL.__version__ != '12.3.0':
        pytest.skip(f'the digest holds for the pinned Pillow 12.3.0, here is {PIL.__version__}')
    assert digest(world) == TINY_DIGEST


def test_a_second_call_leaves_the_world_as_it_is_and_another_seed_is_refused(world):
    assert not ensure(world, seed=0, size=TINY)
    assert not ensure(world)
    with pytest.raises(InputError, match='holds another demo world .seed 0, not 1.'):
        ensure(world, seed=1, size=TINY)


def test_a_folder_of_something_else_is_refused_and_kept(tmp_path):
    (tmp_path / 'mine.txt').write_text('precious')
    with pytest.raises(InputError, match='is no demo world'):
        ensure(tmp_path, size=TINY)
    assert (tmp_path / 'mine.txt').read_text() == 'precious'


def test_a_damaged_world_is_refused(tmp_path):
    for content in ('{"version": 1}', '[]', '{'):
        (tmp_path / 'world.json').write_text(content)
        with pytest.raises(InputError, match='is no demo world'):
            ensure(tmp_path)


def test_an_empty_folder_is_filled_and_of_two_callers_at_once_one_waits(tmp_path):
    with ThreadPoolExecutor() as pool:
        made = list(pool.map(lambda _: ensure(tmp_path, size=TINY), range(2)))
    assert sorted(made) == [False, True]
    assert (tmp_path / 'world.json').is_file()


def test_pretraining_folders_hold_a_hundred_classes(world):
    for split, count in (('train', 2), ('val', 1)):
        folders = sorted((world / 'ILSVRC2012' / split).iterdir())
        assert len(folders) == len(PRETRAIN_SPRITES) == 100
        assert all(len(list(folder.glob('*.jpg'))) == count for folder in folders)


@pytest.mark.parametrize(('year', 'sizes'), [(2007, {'trainval': 6, 'test': 3}), (2012, {'trainval': 5})])
def test_boxes_lie_inside_their_images(world, year, sizes):
    root = world / 'VOCdevkit' / f'VOC{year}'
    lists = {name: names(root / 'ImageSets' / 'Main' / f'{name}.txt') for name in sizes}
    assert {name: len(members) for name, members in lists.items()} == sizes
    for name in (one for members in lists.values() for one in members):
        width, height = Image.open(root / 'JPEGImages' / f'{name}.jpg').size
        objects = ElementTree.parse(root / 'Annotations' / f'{name}.xml').findall('object')
        assert objects
        for one in objects:
            assert one.findtext('name') in CLASSES
            left, top, right, bottom = (
                int(one.findtext(f'bndbox/{k}')) for k in ('xmin', 'ymin', 'xmax', 'ymax')
            )
            assert 1 <= left < right <= width and 1 <= top < bottom <= height


def test_voc12_masks_have_their_images_size_and_known_values(world):
    root = world / 'VOCdevkit' / 'VOC2012'
    sets = root / 'ImageSets' / 'Segmentation'
    for split, folder in (('train', 'SegmentationClass'), ('aug', 'SegmentationClassAug')):
        for name in names(sets / f'{split}.txt'):
            mask = Image.open(root / folder / f'{name}.png')
            assert mask.size == Image.open(root / 'JPEGImages' / f'{name}.jpg').size
            assert set(np.unique(mask)) <= {*range(21), 255} and len(np.unique(mask)) > 2
    assert not set(names(sets / 'aug.txt')) & set(names(sets / 'train.txt') + names(sets / 'val.txt'))


def test_mask_and_boxes_of_a_scene_agree():
    size = (160, 128)
    for index in range(20):
        _, objects = scene((0, 9, index), size)
        mask = np.asarray(mask_of(objects, size))
        for one in objects:
            rows, columns = np.nonzero(mask == CLASSES.index(one.name) + 1)
            boxes = [o.box for o in objects if o.name == one.name]
            assert columns.min() >= min(b[0] for b in boxes) and columns.max() < max(b[2] for b in boxes)
            assert rows.min() >= min(b[1] for b in boxes) and rows.max() < max(b[3] for b in boxes)
