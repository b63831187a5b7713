"""Stock configs of mmdet and mmseg that cannot be judged, or not here, each with a word to the user."""

import pytest
from foreign_common import FCN, RETINANET, written

from sd_pretrain.cli import InputError
from transfer import finetune, runner
from transfer.run_record import load_config


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
        (
            'model = dict(data_preprocessor=dict(bgr_to_rgb=False))',
            r'leaves images in BGR, .*: set model\.data_preprocessor\.bgr_to_rgb=True',
        ),
        ('model = dict(data_preprocessor=dict(mean=None, std=None))', 'does not normalise its images'),
        (
            'model = dict(data_preprocessor=dict(mean=None, std=None))\n'
            "normalize = dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1], to_rgb=False)\n"
            "trainval = dict(ann_file='VOC2007/ImageSets/Main/trainval.txt', pipeline=[normalize])\n"
            'train_dataloader = dict(dataset=dict(dataset=dict(datasets=[trainval])))',
            'leaves images in BGR, .*: set to_rgb=True in its Normalize',
        ),
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


def test_a_config_of_another_task_is_refused(in_repo, backbone, tiny_voc, tmp_path):
    options = runner.Options(
        config='configs/demo/deeplabv3_r18-d16_demo-voc12.py', data_root=str(tiny_voc), work_dir=tmp_path
    )
    with pytest.raises(InputError, match=r'demo-voc12\.py is for seg voc12, not det voc07'):
        runner.run_transfer('det', 'voc07', {'A': backbone}, options)
