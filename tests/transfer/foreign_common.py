"""Stock configs of mmdet and mmseg as a user would bring them, and a run with one, for the tests of both."""

import importlib.util
from pathlib import Path

from transfer import finetune, runner


def stock(package, config):
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return root / '.mim' / 'configs' / config


# For two CPU cores and tiny images: another depth, one small scale.
SMALL_RETINANET = """
_base_ = ['{base}']
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', scale=(96, 96), keep_ratio=True), dict(type='PackDetInputs'),
]
test_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
]
model = dict(backbone=dict(depth=18), neck=dict(in_channels=[64, 128, 256, 512]))
train_cfg = dict(max_epochs=1)
param_scheduler = []
"""
# On VOC2007 alone.
RETINANET = f"""{SMALL_RETINANET}
max_epochs = 1
train_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='VOCDataset', data_root='data/VOCdevkit/',
    ann_file='VOC2007/ImageSets/Main/trainval.txt', data_prefix=dict(sub_data_root='VOC2007/'),
    pipeline=train_pipeline))
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=test_pipeline))
"""
FCN = """
_base_ = ['{base}']
train_pipeline = [
    dict(type='LoadImageFromFile'), dict(type='LoadAnnotations'),
    dict(type='RandomCrop', crop_size=(48, 48)), dict(type='PackSegInputs'),
]
data = dict(pipeline=train_pipeline)
train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False, dataset=dict(
    _delete_=True, type='PascalVOCDataset', data_root='data/VOCdevkit/VOC2012',
    data_prefix=dict(img_path='JPEGImages', seg_map_path='SegmentationClass'),
    ann_file='ImageSets/Segmentation/train.txt', pipeline=train_pipeline))
# Stock configs enlarge test images to 512 pixels.
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=dict(pipeline=[
    dict(type='LoadImageFromFile'), dict(type='Resize', scale=(96, 96), keep_ratio=True),
    dict(type='LoadAnnotations'), dict(type='PackSegInputs'),
]))
model = dict(data_preprocessor=dict(size=(48, 48)), backbone=dict(type='ResNet', depth=18),
    decode_head=dict(in_channels=512, channels=32), auxiliary_head=dict(in_channels=256, channels=16))
train_cfg = dict(max_iters=3, val_interval=3)
default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))
"""


def written(tmp_path, text, package, config, name='my_config.py'):
    path = tmp_path / name
    path.write_text(text.format(base=stock(package, config)))
    return str(path)


def run(task, dataset, config, backbone, data_root, tmp_path):
    """Plan as tools/transfer.sh does, and run in this process what it would start."""
    options = runner.Options(config=config, data_root=str(data_root))
    (planned,) = runner.plan(
        runner.find_task(task, dataset, config), {'A': backbone}, tmp_path / 'w', options
    )
    assert (planned.identity['task'], planned.identity['dataset']) == (task, dataset)
    return finetune.finetune(finetune.parse_args(planned.arguments)), planned.work_dir
