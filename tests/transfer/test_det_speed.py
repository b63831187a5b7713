"""Detection evaluated in batches of images of one size: the same as image by image."""

import os
import re
import subprocess
import sys

import numpy as np
import pytest
from mmengine.config import Config
from mmengine.dataset import DefaultSampler
from PIL import Image

from transfer import det_speed, finetune
from transfer.det_speed import SameSizeBatchSampler, batch_evaluation
from transfer.metrics import use_exact_metrics
from transfer.predictions import load_predictions

# Of the test images 5 to 12 in the order of their names; their width and height otherwise are 64 and 48.
NARROW = (6, 7, 10)


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    root = write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data', train=4, test=8)
    folder = root / 'VOCdevkit/VOC2007'
    for number in NARROW:
        image = folder / f'JPEGImages/{number:06d}.jpg'
        Image.open(image).crop((0, 0, 60, 48)).save(image, quality=95)
        annotation = folder / f'Annotations/{number:06d}.xml'
        annotation.write_text(annotation.read_text().replace('<width>64<', '<width>60<'))
    return root


class Sizes:
    """A dataset that knows sizes only."""

    def __init__(self, *sizes):
        self.sizes = sizes

    def __len__(self):
        return len(self.sizes)

    def get_data_info(self, index):
        return dict(zip(('height', 'width'), self.sizes[index], strict=True))


def test_batches_are_of_one_size_and_every_image_is_in_one():
    dataset = Sizes((3, 4), (4, 3), (3, 4), (3, 4), (4, 3), (3, 4), (5, 5))
    sampler = SameSizeBatchSampler(DefaultSampler(dataset, shuffle=False), batch_size=2)
    assert list(sampler) == list(sampler) == [[0, 2], [1, 4], [3, 5], [6]]
    assert len(sampler) == 4
    assert sampler.order == [0, 2, 1, 4, 3, 5, 6]


def test_places_are_those_of_this_process(monkeypatch):
    """Two processes, images dealt out in turn: the second has 1, 3, 5 and, so that both have four, 0."""
    monkeypatch.setattr('mmengine.dataset.sampler.get_dist_info', lambda: (1, 2))
    dataset = Sizes((3, 4), (4, 3), (3, 4), (3, 4), (3, 4), (4, 3), (3, 4))
    sampler = SameSizeBatchSampler(DefaultSampler(dataset, shuffle=False), batch_size=2)
    assert list(sampler) == [[1, 5], [3, 0]]
    assert sampler.order == [0, 2, 1, 3]


def detector_config():
    cfg = Config.fromfile('configs/det/faster-rcnn_r50-c4_8xb2_voc07.py')
    cfg.val_evaluator = use_exact_metrics(cfg.val_evaluator)
    return cfg


@pytest.mark.parametrize('gpu', [True, False])
def test_the_full_size_config_is_evaluated_in_batches_on_a_gpu(gpu, monkeypatch):
    monkeypatch.setattr('torch.cuda.is_available', lambda: gpu)
    cfg = detector_config()
    batch_evaluation(cfg)
    assert cfg.val_dataloader.batch_size == (8 if gpu else 1)
    assert cfg.val_dataloader.batch_sampler == dict(type='SameSizeBatchSampler')


@pytest.mark.parametrize(
    'options',
    [
        {'val_dataloader.batch_size': 4},
        {'val_dataloader.drop_last': True},
        {'val_dataloader.dataset.type': 'CocoDataset'},
        {'val_dataloader.dataset.pipeline.1': dict(type='RandomResize', scale=[(9, 9), (8, 8)])},
        {'val_evaluator.0.type': 'CocoMetric'},
        {'val_dataloader.batch_sampler': dict(type='AspectRatioBatchSampler')},
    ],
)
def test_what_is_not_known_stays_as_it_is(options):
    cfg = detector_config()
    cfg.merge_from_dict(options)
    before = cfg.val_dataloader.to_dict()
    batch_evaluation(cfg)
    assert cfg.val_dataloader.to_dict() == before


def test_predictions_are_those_of_single_images_in_the_order_of_the_list(data_root, tmp_path, monkeypatch):
    config = 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py'
    options = ['total_batch_size=2', 'train_cfg.max_epochs=1', 'val_dataloader.batch_size=1']
    batches, found = [], []
    monkeypatch.setattr(det_speed, 'val_batch', lambda: 3)
    for name in ('batches', 'single'):
        if name == 'single':
            monkeypatch.setattr(det_speed, 'batch_evaluation', lambda cfg: None)
        places = ['--backbone', 'none', '--work-dir', str(tmp_path / name), '--data-root', str(data_root)]
        finetune.finetune(finetune.parse_args([config, *places, '--cfg-options', *options]))
        (log,) = (tmp_path / name).glob('*/*.log')
        batches.append(re.findall(r'Epoch\(val\) *\[1\]\[(\d+)/\d+\]', log.read_text())[-1])
        found.append(load_predictions(tmp_path / name, 'det'))
    assert batches == ['3', '8'], 'five wide images and three narrow ones, at most three in a batch'
    (one, names), (other, other_names) = found
    assert list(names) == list(other_names) == [f'{number:06d}' for number in range(5, 13)]
    assert np.array_equal(one.boxes, other.boxes)
    assert len(one.score) == len(other.score) > 20
    order, other_order = (np.lexsort((x.score, x.label, x.image)) for x in (one, other))
    for key in ('image', 'label', 'hit'):
        assert np.array_equal(getattr(one, key)[order], getattr(other, key)[other_order])
    assert np.allclose(one.score[order], other.score[other_order], atol=1e-4)


def test_two_processes_put_their_images_in_the_order_of_the_list(data_root, tmp_path):
    command = [
        *[sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'],
        *['-m', 'transfer.finetune', 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py', '--backbone', 'none'],
        *['--work-dir', str(tmp_path), '--data-root', str(data_root), '--launcher', 'pytorch'],
        *['--cfg-options', 'total_batch_size=4', 'train_cfg.max_epochs=1', 'val_dataloader.batch_size=3'],
        'val_dataloader.batch_sampler.type=SameSizeBatchSampler',
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'})
    assert done.returncode == 0, done.stderr[-2000:]
    found, names = load_predictions(tmp_path, 'det')
    assert list(names) == [f'{number:06d}' for number in range(5, 13)]
    # Image n of the tree shows one object of class 2n - 2 and one of the next, of twenty.
    expected = np.zeros((8, 20), int)
    for row, number in enumerate(range(5, 13)):
        expected[row, [(2 * number - 2) % 20, (2 * number - 1) % 20]] = 1
    assert np.array_equal(found.boxes, expected)
