"""The det and seg configs: each is what its name says, and stock mmdet and mmseg run it."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope

from transfer import mmcv_ops
from transfer.backbone import config_arch, put_into, read_backbone
from transfer.image_lists import datasets_of
from transfer.run_record import load_config

REPO = Path(__file__).resolve().parents[2]
LEAVES = sorted((REPO / 'configs').glob('det/*_r*.py')) + sorted((REPO / 'configs').glob('seg/*_r*.py'))
DEMOS = sorted((REPO / 'configs/demo').glob('faster-rcnn_r*')) + sorted(
    (REPO / 'configs/demo').glob('deeplab*')
)


def build(cfg, device='meta'):
    mmcv_ops.install()
    init_default_scope(cfg.default_scope)
    if cfg.default_scope == 'mmdet':
        from mmdet.registry import MODELS
    else:
        from mmseg.registry import MODELS
    with torch.device(device):
        return MODELS.build(cfg.model)


def test_every_task_and_depth_has_its_leaf():
    names = {path.name for path in LEAVES}
    for depth in (18, 34, 50, 101, 152):
        assert f'faster-rcnn_r{depth}-c4_8xb2_voc07.py' in names
        assert f'faster-rcnn_r{depth}-fpn_8xb2_voc07.py' in names
        assert f'faster-rcnn_r{depth}-c4_8xb2_voc0712.py' in names
        assert f'faster-rcnn_r{depth}-fpn_8xb2_voc0712.py' in names
        assert f'deeplabv3_r{depth}-d16-syncbn_8xb1_voc12aug.py' in names
        probe = load_config(REPO / f'configs/probe/svm-knn_r{depth}-frozen_voc07.py')
        assert (probe.task, probe.dataset, config_arch(probe)) == ('probe', 'voc07', f'resnet{depth}')


@pytest.mark.parametrize('path', LEAVES + DEMOS, ids=lambda path: path.stem)
def test_leaf_is_what_its_name_says_and_all_it_needs_of_this_project_is_its_head(path):
    cfg = Config.fromfile(path)
    depth = int(re.search(r'_r(\d+)-', path.name)[1])
    assert cfg.model.backbone.depth == depth
    ours = ['transfer.aspp_head'] if 'deeplab' in path.name else []
    assert cfg.get('custom_imports', {}).get('imports', []) == ours
    if batch := re.search(r'_(\d+)xb(\d+)_', path.name):
        assert int(batch[1]) * cfg.train_dataloader.batch_size == cfg.total_batch_size
        assert cfg.train_dataloader.batch_size == int(batch[2])
        inits = [cfg.model.backbone.init_cfg]
        if 'c4' in path.name:
            assert cfg.model.roi_head.shared_head.depth == depth
            inits.append(cfg.model.roi_head.shared_head.init_cfg)
        assert {init.checkpoint for init in inits} == {f'torchvision://resnet{depth}'}
    # Fails where a head does not fit the backbone's channels in its constructor.
    model = build(cfg)
    trained = {
        name
        for name, module in model.backbone.named_modules()
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm) and module.weight.requires_grad
    }
    assert bool(trained) == ('syncbn' in path.name or 'deeplab' in path.name), 'the name says the BN regime'


@pytest.mark.parametrize(
    'stem',
    [
        'det/faster-rcnn_r18-c4_8xb2_voc07',
        'det/faster-rcnn_r18-fpn_8xb2_voc07',
        'seg/deeplabv3_r18-d16-syncbn_8xb1_voc12aug',
    ],
)
@pytest.mark.parametrize('arch', ['r18', 'r34'])
def test_heads_fit_the_backbone_of_basic_blocks(stem, arch):
    cfg = Config.fromfile(REPO / f'configs/{stem.replace("r18", arch)}.py')
    put_into(cfg, read_backbone('none'))
    model = build(cfg, 'cpu').eval()
    with torch.no_grad():
        features = model.extract_feat(torch.zeros(1, 3, 64, 64))
        out = model.decode_head(features) if 'seg' in stem else model.rpn_head(features)
        if 'c4' in stem:
            pooled = model.roi_head.bbox_roi_extractor(features, torch.tensor([[0.0, 0, 0, 63, 63]]))
            scores, boxes = model.roi_head.bbox_head(model.roi_head.shared_head(pooled))
            assert scores.shape == (1, 21) and boxes.shape == (1, 80)
    if 'seg' in stem:
        assert out.shape == (1, 21, 4, 4), 'output stride 16'


@pytest.mark.parametrize(
    ('stem', 'channels', 'momentum'),
    [
        ('seg/deeplabv3_r50-d16-syncbn_8xb1_voc12aug', 256, 0.0003),
        ('demo/deeplabv3_r18-d16_demo-voc12', 128, 0.05),
    ],
)
def test_a_pointwise_convolution_fuses_the_five_branches(stem, channels, momentum):
    model = build(Config.fromfile(REPO / f'configs/{stem}.py'))
    fused = model.decode_head.bottleneck
    assert fused.conv.weight.shape == (channels, 5 * channels, 1, 1) and fused.conv.bias is None
    assert fused.conv.weight.numel() == {256: 1280 * 256, 128: 640 * 128}[channels]
    norms = [one for one in model.decode_head.modules() if isinstance(one, torch.nn.SyncBatchNorm)]
    assert [one.momentum for one in norms] == 6 * [momentum]
    assert model.backbone.bn1.momentum == 0.05


@pytest.mark.parametrize('stem', ['det/faster-rcnn_r50-{}_8xb2', 'demo/faster-rcnn_r18-{}_demo'])
def test_voc0712_differs_from_voc07_in_its_training_images_alone(stem):
    head = 'c4' if 'demo' in stem else 'fpn'
    alone, more = (
        Config.fromfile(REPO / f'configs/{stem.format(head)}{end}.py')
        for end in (('-voc07', '-voc0712') if 'demo' in stem else ('_voc07', '_voc0712'))
    )
    lists = [(Path(one.data_root).name, Path(one.ann_file).stem) for one in datasets_of(more)]
    assert lists == [('VOC2007', 'trainval'), ('VOC2012', 'trainval'), ('VOC2007', 'test')]
    for one in datasets_of(more)[:2]:
        theirs = alone.train_dataloader.dataset
        assert one.pipeline == theirs.pipeline and one.filter_cfg == theirs.filter_cfg
    assert more.model == alone.model and more.optim_wrapper == alone.optim_wrapper
    assert more.val_dataloader == alone.val_dataloader and more.dataset == 'voc0712'


def test_multi_grid_multiplies_the_rate_of_the_last_stage():
    model = build(Config.fromfile(REPO / 'configs/seg/deeplabv3_r101-d16-mg124-syncbn_8xb1_voc12aug.py'))
    assert [block.conv2.dilation[0] for block in model.backbone.layer4] == [2, 4, 8]


def test_schedules_are_the_papers():
    det = Config.fromfile(REPO / 'configs/det/faster-rcnn_r152-c4_8xb2_voc07.py')
    seg = Config.fromfile(REPO / 'configs/seg/deeplabv3_r152-d16-syncbn_8xb1_voc12aug.py')
    assert (det.total_batch_size, det.train_cfg.max_epochs, det.optim_wrapper.optimizer.lr) == (16, 10, 0.01)
    assert (seg.total_batch_size, seg.train_cfg.max_epochs, seg.optim_wrapper.optimizer.lr) == (8, 50, 0.007)
    # "Poly" falls at each of 50 * 100 iterations, in mmengine to 0 at the last one (hence 4999).
    rates = learning_rates(seg, epoch_length=100)
    assert rates[0] == 0.007
    assert rates[1] == pytest.approx(0.007 * (1 - 1 / 4999) ** 0.9, rel=1e-6)
    assert rates[2500] == pytest.approx(0.007 * (1 - 2500 / 4999) ** 0.9, rel=1e-6)
    assert det.param_scheduler[0].milestones == [8]


def learning_rates(cfg, epoch_length):
    from mmengine.registry import PARAM_SCHEDULERS
    from torch.optim import SGD

    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=cfg.optim_wrapper.optimizer.lr)
    settings = dict(cfg.param_scheduler[0])
    assert settings.pop('convert_to_iter_based')
    kind = PARAM_SCHEDULERS.get(settings.pop('type'))
    scheduler = kind.build_iter_from_epoch(optimizer=optimizer, epoch_length=epoch_length, **settings)
    rates = []
    for _ in range(50 * epoch_length):
        rates.append(optimizer.param_groups[0]['lr'])
        optimizer.step()
        scheduler.step()
    return rates


def test_flip2x_walks_each_image_and_its_mirror_once(tiny_voc):
    from sd_pretrain.cli import set_data_root

    cfg = Config.fromfile(REPO / 'configs/det/faster-rcnn_r101-c4_8xb2_voc07-flip2x.py')
    set_data_root(cfg, tiny_voc)
    for part in cfg.train_dataloader.dataset.datasets:
        part.filter_cfg.min_size = 1
    mmcv_ops.install()
    init_default_scope('mmdet')
    from mmdet.registry import DATASETS

    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    assert len(dataset) == 8
    plain, mirrored = dataset[0]['inputs'], dataset[4]['inputs']
    assert torch.equal(plain.flip(-1), mirrored)


@pytest.fixture(scope='module')
def backbone(tmp_path_factory):
    from torchvision.models import resnet18

    torch.manual_seed(0)
    tensors = {key: value for key, value in resnet18().state_dict().items() if not key.startswith('fc.')}
    path = tmp_path_factory.mktemp('backbone') / 'r18.pth'
    torch.save({'meta': {}, 'state_dict': tensors}, path)
    return path


@pytest.fixture(params=['generated', 'real'])
def photo(request, tmp_path):
    if request.param == 'real':
        root = request.getfixturevalue('real_data')
        return str(min((root / 'VOCdevkit/VOC2007/JPEGImages').glob('*.jpg')))
    from PIL import Image

    Image.fromarray(np.random.default_rng(0).integers(0, 255, (96, 128, 3), dtype=np.uint8)).save(
        tmp_path / 'photo.jpg'
    )
    return str(tmp_path / 'photo.jpg')


def with_backbone(cfg, backbone, tmp_path):
    """What a user of stock mmdet or mmseg does: name the file in init_cfg, initialise, save."""
    cfg.model.backbone.init_cfg.checkpoint = str(backbone)
    if 'roi_head' in cfg.model:
        cfg.model.roi_head.shared_head.init_cfg.checkpoint = str(backbone)
    model = build(cfg, 'cpu')
    model.init_weights()
    torch.save({'meta': {}, 'state_dict': model.state_dict()}, tmp_path / 'model.pth')
    return str(tmp_path / 'model.pth')


def test_mmdet_reads_the_backbone_file_and_predicts(backbone, photo, tmp_path):
    path = REPO / 'configs/det/faster-rcnn_r18-c4_8xb2_voc07.py'
    cfg = Config.fromfile(path)
    cfg.model.test_cfg.rpn.max_per_img = 20
    checkpoint = with_backbone(cfg, backbone, tmp_path)
    from mmdet.apis import inference_detector, init_detector

    model = init_detector(cfg, checkpoint, palette='voc', device='cpu')
    wanted = torch.load(backbone, weights_only=True)['state_dict']
    assert torch.equal(model.backbone.conv1.weight, wanted['conv1.weight'])
    assert torch.equal(model.roi_head.shared_head.layer4[1].conv2.weight, wanted['layer4.1.conv2.weight'])
    found = inference_detector(model, photo).pred_instances
    assert 0 < len(found) <= 100 and found.bboxes.isfinite().all()


def test_mmseg_reads_the_backbone_file_and_predicts(backbone, photo, tmp_path):
    path = REPO / 'configs/seg/deeplabv3_r18-d16-syncbn_8xb1_voc12aug.py'
    cfg = Config.fromfile(path)
    checkpoint = with_backbone(cfg, backbone, tmp_path)
    from mmseg.apis import inference_model, init_model
    from PIL import Image

    model = init_model(str(path), checkpoint, device='cpu')
    wanted = torch.load(backbone, weights_only=True)['state_dict']
    assert torch.equal(model.backbone.layer4[1].conv2.weight, wanted['layer4.1.conv2.weight'])
    found = inference_model(model, photo).pred_sem_seg.data
    with Image.open(photo) as image:
        width, height = image.size
    assert found.shape == (1, height, width), 'the whole image in its own size'
