"""Fine-tuning: the backbone provably arrives, a broken-off run goes on, result.json says what was run."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from sd_pretrain.cli import InputError
from transfer import finetune, mmcv_ops
from transfer.backbone import prove_loaded, put_into, read_backbone
from transfer.bootstrap import resampled_ap, resampled_iou
from transfer.predictions import load_predictions

REPO = Path(__file__).resolve().parents[2]
DET = str(REPO / 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py')
SEG = str(REPO / 'configs/demo/deeplabv3_r18-d16_demo-voc12.py')
TINY = [
    *[
        'total_batch_size=2',
        'train_cfg.max_epochs=2',
        'train_cfg.val_interval=1',
        'val_dataloader.batch_size=1',
    ],
    'default_hooks.logger.interval=1',
]


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    tensors = {key: value for key, value in resnet18().state_dict().items() if not key.startswith('fc.')}
    path = tmp_path_factory.mktemp('backbone') / 'r18.pth'
    torch.save({'meta': {}, 'state_dict': tensors}, path)
    return path


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    return write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data')


def detector(path):
    mmcv_ops.install()
    init_default_scope('mmdet')
    from mmdet.registry import MODELS

    cfg = Config.fromfile(DET)
    put_into(cfg, read_backbone(path))
    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


def test_every_tensor_of_backbone_and_shared_head_is_proved_to_be_loaded(backbone):
    file = read_backbone(backbone)
    model = detector(backbone)
    # R18: 5 of the stem, 2 blocks of 12 tensors in each of 4 stages, 6 of each of 3 downsamplings; each
    # BatchNorm has 5 tensors, each convolution 1. Together all that the file holds: none is in both places.
    assert prove_loaded(model, file.tensors) == len(file.tensors) == 120

    with torch.no_grad():
        model.roi_head.shared_head.layer4[0].bn1.running_mean += 1
    with pytest.raises(RuntimeError, match=r'1 different \(roi_head.shared_head.layer4.0.bn1.running_mean\)'):
        prove_loaded(model, file.tensors)


def test_nothing_of_random_weights_is_frozen(backbone):
    frozen = {
        name: {key for key, value in detector(path).named_parameters() if not value.requires_grad}
        for name, path in {'file': backbone, 'random': 'none'}.items()
    }
    assert {'backbone.conv1.weight', 'backbone.layer2.0.bn2.weight'} <= frozen['file']
    assert not frozen['random']
    model = detector('none').train()
    assert not model.backbone.layer2[0].bn2.training, 'its statistics stay'


def test_a_shared_head_left_random_is_found_out(backbone):
    random = detector('none')
    file = read_backbone(backbone)
    random.backbone.load_state_dict(file.tensors, strict=False)
    with pytest.raises(RuntimeError, match=r'different .*roi_head.shared_head.layer4.0.conv1.weight'):
        prove_loaded(random, file.tensors)


def test_a_file_that_lacks_tensors_is_found_out(backbone):
    file = read_backbone(backbone)
    model = detector(backbone)
    tensors = {key: value for key, value in file.tensors.items() if key != 'layer3.1.conv2.weight'}
    with pytest.raises(RuntimeError, match=r'1 not in the file \(backbone.layer3.1.conv2.weight\)'):
        prove_loaded(model, tensors)


def test_wrong_backbones_are_refused(backbone, tmp_path):
    cfg = Config.fromfile(REPO / 'configs/det/faster-rcnn_r50-c4_8xb2_voc07.py')
    with pytest.raises(InputError, match=r'is a resnet18.* is for a resnet50'):
        put_into(cfg, read_backbone(backbone))
    other = tmp_path / 'head.pth'
    torch.save({'state_dict': {'fc.weight': torch.zeros(2, 2)}}, other)
    with pytest.raises(InputError, match=r'no conv1\.weight'):
        read_backbone(other)


def arguments(config, backbone, work_dir, data_root, *more, options=()):
    paths = ['--backbone', str(backbone), '--work-dir', str(work_dir), '--data-root', str(data_root)]
    return finetune.parse_args([config, *paths, *more, '--cfg-options', *TINY, *options])


def assert_stored_predictions_give(metrics, work_dir, task):
    found, images = load_predictions(work_dir, task)
    once = np.ones((1, len(images)), np.float32)
    if task == 'det':
        again = {
            f'mAP_{mode.replace("s", "")}': resampled_ap(found, once, mode) for mode in ('11points', 'area')
        }
    else:
        again = {'mIoU': resampled_iou(found, once)}
    assert {key: np.nanmean(value) for key, value in again.items()} == pytest.approx(metrics, abs=1e-6)


def test_detection_is_broken_off_and_goes_on(backbone, data_root, tmp_path, monkeypatch):
    work_dir = tmp_path / 'BL' / 'seed3'
    epochs = []

    def break_off(self, runner):
        epochs.append(runner.epoch)
        if epochs == [0, 1]:
            raise KeyboardInterrupt

    monkeypatch.setattr(finetune._ResultHook, 'before_train_epoch', break_off)
    args = arguments(DET, backbone, work_dir, data_root, '--seed', '3')
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(args)
    assert not (work_dir / 'result.json').exists()

    with pytest.raises(InputError, match='broken-off run; --resume'):
        finetune.finetune(args)
    other = arguments(DET, 'none', work_dir, data_root, '--seed', '4', '--resume')
    with pytest.raises(
        InputError, match=r'another run: backbone was .*r18.pth.*, is now none.*; seed was 3, is now 4'
    ):
        finetune.finetune(other)

    again = arguments(DET, backbone, work_dir, data_root, '--seed', '3', '--resume')
    finetune.finetune(again)
    assert epochs == [0, 1, 1], 'the first epoch is not run twice'
    stored = json.loads((work_dir / 'result.json').read_text())['metrics']
    assert_stored_predictions_give(stored, work_dir, 'det')

    result = json.loads((work_dir / 'result.json').read_text())
    assert {
        'name': 'BL',
        'seed': 3,
        'task': 'det',
        'dataset': 'voc07',
        'images': [4, 2],
        'arch': 'resnet18',
    }.items() <= result.items()
    assert result['sha256'] == read_backbone(backbone).sha256
    assert result['config'] == 'configs/demo/faster-rcnn_r18-c4_demo-voc07.py'
    assert set(result['metrics']) == {'mAP_11point', 'mAP_area'}
    assert len(result['per_class']) == 4, 'two images with two classes each'
    assert result['metrics']['mAP_11point'] == pytest.approx(sum(result['per_class'].values()) / 4)
    assert (work_dir / result['checkpoint']).is_file()
    logged = [
        line for log in work_dir.glob('*/vis_data/scalars.json') for line in log.read_text().splitlines()
    ]
    assert sum('area/mAP' in line for line in logged) == 2

    assert finetune.finetune(again) == result
    assert epochs == [0, 1, 1], 'a finished run is not run again'


def break_off(self, runner):
    if runner.epoch == 1:
        raise KeyboardInterrupt


def assert_equal_networks(one, other):
    weights = [torch.load(work / 'epoch_2.pth', weights_only=False)['state_dict'] for work in (one, other)]
    assert weights[0].keys() == weights[1].keys()
    assert [key for key in weights[0] if not torch.equal(weights[0][key], weights[1][key])] == []


@pytest.mark.parametrize('config, workers', [(DET, 0), (DET, 2), (SEG, 2)], ids=['det', 'det 2', 'seg 2'])
def test_a_run_that_goes_on_equals_the_unbroken_one(data_root, tmp_path, monkeypatch, config, workers):
    """And the images are drawn by seed, epoch and image alone, whatever loads them."""
    unbroken, broken = tmp_path / 'unbroken', tmp_path / 'broken'
    finetune.finetune(arguments(config, 'none', unbroken, data_root))
    loader = [f'train_dataloader.num_workers={workers}', f'train_dataloader.persistent_workers={workers > 0}']
    args = arguments(config, 'none', broken, data_root, '--resume', options=loader)
    with monkeypatch.context() as patch:
        patch.setattr(finetune._ResultHook, 'before_train_epoch', break_off)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(args)
    finetune.finetune(args)
    assert_equal_networks(unbroken, broken)


def test_a_run_of_another_memory_format_goes_on_as_it_was(data_root, tmp_path, monkeypatch):
    """A checkpoint from a GPU has its momentum channels-last; PyTorch's fused SGD would mix it up."""

    works = [tmp_path / 'cpu', tmp_path / 'gpu']
    with monkeypatch.context() as patch:
        patch.setattr(finetune._ResultHook, 'before_train_epoch', break_off)
        with pytest.raises(KeyboardInterrupt):
            finetune.finetune(arguments(DET, 'none', works[0], data_root))
    shutil.copytree(*works)
    checkpoint = torch.load(works[1] / 'epoch_1.pth', weights_only=False)
    changed = 0
    for state in checkpoint['optimizer']['state'].values():
        momentum = state['momentum_buffer']
        if momentum.ndim == 4:
            state['momentum_buffer'] = momentum.contiguous(memory_format=torch.channels_last)
            changed += not state['momentum_buffer'].is_contiguous()
    assert changed > 10
    torch.save(checkpoint, works[1] / 'epoch_1.pth')
    for work_dir in works:
        finetune.finetune(arguments(DET, 'none', work_dir, data_root, '--resume'))
    assert_equal_networks(*works)


def test_segmentation_from_random_weights(data_root, tmp_path):
    finetune.finetune(arguments(SEG, 'none', tmp_path / 'scratch', data_root))
    result = json.loads((tmp_path / 'scratch' / 'result.json').read_text())
    assert {'name': 'scratch', 'task': 'seg', 'backbone': 'none', 'sha256': 'none'}.items() <= result.items()
    assert result['metrics']['mIoU'] == pytest.approx(
        sum(result['per_class'].values()) / len(result['per_class'])
    )
    assert 'background' in result['per_class'] and 0 < result['metrics']['mIoU'] <= 1
    assert_stored_predictions_give(result['metrics'], tmp_path / 'scratch', 'seg')
    with pytest.raises(InputError, match='cannot be read as the predictions of a det run'):
        load_predictions(tmp_path / 'scratch', 'det')


def test_an_image_that_breaks_off_names_itself(data_root, tmp_path):
    root = shutil.copytree(data_root, tmp_path / 'data')
    image = next((root / 'VOCdevkit/VOC2007/JPEGImages').iterdir())
    # The header is whole, so that no check before the training can know.
    image.write_bytes(image.read_bytes()[: image.stat().st_size // 2])
    with pytest.raises(InputError, match=f'cannot read image {image}; unpack'):
        finetune.finetune(arguments(DET, 'none', tmp_path / 'work', root))


def test_two_processes_share_the_total_batch(backbone, data_root, tmp_path):
    """By gloo instead of nccl, with BN instead of SyncBN."""
    command = [
        *[sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'],
        *['-m', 'transfer.finetune', SEG, '--backbone', str(backbone), '--work-dir', str(tmp_path / 'two')],
        *['--data-root', str(data_root), '--launcher', 'pytorch', '--cfg-options', 'train_cfg.max_epochs=1'],
        *['total_batch_size=4', 'default_hooks.logger.interval=1'],
    ]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert 'Epoch(train) [1][1/1]' in done.stdout, 'four images, two in each process: one iteration'
    assert json.loads((tmp_path / 'two' / 'result.json').read_text())['metrics'].keys() == {'mIoU'}


@pytest.mark.parametrize(
    ('config', 'more', 'message'),
    [
        ('configs/det/nope.py', [], 'no config configs/det/nope.py'),
        (str(REPO / 'configs/_base_/models/faster-rcnn_r50-c4.py'), [], 'no config of a transfer task'),
        (DET, ['--cfg-options', 'foo'], 'foo: KEY=VALUE'),
        (DET, ['--data-root', '/nowhere'], 'no /nowhere/VOCdevkit/VOC2007/ImageSets/Main/trainval.txt'),
        (DET, ['--launcher', 'pytorch'], '--launcher pytorch: RANK, WORLD_SIZE, LOCAL_RANK not set'),
    ],
)
def test_mistakes_are_named(config, more, message, tmp_path, monkeypatch):
    monkeypatch.delenv('RANK', raising=False)
    with pytest.raises(InputError, match=message):
        finetune.finetune(
            finetune.parse_args([config, '--backbone', 'none', '--work-dir', str(tmp_path / 'w'), *more])
        )
    assert not (tmp_path / 'w').exists()


def test_detection_on_both_years_has_metrics_of_its_own(backbone, tmp_path, write_tiny_voc):
    root = write_tiny_voc(tmp_path / 'data')
    for folder in ('Annotations', 'ImageSets/Main'):
        shutil.copytree(root / 'VOCdevkit/VOC2007' / folder, root / 'VOCdevkit/VOC2012' / folder)
    both = str(REPO / 'configs/demo/faster-rcnn_r18-c4_demo-voc0712.py')
    args = arguments(both, backbone, tmp_path / 'BL', root)
    args.cfg_options['train_cfg.max_epochs'] = 1
    result = finetune.finetune(args)
    assert result['dataset'] == 'voc0712'
    assert set(result['metrics']) == {'mAP_11point_voc0712', 'mAP_area_voc0712'}
    (log,) = (tmp_path / 'BL').glob('*/*.log')
    assert '[1][4/4]' in log.read_text(), '4 + 4 images, two at a time'
