"""Stock configs of mmdet and mmseg, as a user brings them: adopted, given the backbone, trained, measured."""

import json
from pathlib import Path

import pytest
import timm
import torch
from foreign_common import FCN, RETINANET, run, written
from mmengine.config import Config
from mmengine.registry import MODELS

from sd_pretrain.cli import InputError
from transfer import finetune, runner
from transfer.backbone import put_into, read_backbone
from transfer.image_lists import data_folder
from transfer.predictions import load_predictions
from transfer.results import require_comparable
from transfer.run_record import load_config
from transfer.transfer_report import note_transfer

REPO = Path(__file__).resolve().parents[2]


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


DRAWS = """
train_pipeline.insert(2, dict(type='RandomResize', scale=(96, 96), ratio_range=(0.7, 1.0), keep_ratio=True))
train_pipeline.insert(3, dict(type='RandomFlip', prob=0.5))
train_dataloader.update(num_workers={workers}, persistent_workers={workers} > 0)
train_dataloader['dataset']['pipeline'] = train_pipeline
default_hooks = dict(checkpoint=dict(by_epoch=False, interval=2))
"""
# Over more than one pass of the images.
BY_ITERATIONS = """
train_cfg = dict(_delete_=True, type='IterBasedTrainLoop', max_iters=5, val_interval=5)
train_dataloader.update(batch_size=2)
"""


@pytest.mark.parametrize('workers', [0, 2])
@pytest.mark.parametrize('task', ['det', 'seg'])
def test_a_run_that_counts_in_iterations_goes_on_and_equals_the_unbroken_one(
    in_repo, backbone, tiny_voc, tmp_path, monkeypatch, task, workers
):
    """With mmdet's finite sampler and batches by shape, and with mmseg's infinite one."""
    if task == 'det':
        text, stock = RETINANET + BY_ITERATIONS, ('mmdet', 'pascal_voc/retinanet_r50_fpn_1x_voc0712.py')
    else:
        text, stock = FCN.replace('=3', '=5'), ('mmseg', 'fcn/fcn_r50-d8_4xb4-20k_voc12aug-512x512.py')
    dataset = {'det': 'voc07', 'seg': 'voc12'}[task]

    def weights(name, workers):
        text_of = text + DRAWS.format(workers=workers)
        (tmp_path / name).mkdir(exist_ok=True)
        config = written(tmp_path / name, text_of, *stock)
        _, work_dir = run(task, dataset, config, backbone, tiny_voc, tmp_path / name)
        return torch.load(work_dir / 'iter_5.pth', weights_only=False)['state_dict']

    def break_off(self, runner, *_, **__):
        if runner.iter == 3:
            raise KeyboardInterrupt

    unbroken = weights('unbroken', 0)
    with monkeypatch.context() as patch:
        patch.setattr(finetune._ResultHook, 'after_train_iter', break_off)
        with pytest.raises(KeyboardInterrupt):
            weights('broken', workers)
    broken = weights('broken', workers)
    assert unbroken.keys() == broken.keys()
    assert [key for key in unbroken if not torch.equal(unbroken[key], broken[key])] == []


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


def test_own_configs_are_left_alone():
    cfg = load_config(REPO / 'configs/det/faster-rcnn_r50-c4_8xb2_voc07.py')
    assert (cfg.task, cfg.dataset) == ('det', 'voc07') and len(cfg.val_evaluator) == 2


def test_the_voc_folder_however_the_path_is_split():
    lists = 'ImageSets/Main/test.txt'
    for root, file in (('data/VOCdevkit/', f'VOC2007/{lists}'), ('data/VOCdevkit/VOC2007', lists)):
        assert data_folder({'data_root': root, 'ann_file': file}) == Path('data/VOCdevkit/VOC2007')
