"""Images decoded once: the same bits, bounded, shared with the workers that are forked."""

import multiprocessing

import mmcv
import numpy as np
import pytest
from mmcv.transforms import LoadImageFromFile

from transfer.image_cache import ImageStore, budget, cache_images


class Pipeline:
    def __init__(self, *transforms):
        self.transforms = transforms


class Dataset:
    def __init__(self, *transforms):
        self.pipeline = Pipeline(*transforms)


class Wrapper:
    def __init__(self, *datasets):
        self.datasets = datasets


def images(root):
    return sorted((root / 'VOCdevkit/VOC2007/JPEGImages').glob('*.jpg'))


def test_an_image_is_read_once_and_comes_back_to_the_bit(tiny_voc):
    path = images(tiny_voc)[0]
    loader, store = LoadImageFromFile(), ImageStore(2**20)
    assert cache_images(Wrapper(Dataset(loader), Dataset()), store) == 1
    wanted = mmcv.imread(path)
    first = loader({'img_path': str(path)})
    first['img'][:] = 0  # what a pipeline does to its image stays its own
    path.unlink()
    again = loader({'img_path': str(path)})
    assert np.array_equal(again['img'], wanted) and again['img'].flags.writeable
    assert again['img_shape'] == again['ori_shape'] == wanted.shape[:2] and len(store) == 1


def test_what_does_not_fit_is_decoded_each_time(tiny_voc):
    paths = images(tiny_voc)[:2]
    size = mmcv.imread(paths[0]).size
    loader, store = LoadImageFromFile(), ImageStore(size + 1)
    cache_images(Dataset(loader), store)
    for _ in range(2):
        for path in paths:
            assert np.array_equal(loader({'img_path': str(path)})['img'], mmcv.imread(path))
    assert len(store) == 1
    assert not store.put('floats', np.zeros(1, np.float32))


def test_a_gray_image_and_a_coloured_one_of_the_same_file_are_two(tiny_voc):
    path, store = str(images(tiny_voc)[0]), ImageStore(2**20)
    for kind in ('color', 'grayscale'):
        loader = LoadImageFromFile(color_type=kind)
        cache_images(Dataset(loader), store)
        for _ in range(2):
            assert np.array_equal(loader({'img_path': path})['img'], mmcv.imread(path, flag=kind))


def _put(store, start):
    for index in range(start, start + 50):
        store.put(f'image {index}', np.full((index + 1, 3), index, np.uint8))


def test_processes_that_are_forked_share_what_any_of_them_has_decoded():
    store = ImageStore(2**20)
    context = multiprocessing.get_context('fork')
    workers = [context.Process(target=_put, args=(store, start)) for start in (0, 25)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert len(store) == 75
    for index in range(75):
        assert np.array_equal(store.get(f'image {index}'), np.full((index + 1, 3), index, np.uint8))
    assert store.get('image 75') is None


def test_masks_are_kept_too(tiny_voc):
    from transfer import mmcv_ops

    mmcv_ops.install()
    from mmseg.datasets.transforms import LoadAnnotations

    path = sorted((tiny_voc / 'VOCdevkit/VOC2012/SegmentationClass').glob('*.png'))[0]
    loader, store = LoadAnnotations(imdecode_backend='pillow'), ImageStore(2**20)

    def load():
        return loader({'seg_map_path': str(path), 'reduce_zero_label': False, 'seg_fields': []})

    wanted = load()
    assert cache_images(Dataset(loader), store) == 1
    load()
    path.unlink()
    again = load()
    assert np.array_equal(again['gt_seg_map'], wanted['gt_seg_map']) and again['seg_fields'] == ['gt_seg_map']


def test_processes_of_a_machine_share_the_free_memory(monkeypatch):
    whole = budget()
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert 0 < budget() == pytest.approx(whole / 4, rel=0.2)
