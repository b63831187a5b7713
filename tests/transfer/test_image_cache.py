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


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with 64 GiB free, and a function that makes files on it; nothing of the real one counts."""
    for name in ('LOCAL_WORLD_SIZE', 'SD_RUNS_SIDE_BY_SIDE', 'SLURM_MEM_PER_NODE'):
        monkeypatch.delenv(name, raising=False)

    def write(files):
        for name, text in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path

    write({'proc/meminfo': f'MemFree: 1 kB\nMemAvailable: {64 * 2**20} kB\n'})
    return write


GIB = 2**30
USED = 5 * GIB
_V1 = ('memory.limit_in_bytes', 'memory.usage_in_bytes')


def limited(folder, limit, version):
    """The files of a cgroup that has used 5 GiB, 1 GiB of them cached files."""
    names = ('memory.max', 'memory.current') if version == 2 else _V1
    cached = 'inactive_file' if version == 2 else 'total_inactive_file'
    stat = f'anon 7\n{cached} {GIB}\n'
    texts = (f'{limit}\n', f'{USED}\n', stat)
    return {f'{folder}/{name}': text for name, text in zip((*names, 'memory.stat'), texts, strict=True)}


def test_processes_and_runs_of_a_machine_share_a_quarter_of_its_free_memory(machine, monkeypatch):
    root = machine({})
    assert budget(root=root) == 16 * GIB
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '4')
    assert budget(root=root) == 4 * GIB
    monkeypatch.setenv('SD_RUNS_SIDE_BY_SIDE', '2')
    assert budget(root=root) == 2 * GIB


def test_what_slurm_has_given_the_job_counts(machine, monkeypatch):
    root = machine({})
    monkeypatch.setenv('SLURM_MEM_PER_NODE', str(8 * 1024))
    assert budget(root=root) == 2 * GIB
    monkeypatch.setenv('SLURM_MEM_PER_NODE', '0')
    assert budget(root=root) == 16 * GIB


@pytest.mark.parametrize(
    ('line', 'folder', 'version'),
    [
        ('0::/system.slice/job_7/step_0', 'sys/fs/cgroup/system.slice/job_7/step_0', 2),
        ('0::/system.slice/job_7/step_0', 'sys/fs/cgroup/system.slice/job_7', 2),
        ('0::/', 'sys/fs/cgroup', 2),
        ('4:cpu,memory:/slurm/job_7', 'sys/fs/cgroup/memory/slurm/job_7', 1),
        ('4:cpu,memory:/slurm/job_7', 'sys/fs/cgroup/memory/slurm', 1),
        # As in a container that has its own at the top, under the name it has outside.
        ('4:memory:/docker/0123', 'sys/fs/cgroup/memory', 1),
    ],
)
def test_limits_of_cgroups_count_wherever_they_are_set(machine, line, folder, version):
    root = machine({'proc/self/cgroup': f'2:cpuacct:/\n{line}\n'})
    assert budget(root=root) == 16 * GIB
    machine(limited(folder, 12 * GIB, version))
    assert budget(root=root) == 2 * GIB, '12 - (5 - 1) GiB are left'


def test_a_cgroup_without_limit_limits_nothing(machine):
    root = machine({'proc/self/cgroup': '0::/a/b\n', **limited('sys/fs/cgroup/a/b', 'max', 2)})
    assert budget(root=root) == 16 * GIB
    machine(limited('sys/fs/cgroup/a', 6 * GIB, 2))
    assert budget(root=root) == GIB // 2
