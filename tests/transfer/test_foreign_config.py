"""Stock configs of mmdet and mmseg, as a user brings them: adopted, given the backbone, trained, measured."""

import importlib.util
import json
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import MODELS
from torchvision.models import resnet18

from sd_pretrain.cli import InputError
from transfer import finetune, runner
from transfer.backbone import put_into, read_backbone
from transfer.foreign_config import data_folder
from transfer.predictions import load_predictions
from transfer.results import require_comparable
from transfer.run_record import load_config
from transfer.transfer_report import note_transfer

REPO = Path(__file__).resolve().parents[2]


def stock(package, config):
    root = Path(importlib.util.find_spec(package).submodule_search_locations[0])
    return root / '.mim' / 'configs' / config


RETINANET = """
_base_ = ['{base}']
# For two CPU cores and tiny images: another depth, one small scale, VOC2007 alone.
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
max_epochs = 1
train_cfg = dict(max_epochs=1)
param_scheduler = []
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


@pytest.fixture
def in_repo(monkeypatch):
    monkeypatch.chdir(REPO)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp('backbone')
    torch.save(resnet18().state_dict(), folder / 'r18.pth')
    return runner.backbone_file('A', str(folder / 'r18.pth'), folder)


def written(tmp_path, text, package, config, name='my_config.py'):
    path = tmp_path / name
    path.write_text(text.format(base=stock(package, config)))
    return str(path)


def run(task, dataset, config, backbone, data_root, tmp_path):
    """Plan as tools/transfer.sh does, and run in this process what it would start."""
    options = runner.Options(config=config, data_root=str(data_root))
    (planned,) = runner.plan(runner.find_task(task, dataset), {'A': backbone}, tmp_path / 'w', options)
    assert (planned.identity['task'], planned.identity['dataset']) == (task, dataset)
    return finetune.finetune(finetune.parse_args(planned.arguments)), planned.work_dir


def test_mmdets_retinanet(in_repo, backbone, tiny_voc, tmp_path, capfd):
    config = written(tmp_path, RETINANET, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    result, work_dir = run('det', 'voc07', config, backbone, tiny_voc, tmp_path)
    assert set(result['metrics']) == {'mAP_11point', 'mAP_area'}
    assert result['checkpoint'] == 'epoch_1.pth'
    # All of the file but layer4's twin for a shared head, which this detector has not.
    assert 'backbone: 120 of 120 tensors equal' in capfd.readouterr().out
    assert (work_dir / 'predictions.npz').is_file()


@pytest.mark.parametrize('network', ['resnet18', 'test_convnext'])
def test_mmdets_retinanet_on_any_network(network, in_repo, backbone, tiny_voc, tmp_path, capfd):
    """Its FPN begins at the second map, as stock."""
    pyramid = "backbone=dict(_delete_=True, type='TimmPyramid', name='resnet18')"
    text = RETINANET.replace('backbone=dict(depth=18)', pyramid) + (
        "custom_imports = dict(imports=['transfer.timm_pyramid'], allow_failed_imports=False)\n"
    )
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    if network != 'resnet18':
        torch.save(timm.create_model(network).state_dict(), tmp_path / 'c.pth')
        backbone = f'{network}@{tmp_path / "c.pth"}'
    result, work_dir = run('det', 'voc07', config, backbone, tiny_voc, tmp_path)
    assert result['arch'] == network and (work_dir / 'predictions.npz').is_file()
    assert f'tensors equal those of {read_backbone(backbone).path}' in capfd.readouterr().out


def test_a_config_without_a_data_root_and_without_a_test(in_repo, backbone, tiny_voc, tmp_path):
    text = RETINANET.replace(
        "data_root='data/VOCdevkit/',\n    ann_file='VOC2007/", f"ann_file='{tiny_voc}/VOCdevkit/VOC2007/"
    )
    text = text.replace("sub_data_root='", f"sub_data_root='{tiny_voc}/VOCdevkit/")
    text += 'test_dataloader = test_cfg = test_evaluator = None\n'
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    result, work_dir = run('det', 'voc07', config, backbone, tiny_voc, tmp_path)
    assert result['checkpoint'] == 'epoch_1.pth'
    cfg = Config.fromfile(work_dir / 'my_config.py')
    assert cfg.test_dataloader.dataset == cfg.val_dataloader.dataset


def test_mmsegs_fcn_counts_in_iterations(in_repo, backbone, tiny_voc, tmp_path):
    config = written(tmp_path, FCN, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    result, work_dir = run('seg', 'voc12', config, backbone, tiny_voc, tmp_path)
    assert set(result['metrics']) == {'mIoU'} and result['seconds'] > 0
    assert result['checkpoint'] == 'iter_3.pth'
    assert [path.name for path in work_dir.glob('*.pth')] == ['iter_3.pth']
    assert json.loads((work_dir / 'result.json').read_text()) == result


@pytest.mark.parametrize('demo', [False, True])
def test_a_run_says_whether_it_is_on_the_emoji_world(in_repo, backbone, tiny_voc, tmp_path, demo):
    if demo:
        (tiny_voc / 'world.json').write_text('{}')
    config = written(tmp_path, RETINANET, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    options = runner.Options(config=config, data_root=str(tiny_voc))
    (planned,) = runner.plan(runner.find_task('det', 'voc07'), {'A': backbone}, tmp_path / 'w', options)
    assert planned.identity['demo'] is demo
    result = {**planned.identity, 'metrics': {'mAP_11point': 0.5}}
    assert note_transfer(tmp_path, [result], [])['data'] == ('demo' if demo else 'real')


def test_a_batch_is_that_of_one_gpu_so_other_gpus_make_another_run(in_repo, backbone, tiny_voc, tmp_path):
    config = written(tmp_path, RETINANET, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')

    def planned(gpus):
        options = runner.Options(config=config, data_root=str(tiny_voc), gpus=gpus)
        return runner.plan(runner.find_task('det', 'voc07'), {'A': backbone}, tmp_path / 'w', options)[0]

    one, two = (planned(gpus).identity for gpus in (1, 2))
    with pytest.raises(InputError, match=r'my_config\.py.* from two settings'):
        require_comparable([one, {**two, 'seed': 1}])
    finetune.finetune(finetune.parse_args(planned(1).arguments))
    assert planned(1).state == 'all'
    with pytest.raises(InputError, match='holds another run: config was'):
        planned(2)


def test_masks_are_looked_for_where_the_config_has_them(in_repo, backbone, tiny_voc, tmp_path):
    voc12 = tiny_voc / 'VOCdevkit' / 'VOC2012'
    lists = voc12 / 'ImageSets' / 'Segmentation'
    (lists / 'trainaug.txt').write_text((lists / 'train.txt').read_text() + (lists / 'aug.txt').read_text())
    text = FCN.replace("'SegmentationClass'", "'SegmentationClassAug'").replace('/train.txt', '/trainaug.txt')
    config = written(tmp_path, text, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    options = runner.Options(config=config, data_root=str(tiny_voc))
    task = runner.find_task('seg', 'voc12')
    assert len(runner.plan(task, {'A': backbone}, tmp_path / 'w', options)) == 1
    next((voc12 / 'SegmentationClassAug').iterdir()).unlink()
    with pytest.raises(InputError, match='SegmentationClassAug lacks 1 files that the lists name'):
        runner.plan(task, {'A': backbone}, tmp_path / 'w', options)


@pytest.mark.parametrize('hook', ['None', 'dict(interval=2, save_last=False)'])
def test_the_network_that_is_measured_is_saved_whatever_the_config_says(
    in_repo, backbone, tiny_voc, tmp_path, hook
):
    text = FCN.replace('checkpoint=dict(interval=2)', f'checkpoint={hook}')
    config = written(tmp_path, text, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    result, work_dir = run('seg', 'voc12', config, backbone, tiny_voc, tmp_path)
    assert result['checkpoint'] == 'iter_3.pth'
    assert [path.name for path in work_dir.glob('*.pth')] == ['iter_3.pth']


@pytest.mark.parametrize(
    ('addition', 'message'),
    [
        ("model = dict(backbone=dict(type='ResNetV1d'))", r'backbone of my_config\.py is a ResNetV1d'),
        ("model = dict(backbone=dict(style='caffe'))", r"style='caffe'"),
        ('model = dict(backbone=dict(avg_down=True))', 'has avg_down=True, which'),
        ('model = dict(backbone=dict(stem_channels=128))', 'backbone of .* has stem_channels=128, which'),
        ('model = dict(backbone=dict(base_channels=32))', 'backbone of .* has base_channels=32, which'),
        (
            "val_dataloader = dict(dataset=dict(pipeline=[dict(type='TestTimeAug', transforms=[])]))",
            r'with TestTimeAug, .*: take it out of val_dataloader\.dataset\.pipeline',
        ),
        (
            "train_dataloader = dict(dataset=dict(type='ClassBalancedDataset', times=None))",
            'has a ClassBalancedDataset of a ConcatDataset, which cannot say',
        ),
        (
            "train_dataloader = dict(sampler=dict(_delete_=True, type='ClassAwareSampler'))",
            'has a ClassAwareSampler of a RepeatDataset, which cannot say',
        ),
        ("model = dict(roi_head=dict(shared_head=dict(style='caffe')))", r"shared_head of .*style='caffe'"),
        ("load_from = 'coco.pth'", r'from coco\.pth, the backbone with it'),
        ("val_evaluator = dict(_delete_=True, type='CocoMetric')", r'CocoMetric: VOCMetric is needed'),
        ("default_scope = 'mmpose'", "default_scope is 'mmpose'"),
        ('val_evaluator = None', 'lacks val_evaluator'),
        ('train_cfg = val_cfg = None', 'lacks train_cfg, val_cfg: it cannot be trained and evaluated'),
        (
            "model = dict(init_cfg=dict(type='Pretrained', checkpoint='coco.pth'))",
            r'from coco\.pth, the backbone with it: set model\.init_cfg=None',
        ),
        (
            "model = dict(backbone=dict(conv_cfg=dict(type='ConvWS')))",
            "has conv_cfg={'type': 'ConvWS'}, which",
        ),
        (
            "model = dict(backbone=dict(norm_cfg=dict(_delete_=True, type='GN', num_groups=32)))",
            "has norm_cfg.type='GN', which",
        ),
        (
            "model = dict(backbone=dict(norm_cfg=dict(type='BN', eps=1e-3)))",
            r'has norm_cfg\.eps=0\.001, which',
        ),
        ('model = dict(data_preprocessor=dict(bgr_to_rgb=False))', 'leaves images in BGR'),
        (
            'model = dict(bbox_head=dict(num_classes=80))',
            r'has 80 classes, and the data has 20: set model\.bbox_head\.num_classes=20',
        ),
        (
            'model = dict(roi_head=dict(bbox_head=[dict(num_classes=20), dict(num_classes=80)]))',
            r'has 80 classes, .*: set model\.roi_head\.bbox_head\.num_classes=20',
        ),
        (
            "model = dict(roi_head=dict(mask_head=dict(type='FCNMaskHead')))",
            r'has a model\.roi_head\.mask_head, which learns masks',
        ),
        (
            "default_hooks = dict(checkpoint=dict(save_best='pascal_voc/mAP'))",
            'by pascal_voc/mAP, which is not measured: .* one of auto, 11point/mAP, area/mAP',
        ),
        (
            "custom_hooks = [dict(type='EarlyStoppingHook', monitor='11point/mAP')]",
            'has EarlyStoppingHook, .*: take it out of custom_hooks',
        ),
        (
            "default_hooks = dict(stop=dict(type='EarlyStoppingHook', monitor='11point/mAP'))",
            'has EarlyStoppingHook, .*: take it out of default_hooks',
        ),
        (
            "param_scheduler = dict(_delete_=True, type='ReduceOnPlateauLR', monitor='11point/mAP')",
            'has ReduceOnPlateauLR, .*: take it out of param_scheduler',
        ),
        (
            "val_dataloader = dict(dataset=dict(ann_file='VOC2012/ImageSets/Main/val.txt'))",
            'trains on VOC2007 and VOC2012 and tests on VOC2012: there are det voc07',
        ),
    ],
)
def test_what_cannot_be_judged_is_refused(in_repo, backbone, tiny_voc, tmp_path, addition, message):
    base = "_base_ = ['{base}']\n"
    config = written(tmp_path, base + addition + '\n', 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    options = runner.Options(config=config, data_root=str(tiny_voc))
    with pytest.raises(InputError, match=message):
        runner.plan(runner.find_task('det', 'voc07'), {'A': backbone}, tmp_path / 'w', options)


def test_classes_are_not_balanced_by_a_dataset_that_cannot_say_them(tmp_path):
    text = FCN + (
        "train_dataloader['dataset'] = dict(\n"
        "    _delete_=True, type='ClassBalancedDataset', oversample_thr=0.5,\n"
        "    dataset={{k: v for k, v in train_dataloader['dataset'].items() if k != '_delete_'}})\n"
    )
    config = written(tmp_path, text, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    with pytest.raises(
        InputError, match='has a ClassBalancedDataset of a PascalVOCDataset, which cannot say'
    ):
        load_config(config)


def test_float16_without_a_gpu_is_refused_and_for_slurm_it_may_wait(in_repo, backbone, tiny_voc, tmp_path):
    text = RETINANET + "optim_wrapper = dict(type='AmpOptimWrapper', loss_scale='dynamic')\n"
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')

    def planned(**how):
        options = runner.Options(config=config, data_root=str(tiny_voc), **how)
        return runner.plan(runner.find_task('det', 'voc07'), {'A': backbone}, tmp_path / 'w', options)

    with pytest.raises(InputError, match=r'my_config\.py trains in float16 .* a GPU: add --amp'):
        planned()
    assert len(planned(amp=True)) == 1
    (run,) = planned(slurm='partition=gpu')
    with pytest.raises(InputError, match='trains in float16'):
        finetune.finetune(finetune.parse_args(run.arguments))


def test_as_many_classes_as_the_config_takes_of_the_data(tmp_path):
    two = "metainfo=dict(classes=('cat', 'dog'))"
    text = (
        "_base_ = ['{base}']\nmodel = dict(bbox_head=dict(num_classes=2))\n"
        f'val_dataloader = dict(dataset=dict({two}))\n'
    )
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    assert load_config(config).dataset == 'voc0712'


def test_every_test_image_comes_in_its_place(in_repo, backbone, tiny_voc, tmp_path):
    # Of 2 test images no batch of 4 is full.
    text = RETINANET + (
        'val_dataloader.update(batch_size=4, drop_last=True,\n'
        "    sampler=dict(_delete_=True, type='DefaultSampler'))\n"
    )
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    _, work_dir = run('det', 'voc07', config, backbone, tiny_voc, tmp_path)
    found, images = load_predictions(work_dir, 'det')
    annotations = tiny_voc / 'VOCdevkit' / 'VOC2007' / 'Annotations'
    boxes = [(annotations / f'{one}.xml').read_text().count('<object>') for one in images]
    assert found.boxes.sum(1).tolist() == boxes and len(boxes) == 2
    cfg = Config.fromfile(work_dir / 'my_config.py')
    assert cfg.val_dataloader.sampler == dict(type='DefaultSampler', shuffle=False)


def test_what_mmengine_supplies_may_be_left_out(in_repo, backbone, tiny_voc, tmp_path):
    text = FCN.replace(
        'default_hooks = dict(checkpoint=dict(interval=2), logger=dict(interval=1))',
        'default_hooks = dict(_delete_=True)\n'
        "optim_wrapper = dict(_delete_=True, optimizer=dict(type='SGD', lr=0.01))",
    )
    config = written(tmp_path, text, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    result, _ = run('seg', 'voc12', config, backbone, tiny_voc, tmp_path)
    assert result['checkpoint'] == 'iter_3.pth'


def test_after_a_run_broken_off_in_its_last_validation_the_average_is_measured_too(
    in_repo, backbone, tiny_voc, tmp_path, monkeypatch
):
    from mmseg.models import EncoderDecoder

    measured, predict = [], EncoderDecoder.predict

    def noted(self, *args):
        measured.append(self.decode_head.conv_seg.bias.tolist())
        return predict(self, *args)

    monkeypatch.setattr(EncoderDecoder, 'predict', noted)
    text = FCN + "custom_hooks = [dict(type='EMAHook')]\n"
    config = written(tmp_path, text, 'mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    _, work_dir = run('seg', 'voc12', config, backbone, tiny_voc, tmp_path)
    (work_dir / 'result.json').unlink()
    once = len(measured)
    run('seg', 'voc12', config, backbone, tiny_voc, tmp_path)
    saved = torch.load(work_dir / 'iter_3.pth', weights_only=False)['state_dict']
    assert len(measured) == 2 * once > 0
    assert all(one == saved['decode_head.conv_seg.bias'].tolist() for one in measured)


@pytest.mark.parametrize('random', [False, True])
def test_other_weights_that_a_config_names_are_not_taken(in_repo, backbone, tmp_path, random):
    text = (
        "_base_ = ['{base}']\nmodel = dict(backbone=dict(depth=18, pretrained='other.pth', init_cfg=None))\n"
    )
    config = written(tmp_path, text, 'mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    cfg = load_config(config)
    put_into(cfg, read_backbone('none' if random else backbone))
    network = MODELS.build({**cfg.model.backbone, '_scope_': 'mmdet'})
    loaded = [one.get('checkpoint') for one in [network.init_cfg] if isinstance(one, dict)]
    assert loaded == ([] if random else [backbone])


def test_a_config_of_another_task_is_refused(in_repo, backbone, tiny_voc, tmp_path):
    options = runner.Options(
        config='configs/demo/deeplabv3_r18-d16_demo-voc12.py', data_root=str(tiny_voc), work_dir=tmp_path
    )
    with pytest.raises(InputError, match=r'demo-voc12\.py is for seg voc12, not det voc07'):
        runner.run_transfer('det', 'voc07', {'A': backbone}, options)


def test_own_configs_are_left_alone():
    cfg = load_config(REPO / 'configs/det/faster-rcnn_r50-c4_8xb2_voc07.py')
    assert (cfg.task, cfg.dataset) == ('det', 'voc07') and len(cfg.val_evaluator) == 2


def test_the_voc_folder_however_the_path_is_split():
    lists = 'ImageSets/Main/test.txt'
    for root, file in (('data/VOCdevkit/', f'VOC2007/{lists}'), ('data/VOCdevkit/VOC2007', lists)):
        assert data_folder({'data_root': root, 'ann_file': file}) == Path('data/VOCdevkit/VOC2007')
