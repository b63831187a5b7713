"""Networks that are no plain ResNet: which one a checkpoint is of, and their frozen features."""

import json
import re

import pytest
import timm
import torch
from huggingface_hub import constants
from probe_common import TINY
from safetensors.torch import save_file
from timm_common import save

from sd_pretrain.cli import InputError, set_data_root
from transfer import contenders, runner
from transfer.backbone import read_backbone
from transfer.convert import convert
from transfer.features import build_backbone, feature_key
from transfer.results import collect, require_comparable
from transfer.run_record import check_work_dir, describe, load_config
from transfer.tasks import DATASETS
from transfer.timm_network import TimmNetwork, recorded_network

CONFIG = 'configs/demo/svm-knn_timm-frozen_demo-voc07.py'


@pytest.fixture(scope='module')
def data_root(tmp_path_factory, write_tiny_voc):
    return write_tiny_voc(tmp_path_factory.mktemp('voc') / 'data', train=20, test=20)


@pytest.fixture
def fetched(tmp_path, monkeypatch):
    """``timm:test_vit`` in the cache of the hub; returns its weights."""
    monkeypatch.setattr(constants, 'HF_HUB_CACHE', str(tmp_path / 'hub'))
    monkeypatch.setenv('HF_HUB_OFFLINE', '1')
    repo = tmp_path / 'hub' / 'models--timm--test_vit.r160_in1k'
    (repo / 'snapshots' / 'abc').mkdir(parents=True)
    (repo / 'refs').mkdir()
    (repo / 'refs' / 'main').write_text('abc')
    weights = timm.create_model('test_vit').state_dict()
    save_file(weights, repo / 'snapshots' / 'abc' / 'model.safetensors')
    return weights


HALF = (127.5, 127.5, 127.5)


@pytest.mark.parametrize(
    ('checkpoint', 'said', 'found'),
    [
        ({'meta': {'arch': 'test_vit', 'network_args': {'img_size': 48}}}, '', {'img_size': 48}),
        ({'meta': {'arch': 'test_vit'}}, '', {}),
        (
            {'meta': {'run_settings': {'model.network': 'test_vit', 'model.network_args': {'img_size': 48}}}},
            '',
            {'img_size': 48},
        ),
        ({'arch': 'test_vit'}, '', 'timm'),
        ({'arch': 'test_vit.r160_in1k'}, '', 'timm'),
        ({}, 'test_vit.r160_in1k', 'timm'),
        ({'arch': 'vit_base'}, 'test_vit', {}),
        ({'meta': {'arch': 'test_vit', 'network_args': {'img_size': 48}}}, 'test_vit', {'img_size': 48}),
        ({'meta': {'arch': 'resnet50'}}, '', None),
        ({'meta': {'arch': 'cifar_resnet20'}}, '', None),
        ({'arch': 'resnet50.a1_in1k'}, '', None),
        ({'arch': 'x'}, '', None),
        ({}, 'resnet50.a1_in1k', None),
        ({}, '', None),
    ],
)
def test_a_checkpoint_says_which_network_it_is_of(checkpoint, said, found):
    import sd_pretrain.networks  # noqa: F401, timm knows CIFAR's networks from here on

    if found == 'timm':  # pretrained by others, on images normalised as they had it
        wanted = TimmNetwork('test_vit', mean=HALF, std=HALF)
    else:
        wanted = None if found is None else TimmNetwork('test_vit', found)
    assert recorded_network(checkpoint, said) == wanted


def test_a_resnet_of_images_normalised_otherwise_is_refused():
    with pytest.raises(InputError, match=r'ra4_e3600_r224_in1k was pretrained .* mean \(0.5, 0.5, 0.5'):
        recorded_network({}, 'resnet34.ra4_e3600_r224_in1k')


def test_weights_that_are_not_of_the_network_are_told(tmp_path):
    save(tmp_path / 'c.pth')
    content = torch.load(tmp_path / 'c.pth', weights_only=True)
    content['state_dict'].pop('network.stages.0.blocks.0.norm.weight')
    torch.save(content, tmp_path / 'c.pth')
    with pytest.raises(InputError, match=r'tensors of a test_convnext, 1 are missing in .*c.pth .*0.norm'):
        read_backbone(tmp_path / 'c.pth')


def test_a_file_that_does_not_say_its_network_is_told_it(tmp_path):
    network = timm.create_model('vit_tiny_patch16_224', num_classes=0, depth=2)
    weights = {name: value for name, value in network.state_dict().items() if not name.startswith('norm.')}
    torch.save({'model': {f'module.{name}': value for name, value in weights.items()}}, tmp_path / 'm.pth')
    with pytest.raises(InputError, match=r'm.pth holds no ResNet .* say NETWORK@FILE'):
        contenders.backbone_file('M', str(tmp_path / 'm.pth'), tmp_path)
    with pytest.raises(InputError, match=r'of the 150 tensors of a vit_tiny_patch16_224, 122 are missing'):
        read_backbone(f'vit_tiny_patch16_224@{tmp_path / "m.pth"}')
    with pytest.raises(InputError, match=r"no network 'vit_tinny_patch16_224'; near: vit_tiny_patch16_224"):
        read_backbone(f'vit_tinny_patch16_224@{tmp_path / "m.pth"}')
    with pytest.raises(InputError, match=r"no vit_tiny_patch16_224 with tag 'mae'; there are .*augreg_in21k"):
        read_backbone(f'vit_tiny_patch16_224.mae@{tmp_path / "m.pth"}')
    with pytest.raises(InputError, match=r'checkpoint nowhere.pth does not exist'):
        read_backbone('vit_tiny_patch16_224@nowhere.pth')


@pytest.mark.parametrize(
    ('of', 'args', 'said', 'message'),
    [
        ('convnext_atto', {'depths': (2, 2, 7, 2)}, 'convnext_atto', r'no stages.2.blocks.6.\S+ and 8 more'),
        (
            'test_vit',
            {'init_values': 0.1},
            'test_vit',
            r'whose blocks have no blocks.0.ls1.gamma and 11 more',
        ),
        ('test_vit', {'patch_size': 32}, 'test_vit', r'1 are missing .* first patch_embed.proj.weight'),
        ('convnext_atto', {}, 'convnext_atto', None),
        ('efficientvit_b0', {}, 'efficientvit_b0', None),  # head.classifier.4
        ('test_vit', {'img_size': 96}, 'test_vit', None),
    ],
)
def test_weights_of_another_network_with_the_same_names_are_told(of, args, said, message, tmp_path):
    """All tensors of the smaller network are in the file of a deeper one."""
    torch.save({'model': timm.create_model(of, **args).state_dict()}, tmp_path / 'w.pth')
    if message is None:
        assert read_backbone(f'{said}@{tmp_path / "w.pth"}').tensors
        return
    with pytest.raises(InputError, match=message):
        read_backbone(f'{said}@{tmp_path / "w.pth"}')


def test_stages_are_where_the_authors_of_swin_have_them():
    """Their ``layers.1.downsample`` is timm's ``layers.2.downsample``, and buffers are in their files."""
    with torch.device('meta'):
        tensors = timm.create_model('swin_tiny_patch4_window7_224').state_dict()
    theirs = {
        re.sub(r'(?<=layers.)\d(?=.downsample)', lambda stage: str(int(stage[0]) - 1), name): value
        for name, value in tensors.items()
    }
    theirs['layers.0.blocks.1.attn_mask'] = torch.zeros(64, 49, 49)
    found = TimmNetwork('swin_tiny_patch4_window7_224').read_weights({'model': theirs}, 'swin.pth')
    assert found['layers.1.downsample.norm.weight'].shape == (384,)


@pytest.mark.parametrize('first', ['student', 'online_encoder'])
def test_of_two_networks_in_a_file_the_usual_one_is_taken_or_none(first, tmp_path):
    networks = {first: timm.create_model('test_vit'), 'target_encoder': timm.create_model('test_vit')}
    weights = {
        f'{of}.{name}': value for of, one in networks.items() for name, value in one.state_dict().items()
    }
    torch.save({'state_dict': weights}, tmp_path / 'w.pth')
    if first == 'student':
        found = read_backbone(f'test_vit@{tmp_path / "w.pth"}').tensors
        assert all(torch.equal(value, weights[f'student.{name}']) for name, value in found.items())
        return
    with pytest.raises(InputError, match=r'which network .* prefixes online_encoder., target_encoder.; save'):
        read_backbone(f'test_vit@{tmp_path / "w.pth"}')


def test_weights_under_their_authors_names_are_found(tmp_path, monkeypatch):
    """As Meta published ConvNeXt; and a folder may have an @ in its name."""
    network = timm.create_model('test_convnext', num_classes=0)
    theirs = {}
    for name, value in network.state_dict().items():
        name = name.replace('stem.', 'downsample_layers.0.').replace('.mlp.fc', '.pwconv')
        name = re.sub(r'stages\.(\d)\.downsample\.', r'downsample_layers.\1.', name)
        name = re.sub(r'stages\.(\d)\.blocks\.', r'stages.\1.', name).replace('conv_dw', 'dwconv')
        theirs[name.replace('head.norm.', 'norm.')] = value
    assert not theirs.keys() & network.state_dict().keys()
    folder = tmp_path / 'lr@3'
    folder.mkdir()
    torch.save({'model': theirs}, folder / 'c.pth')
    monkeypatch.chdir(tmp_path)
    path = contenders.backbone_file('C', 'test_convnext.r160_in1k@lr@3/c.pth', tmp_path / 'b')
    assert path == f'test_convnext.r160_in1k@{folder / "c.pth"}'
    backbone = read_backbone(path)
    assert backbone.path == path and backbone.network.mean == HALF
    assert all(torch.equal(backbone.tensors[name], value) for name, value in network.state_dict().items())
    assert read_backbone('test_convnext@lr@3/c.pth').network.mean is None


@pytest.mark.parametrize('own', [True, False], ids=['own', 'timm'])
def test_features_are_those_that_the_classifier_gets(own, data_root, fetched, tmp_path):
    if own:
        network = save(tmp_path / 'v.pth', 'test_vit', img_size=48)
        backbone = read_backbone(tmp_path / 'v.pth')
        mean, std = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]  # of ImageNet
    else:
        network = timm.create_model('test_vit')
        network.load_state_dict(fetched)
        backbone = read_backbone('timm:test_vit.r160_in1k')
        mean = std = HALF
    assert backbone.arch == 'test_vit'
    cfg = load_config(CONFIG)
    set_data_root(cfg, data_root)
    frozen, equal = build_backbone(cfg, backbone, seed=0)
    assert equal == len(backbone.tensors) == len(network.state_dict()) - 2
    side = 48 if own else 160
    images = torch.randint(256, (2, 3, side, side), dtype=torch.uint8)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    normalised = (images - mean) / std
    with torch.no_grad():
        pooled = network.eval().forward_head(network.forward_features(normalised), pre_logits=True)
        wanted = torch.nn.functional.normalize(pooled, dim=1)
        assert frozen(images) == pytest.approx(wanted, abs=1e-5)


def test_it_stands_in_one_table_with_a_resnet(data_root, fetched, tmp_path, run_tool, capsys, in_repo):
    save(tmp_path / 'c.pth')
    torch.save({'state_dict': timm.create_model('resnet18').state_dict()}, tmp_path / 'r.pth')
    named = {'R': tmp_path / 'r.pth', 'C': tmp_path / 'c.pth', 'V': 'timm:test_vit'}
    options = runner.Options(data_root=str(data_root), demo=True, work_dir=tmp_path / 'w', cfg_options=TINY)
    files = {
        name: contenders.backbone_file(name, str(one), tmp_path / 'w/backbones')
        for name, one in named.items()
    }
    assert files['C'] == str(tmp_path / 'c.pth') and files['V'] == 'timm:test_vit.r160_in1k'
    with pytest.raises(InputError, match=r'test_vit has no features of images of 40 px .*divisible.*set'):
        runner.plan(DATASETS['probe', 'voc07'], files, tmp_path / 'w', options)

    pairs = [f'{name}={named[name]}' for name in 'RC']
    arguments = ['--demo', '--data-root', data_root, '--work-dir', tmp_path / 'w', '--cfg-options', *TINY]
    assert run_tool('run_transfer.py', 'probe', 'voc07', *pairs, *arguments) == 0
    assert 'C ' in capsys.readouterr().out
    results = {one['name']: one for one in collect(tmp_path / 'w')}
    assert {name: one['arch'] for name, one in results.items()} == {'R': 'resnet18', 'C': 'test_convnext'}
    assert all(len(one['per_class']) == 20 for one in results.values())
    assert json.loads((tmp_path / 'w/transfer.json').read_text())['backbones']


@pytest.mark.parametrize(
    ('task', 'files', 'how', 'message'),
    [
        (('probe', 'voc07'), ['c', 'none'], {}, "'none' beside no plain ResNet .* say none:test_convnext"),
        (('det', 'voc07'), ['c', 'none'], {}, "timm-fpn.* 'none' names none: say which, as none:resnet50"),
        (('probe', 'voc07'), ['none'], {'config': CONFIG}, 'is for any network, and .none. names none'),
    ],
)
def test_what_takes_plain_resnets_says_so(task, files, how, message, data_root, tmp_path, in_repo):
    save(tmp_path / 'c')
    named = {name: name if name == 'none' else str(tmp_path / name) for name in files}
    with pytest.raises(InputError, match=message):
        runner.plan(DATASETS[task], named, tmp_path / 'w', runner.Options(data_root=str(data_root), **how))


def test_one_file_with_images_normalised_otherwise_is_another_run(data_root, tmp_path):
    torch.save({'model': timm.create_model('test_vit').state_dict()}, tmp_path / 'w.pth')
    plain, half = (
        read_backbone(f'{said}@{tmp_path / "w.pth"}') for said in ('test_vit', 'test_vit.r160_in1k')
    )
    cfg = load_config(CONFIG)
    set_data_root(cfg, data_root)
    assert feature_key(cfg, plain, 0) != feature_key(cfg, half, 0)
    was, now = (describe(cfg, one, 0) for one in (plain, half))
    (tmp_path / 'result.json').write_text(json.dumps(was))
    assert check_work_dir(tmp_path, was) == 'all'
    message = r'backbone was test_vit@\S+w.pth \(\w{8}\), is now test_vit.r160_in1k@\S+w.pth \(\w{8}\)'
    with pytest.raises(InputError, match=message):
        check_work_dir(tmp_path, now)
    with pytest.raises(InputError, match="results of 'V' come from two backbones"):
        require_comparable([was | {'name': 'V'}, now | {'name': 'V', 'task': 'det'}])


def test_a_conversion_says_what_it_is(tmp_path):
    save(tmp_path / 'c.pth')
    with pytest.raises(InputError, match='is of a test_convnext, and holds no ResNet'):
        convert(tmp_path / 'c.pth', tmp_path / 'out', 'mmdet')


def test_full_size_has_a_config_for_it(data_root, tmp_path, in_repo):
    save(tmp_path / 'c.pth')
    options = runner.Options(data_root=str(data_root))
    (planned,) = runner.plan(DATASETS['probe', 'voc07'], {'C': str(tmp_path / 'c.pth')}, tmp_path, options)
    assert planned.arguments[0] == 'configs/probe/svm-knn_timm-frozen_voc07.py'
