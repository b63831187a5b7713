"""Any network of timm's in a detector or segmentor: its maps, that its weights arrive, that it trains."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from mmengine.config import Config
from mmengine.registry import init_default_scope
from safetensors.torch import save_file
from timm_common import save
from torch import nn
from torch.nn.functional import interpolate

from sd_pretrain.cli import InputError
from transfer import contenders, mmcv_ops, runner
from transfer.backbone import config_arch, prove_loaded, put_into, read_backbone
from transfer.results import collect
from transfer.run_record import load_config
from transfer.timm_pyramid import TimmPyramid, _levels, plan_pyramid

REPO = Path(__file__).resolve().parents[2]
DET = 'configs/demo/faster-rcnn_timm-fpn_demo-voc07.py'
SEG = 'configs/demo/fpn_timm_demo-voc12.py'
DYNAMIC = {'dynamic_img_size': True}
QUICK = ['total_batch_size=2', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=1']


@pytest.mark.parametrize(
    ('strides', 'levels'),
    [
        ([4, 8, 16, 32], [0, 1, 2, 3]),
        ([2, 4, 8, 16, 32], [1, 2, 3, 4]),
        ([1, 4, 4, 8, 8, 16, 32], [2, 4, 5, 6]),
        ([16] * 12, [2, 5, 8, 11]),
        ([32] * 6, [1, 2, 4, 5]),
        ([8, 16, 32], [0, 0, 1, 2]),
        ([8, 8, 8, 16, 16], [1, 2, 3, 4]),
    ],
)
def test_a_level_is_the_last_map_of_its_stride_or_shares_the_nearest(strides, levels):
    assert _levels(strides) == levels


@pytest.mark.parametrize(
    ('name', 'args', 'scale', 'channels'),
    [
        ('resnet50', {}, 1, [256, 512, 1024, 2048]),
        ('convnext_tiny', {}, 1, [96, 192, 384, 768]),
        ('swin_tiny_patch4_window7_224', DYNAMIC, 1, [96, 192, 384, 768]),
        ('vit_small_patch16_224', DYNAMIC, 1, [384] * 4),
        # Its patches divide no multiple of 32: it gets 14 pixels for each 16.
        ('vit_small_patch14_dinov2', DYNAMIC, 14 / 16, [384] * 4),
        ('efficientnet_b0', {}, 1, [24, 40, 112, 320]),
    ],
)
def test_networks_of_all_kinds_take_any_size(name, args, scale, channels):
    found = plan_pyramid(name)
    assert (found.args, found.scale, found.channels) == (args, scale, channels)
    with torch.device('meta'):
        maps = TimmPyramid(name)(torch.empty(2, 3, 96, 160))
    assert [one.shape[1] for one in maps] == channels
    assert [one.shape[2:] for one in maps] == [(24, 40), (12, 20), (6, 10), (3, 5)]


@pytest.mark.parametrize(
    ('name', 'reason'),
    [
        ('mixer_s16_224', r"Input height \(128\) doesn't match"),
        ('inception_v3', 'its maps are 61x93, 28x44'),
        ('maxvit_tiny_tf_224', 'must be divisible by window'),
        ('botnet26t_256', 'AssertionError'),
    ],
)
def test_a_network_of_one_size_says_why(name, reason):
    with pytest.raises(InputError, match=rf'a {name} has no maps of .*{reason}.*"probe voc07" takes it'):
        plan_pyramid(name)


@pytest.mark.parametrize('name', ['resnet18', 'test_convnext', 'test_vit', 'test_efficientnet'])
def test_maps_are_those_of_timms_own_feature_extractor_normalised(name, tmp_path):
    network = save(tmp_path / 'n.pth', name)
    if name == 'resnet18':  # as a converted file has it
        weights = {key: value for key, value in network.state_dict().items() if not key.startswith('fc.')}
        torch.save({'meta': {}, 'state_dict': weights}, tmp_path / 'n.pth')
    pyramid = TimmPyramid(name, checkpoint=str(tmp_path / 'n.pth'))
    pyramid.init_weights()
    tensors = read_backbone(tmp_path / 'n.pth').tensors
    assert 0.9 * len(tensors) < prove_loaded(nn.ModuleDict({'backbone': pyramid}), tensors) <= len(tensors)

    images = torch.randn(2, 3, 64, 96)
    if name == 'test_vit':  # of 6 blocks
        args = {'out_indices': [1, 2, 4, 5], 'dynamic_img_size': True}
        theirs = timm.create_model(name, features_only=True, **args)
        missing, _ = theirs.model.load_state_dict(network.state_dict(), strict=False)
    else:
        theirs = timm.create_model(name, features_only=True)
        flat = network.state_dict()
        if name == 'test_convnext':
            flat = {re.sub(r'^(stem|stages)\.', r'\1_', key): value for key, value in flat.items()}
        missing, _ = theirs.load_state_dict(flat, strict=False)
    assert not missing
    with torch.no_grad():
        wanted = theirs.eval()(images)[-4:]
        found = pyramid.eval()(images)
    for stride, ours, plain in zip((4, 8, 16, 32), found, wanted, strict=True):
        centred = plain - plain.mean(1, keepdim=True)
        normal = centred / (centred.pow(2).mean(1, keepdim=True) + 1e-5).sqrt()
        size = (64 // stride, 96 // stride)
        if normal.shape[-2:] != size:
            normal = interpolate(normal, size, mode='bilinear')
        assert ours == pytest.approx(normal, abs=1e-4)


def test_batch_normalisation_stays_as_pretrained_and_other_norms_are_trained():
    frozen = TimmPyramid('resnet18', checkpoint='r.pth').train()
    norms = [module for module in frozen.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 20
    assert not any(norm.training or norm.weight.requires_grad for norm in norms)
    assert frozen.network.conv1.weight.requires_grad
    free = TimmPyramid('resnet18', norm_eval=False).train()
    assert free.network.bn1.training and free.network.bn1.weight.requires_grad
    layers = [module for module in TimmPyramid('test_convnext').modules() if isinstance(module, nn.LayerNorm)]
    assert len(layers) > 5 and all(norm.weight.requires_grad for norm in layers)


def test_all_of_random_weights_are_trained():
    """Their batch normalisation has statistics of 0 and 1, and factors of 0 where timm adds up."""
    pyramid = TimmPyramid('resnet18').train()
    optimizer = torch.optim.SGD(pyramid.parameters(), lr=1e-3)
    for _ in range(2):
        optimizer.zero_grad()
        sum((one * torch.randn_like(one)).sum() for one in pyramid(torch.randn(2, 3, 64, 64))).backward()
        optimizer.step()
    assert not pyramid.network.bn1.training
    assert all(weight.grad.abs().sum() > 0 for weight in pyramid.parameters())


def build(cfg):
    mmcv_ops.install()
    init_default_scope(cfg.default_scope)
    from mmengine.registry import MODELS

    model = MODELS.build(cfg.model)
    model.init_weights()
    return model


@pytest.mark.parametrize('config', [DET, SEG])
@pytest.mark.parametrize('name', ['resnet18', 'test_convnext', 'test_vit'])
def test_a_config_becomes_one_of_the_checkpoints_network(config, name, tmp_path, in_repo):
    network = save(tmp_path / 'n.pth', name)
    if name == 'resnet18':
        path = contenders.backbone_file('N', str(tmp_path / 'n.pth'), tmp_path)
    else:
        path = contenders.backbone_file('N', str(tmp_path / 'n.pth'), tmp_path)
        assert path == str(tmp_path / 'n.pth')
    backbone = read_backbone(path)
    cfg = load_config(config)
    assert config_arch(cfg) is None
    put_into(cfg, backbone)
    assert cfg.model.neck.in_channels == plan_pyramid(name).channels
    model = build(cfg)
    equal = prove_loaded(model, backbone.tensors)
    assert equal == len(model.backbone.state_dict())
    first = next(iter(network.state_dict()))
    assert torch.equal(model.backbone.network.state_dict()[first], network.state_dict()[first])
    assert len(model.extract_feat(torch.zeros(1, 3, 64, 96))) == (5 if config == DET else 4)
    with torch.no_grad():
        next(model.backbone.parameters()).add_(1)
    with pytest.raises(RuntimeError, match=rf'1 different \(backbone.{first}\)'):
        prove_loaded(model, backbone.tensors)


def test_images_are_normalised_as_the_pretraining_had_them(tmp_path, in_repo):
    weights = timm.create_model('test_vit').state_dict()
    save_file(weights, tmp_path / 'model.safetensors')
    cfg = load_config(SEG)
    path = f'test_vit.r160_in1k@{tmp_path / "model.safetensors"}'
    put_into(cfg, read_backbone(path))
    assert cfg.model.data_preprocessor.mean == cfg.model.data_preprocessor.std == [127.5] * 3
    assert cfg.model.backbone.checkpoint == path


def test_arguments_of_a_config_are_the_networks_as_far_as_its_weights_fit(tmp_path, in_repo):
    save(tmp_path / 'v.pth', 'test_vit')
    options = {'model.backbone.args.drop_path_rate': 0.2}
    cfg = load_config(SEG, options)
    put_into(cfg, read_backbone(tmp_path / 'v.pth'))
    assert build(cfg).backbone.network.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    cfg = load_config(SEG, {'model.backbone.args.init_values': 0.1})
    with pytest.raises(InputError, match=r'does not fit the test_vit of fpn_timm_.*: blocks.0.ls1.gamma'):
        put_into(cfg, read_backbone(tmp_path / 'v.pth'))
    # What such a network has of a map less is of another shape: its pruning would not take the weights.
    save(tmp_path / 'e.pth', 'efficientvim_m1')
    with pytest.raises(InputError, match=r'e.pth does not fit the efficientvim_m1 of .*: weights is'):
        put_into(load_config(SEG), read_backbone(tmp_path / 'e.pth'))


def test_the_first_of_several_necks_takes_the_maps(in_repo):
    cfg = load_config(DET)
    cfg.model.neck = [cfg.model.neck, {'type': 'BFP', 'in_channels': 64, 'num_levels': 5}]
    put_into(cfg, read_backbone('none:test_efficientnet'))
    assert build(cfg).neck[0].in_channels == list(TimmPyramid('test_efficientnet').channels)


def test_a_config_without_neck_and_an_unknown_network_are_told(in_repo):
    cfg = load_config(DET)
    del cfg.model['neck']
    with pytest.raises(InputError, match=r'has no neck \(FPN\) for the maps of a test_vit: set model.neck'):
        put_into(cfg, read_backbone('none:test_vit'))
    with pytest.raises(InputError, match=r"timm has no network 'convnext_tinny'; near: convnext_tiny"):
        read_backbone('none:convnext_tinny')


def test_one_detector_for_all_networks_of_a_call(tiny_voc, tmp_path, in_repo):
    """And a ResNet alone has the paper's, as ever."""
    save(tmp_path / 'c.pth')
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path / 'r.pth')
    file = contenders.backbone_file('R', str(tmp_path / 'r.pth'), tmp_path)
    options = runner.Options(data_root=str(tiny_voc))
    for task, alone, together in (
        (('det', 'voc07'), 'det/faster-rcnn_r18-c4_8xb2_voc07.py', 'det/faster-rcnn_timm-fpn_8xb2_voc07.py'),
        (
            ('seg', 'voc12'),
            'seg/deeplabv3_r18-d16-syncbn_8xb1_voc12aug.py',
            'seg/fpn_timm_8xb1_voc12aug.py',
        ),
    ):
        asked = runner.find_task(*task)
        (run,) = runner.plan(asked, {'R': file}, tmp_path / 'w', options)
        assert run.arguments[0] == f'configs/{alone}'
        named = {'R': file, 'C': str(tmp_path / 'c.pth'), 'N': 'none:test_vit', 'M': 'none:resnet18'}
        runs = runner.plan(asked, named, tmp_path / 'w', options)
        assert [run.arguments[0] for run in runs] == 4 * [f'configs/{together}']
        assert [run.identity['arch'] for run in runs] == ['resnet18', 'test_convnext', 'test_vit', 'resnet18']
        assert len({run.identity['sha256'] for run in runs}) == 4
        assert len({run.identity['config_sha256'] for run in runs}) == 1


def test_full_size_configs_have_the_batch_that_their_names_say():
    leaves = [*REPO.glob('configs/det/*_timm-*.py'), *REPO.glob('configs/seg/*_timm_*.py')]
    assert len(leaves) == 3
    for path in leaves:
        cfg = Config.fromfile(path)
        per_gpu = cfg.train_dataloader.batch_size
        assert f'_8xb{per_gpu}_' in path.name and 8 * per_gpu == cfg.total_batch_size
        # The network that stands there: what put_into would make of it.
        assert cfg.model.neck.in_channels == plan_pyramid(cfg.model.backbone.name).channels
    assert all(side % 32 == 0 for side in cfg.model.data_preprocessor.size)
    for dataset in cfg.train_dataloader.dataset.datasets:
        (crop,) = [step.crop_size for step in dataset.pipeline if step.type == 'RandomCrop']
        assert tuple(crop) == tuple(cfg.model.data_preprocessor.size)


@pytest.mark.parametrize('task', [('det', 'voc07'), ('seg', 'voc12')])
def test_a_resnet_a_convnext_and_a_vit_in_one_table(task, tiny_voc, tmp_path, run_tool, in_repo, capsys):
    save(tmp_path / 'c.pth')
    torch.save(timm.create_model('resnet18').state_dict(), tmp_path / 'r.pth')
    pairs = [f'R={tmp_path / "r.pth"}', f'C={tmp_path / "c.pth"}', 'V=none:test_vit']
    arguments = ['--demo', '--data-root', tiny_voc, '--work-dir', tmp_path / 'w', '--cfg-options', *QUICK]
    assert run_tool('run_transfer.py', *task, *pairs, *arguments) == 0
    table = capsys.readouterr().out
    results = {one['name']: one for one in collect(tmp_path / 'w')}
    assert {name: one['arch'] for name, one in results.items()} == {
        'R': 'resnet18',
        'C': 'test_convnext',
        'V': 'test_vit',
    }
    assert all(f'\n{name} ' in table for name in results)
    logs = {name: Path(one['work_dir'], 'stdout.log').read_text() for name, one in results.items()}
    assert 'backbone: 120 of 120 tensors equal' in logs['R']
    assert ' tensors equal those of' in logs['C'] and ' tensors equal those of' not in logs['V']
    assert json.loads((tmp_path / 'w/transfer.json').read_text())['backbones'][1]['name'] == 'C'
    # A ResNet by itself would be fine-tuned otherwise, and does not belong there.
    assert run_tool('run_transfer.py', *task, f'S={tmp_path / "r.pth"}', *arguments) == 2
    assert 'come from two configs' in capsys.readouterr().err


@pytest.mark.parametrize(
    ('config', 'name'), [(DET, 'test_convnext'), (SEG, 'test_vit'), (SEG, 'hrnet_w18_small')]
)
def test_two_processes_train_it_in_bfloat16(config, name, tiny_voc, tmp_path):
    """None of its weights may be on the way to no map: the processes would wait for its gradient."""
    command = [
        *[sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node=2'],
        *['-m', 'transfer.finetune', config, '--backbone', f'none:{name}', '--work-dir', str(tmp_path / 'w')],
        *['--data-root', str(tiny_voc), '--launcher', 'pytorch', '--amp', '--cfg-options', *QUICK],
        'default_hooks.logger.interval=1',
    ]
    done = subprocess.run(
        command, cwd=REPO, capture_output=True, text=True, env={**os.environ, 'OMP_NUM_THREADS': '1'}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert '[1][2/2]' in done.stdout, 'four images, one in each process: two iterations'
    assert json.loads((tmp_path / 'w' / 'result.json').read_text())['arch'] == name
