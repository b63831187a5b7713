"""Every source and target layout, with the proofs of coverage and of equal features."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from convert_common import CLASSES, FORMATS, prefixed, random_weights

from sd_pretrain.cli import InputError
from transfer import checkpoint_io, verify
from transfer.checkpoint_io import read_meta, sha256_of
from transfer.convert import TARGETS, convert

ROOT = Path(__file__).parents[2]
# Convolutions, and five tensors for each batch norm: 20 + 5 * 20; 53 + 5 * 53; 155 + 5 * 155.
BACKBONE = {'resnet18': 120, 'resnet50': 318, 'resnet152': 930}
# Of stage 4 alone, with its shortcut: 5 pairs in two basic blocks, 10 in three bottlenecks.
STAGE4 = {'resnet18': 30, 'resnet50': 60, 'resnet152': 60}


@pytest.fixture(scope='module')
def weights():
    return {arch: random_weights(arch) for arch in ('resnet18', 'resnet50')}


@pytest.fixture(scope='module')
def plain(weights, tmp_path_factory):
    """Files of torchvision's layout."""
    folder = tmp_path_factory.mktemp('plain')
    for arch, tensors in weights.items():
        torch.save(tensors, folder / f'{arch}.pth')
    return folder


def run(arguments):
    """Run Python as a user does in the repository's root."""
    env = {**os.environ, 'PYTHONPATH': str(ROOT)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=env)


def loaded(path):
    return torch.load(path, weights_only=True)['state_dict']


@pytest.mark.parametrize(('name', 'arch'), list(itertools.product(FORMATS, ['resnet18', 'resnet50'])))
def test_every_source_format_arrives_in_mmdet_whole(name, arch, weights, tmp_path):
    FORMATS[name](weights[arch], tmp_path / name)

    done = convert(tmp_path / name, tmp_path / 'out/', 'mmdet')

    assert (done.arch, done.matched, done.shared_head) == (arch, BACKBONE[arch], STAGE4[arch])
    assert set(done.features) == {'layer1', 'layer2', 'layer3', 'layer4', 'shared_head'}
    assert max(done.features.values()) <= 1e-5
    for key, value in loaded(done.path).items():
        kept = 0 if name == 'torchvision.pth' and key.endswith('num_batches_tracked') else weights[arch][key]
        assert torch.equal(value, torch.as_tensor(kept)), key


@pytest.mark.parametrize(('to', 'arch'), list(itertools.product(TARGETS[1:], ['resnet18', 'resnet50'])))
def test_every_target_gets_its_layout(to, arch, weights, plain, tmp_path):
    done = convert(plain / f'{arch}.pth', tmp_path, to)

    prefix = 'network.' if to == 'sd_pretrain' else ''
    expected = {
        key: value for key, value in weights[arch].items() if to != 'mmseg' or not key.startswith('fc.')
    }
    state_dict = loaded(done.path)
    assert state_dict.keys() == prefixed(expected, prefix).keys()
    assert all(torch.equal(state_dict[prefix + key], value) for key, value in expected.items())
    assert done.classifier == (to != 'mmseg')
    assert set(done.features) == {*verify.STAGES, *(() if to == 'mmseg' else ('logits',))}
    assert max(done.features.values()) <= 1e-5


def test_resnet152_into_both_frameworks(tmp_path):
    torch.save(random_weights('resnet152'), tmp_path / 'r152.pth')

    det = convert(tmp_path / 'r152.pth', tmp_path / 'out/', 'mmdet', expect_arch='resnet152')
    seg = convert(tmp_path / 'r152.pth', tmp_path / 'out/', 'mmseg')

    assert (det.arch, det.matched, det.shared_head, seg.matched) == ('resnet152', 930, 60, 930)
    assert '930 of 930 tensors matched for mmdet ResNet-152 (C4 shared head: 60 of 60)' in det.lines()[0]
    assert all(0 <= max(done.features.values()) <= 1e-5 for done in (det, seg))


def test_torchvision_to_ours_to_torchvision_is_byte_identical(weights, plain, tmp_path):
    mine = convert(plain / 'resnet50.pth', tmp_path, 'sd_pretrain', verify=False)
    back = convert(mine.path, tmp_path, 'torchvision', verify=False)

    again = loaded(back.path)
    assert again.keys() == weights['resnet50'].keys()
    for key, value in weights['resnet50'].items():
        assert again[key].dtype == value.dtype
        assert again[key].numpy().tobytes() == value.numpy().tobytes(), key


def test_a_converted_backbone_is_a_source_again_without_classifier(plain, tmp_path):
    backbone = convert(plain / 'resnet18.pth', tmp_path, 'mmseg', verify=False)

    done = convert(backbone.path, tmp_path, 'timm')

    assert (done.classifier, done.matched) == (False, 120)
    assert any('no classifier' in note for note in done.notes)


def test_name_meta_and_hash(plain, tmp_path):
    source = plain / 'resnet18.pth'

    done = convert(source, tmp_path / 'r18_bl.pth', 'mmdet', verify=False)

    assert done.path == tmp_path / f'r18_bl-{sha256_of(done.path)[:8]}.pth'
    meta = read_meta(done.path)
    assert meta == {
        'schema': 1,
        'arch': 'resnet18',
        'target': 'mmdet',
        'source': f'{plain.name}/resnet18.pth',
        'source_sha256': sha256_of(source),
        'classifier': False,
        'num_classes': 0,
        'tensors': 120,
    }
    assert read_meta(convert(source, tmp_path, 'timm', verify=False).path)['num_classes'] == CLASSES


def test_same_source_gives_the_same_file_from_another_process_too(plain, tmp_path):
    here = convert(plain / 'resnet18.pth', tmp_path / 'first/a', 'torchvision', verify=False)
    again = convert(plain / 'resnet18.pth', tmp_path / 'first/a', 'torchvision', verify=False)
    code = 'import sys; from transfer.convert import convert; convert(*sys.argv[1:], verify=False)'
    run(['-c', code, plain / 'resnet18.pth', tmp_path / 'second/other_name', 'torchvision'])

    assert here.path == again.path
    assert list((tmp_path / 'first').iterdir()) == [here.path]
    there = next((tmp_path / 'second').iterdir())
    assert there.name == f'other_name-{here.sha256[:8]}.pth'
    assert there.read_bytes() == here.path.read_bytes()


def test_nothing_is_overwritten(plain, tmp_path):
    done = convert(plain / 'resnet18.pth', tmp_path, 'torchvision', verify=False)
    done.path.write_bytes(b'something else')

    with pytest.raises(InputError, match='not what its name says'):
        convert(plain / 'resnet18.pth', tmp_path, 'torchvision', verify=False)

    assert done.path.read_bytes() == b'something else'
    assert list(tmp_path.iterdir()) == [done.path]


def test_half_precision_is_kept_and_verified(weights, tmp_path):
    half = {
        key: value.half() if value.is_floating_point() else value
        for key, value in weights['resnet18'].items()
    }
    torch.save(half, tmp_path / 'half.pth')
    done = convert(tmp_path / 'half.pth', tmp_path, 'mmseg')
    assert loaded(done.path)['conv1.weight'].dtype == torch.float16


def test_channels_last_weights_become_plain(weights, tmp_path):
    tensors = weights['resnet18']
    last = {k: v.clone(memory_format=torch.channels_last) if v.ndim == 4 else v for k, v in tensors.items()}
    torch.save({'state_dict': prefixed(last, 'network.')}, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'timm')
    for key, value in loaded(done.path).items():
        assert value.stride() == torch.empty(value.shape).stride(), key
        assert torch.equal(value, tensors[key]), key


def test_another_entry_by_key(weights, tmp_path):
    averaged = {key: value / 2 for key, value in weights['resnet18'].items()}
    torch.save({'state_dict': weights['resnet18'], 'state_dict_ema': averaged}, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'timm', verify=False, key='state_dict_ema')
    assert torch.equal(loaded(done.path)['conv1.weight'], averaged['conv1.weight'])
    with pytest.raises(InputError, match=r"no entry 'nope'.*state_dict, state_dict_ema"):
        convert(tmp_path / 'x.pth', tmp_path, 'timm', key='nope')


def test_detector_parts_beside_the_backbone_are_left_out(weights, tmp_path):
    detector = prefixed(weights['resnet18'], 'backbone.') | {'rpn_head.conv.weight': torch.zeros(2)}
    torch.save({'state_dict': {k: v for k, v in detector.items() if '.fc.' not in k}}, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'torchvision', verify=False)
    assert done.notes[0] == '1 tensors beside the network left out (rpn_head)'


# What must not pass.


def change(tensors, **changes):
    return {name: changes.get(name.replace('.', '_'), value) for name, value in tensors.items()}


def without(tensors, *names):
    return {name: value for name, value in tensors.items() if name not in names}


def test_missing_tensors_are_named(weights, tmp_path):
    torch.save(
        without(weights['resnet18'], 'layer3.1.bn2.running_var', 'layer4.0.conv2.weight'), tmp_path / 'x.pth'
    )
    missing = (
        r'2 of 120 tensors of mmdet resnet18 are missing: layer3.1.bn2.running_var, layer4.0.conv2.weight'
    )
    with pytest.raises(InputError, match=missing):
        convert(tmp_path / 'x.pth', tmp_path / 'out/', 'mmdet')
    assert not (tmp_path / 'out').exists()


def test_wrong_shape_is_named(weights, tmp_path):
    torch.save(change(weights['resnet18'], layer2_0_bn1_bias=torch.zeros(64)), tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'layer2.0.bn1.bias is \(64,\), not \(128,\)'):
        convert(tmp_path / 'x.pth', tmp_path, 'mmseg')


def test_diverged_weights(weights, tmp_path):
    torch.save(
        change(weights['resnet18'], bn1_running_var=torch.full((64,), float('nan'))), tmp_path / 'x.pth'
    )
    with pytest.raises(InputError, match=r'NaN or infinite values in bn1.running_var'):
        convert(tmp_path / 'x.pth', tmp_path, 'torchvision')


def test_another_depth(plain, tmp_path):
    with pytest.raises(InputError, match='is a resnet50, but a resnet152 is needed'):
        convert(plain / 'resnet50.pth', tmp_path, 'mmdet', expect_arch='resnet152')


def test_swapped_batch_norms_fail_the_comparison_and_leave_no_file(plain, tmp_path, monkeypatch):
    stage = checkpoint_io.stage

    def swapping_stage(meta, state_dict, dst, stem):
        first, second = 'layer3.0.bn1.weight', 'layer3.0.bn2.weight'
        swapped = {**state_dict, first: state_dict[second], second: state_dict[first]}
        return stage(meta, swapped, dst, stem)

    monkeypatch.setattr(checkpoint_io, 'stage', swapping_stage)
    wrong = r'layer3 by .*, layer4 by .*, shared_head by .*other values: network.layer3.0.bn1.weight, network'
    with pytest.raises(InputError, match=wrong):
        convert(plain / 'resnet18.pth', tmp_path, 'mmdet')
    assert list(tmp_path.iterdir()) == []


def test_the_same_weights_under_other_dilations_fail_the_comparison(plain, tmp_path, monkeypatch):
    monkeypatch.setitem(verify._DEEPLAB, 'contract_dilation', False)
    with pytest.raises(InputError, match=r'relative: layer4 by [\d.e+-]+$'):
        convert(plain / 'resnet50.pth', tmp_path, 'mmseg')
    assert list(tmp_path.iterdir()) == []


def test_one_altered_value_in_a_dead_channel_is_found(weights, tmp_path):
    """A channel that is always off shows in no feature, but the file would not be the source's."""
    dead = weights['resnet18']['bn1.bias'].clone()
    dead[3] = -1e6
    torch.save(change(weights['resnet18'], bn1_bias=dead), tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'torchvision')
    source = torch.load(tmp_path / 'x.pth', weights_only=True)
    source['conv1.weight'][3, 0, 0, 0] += 0.01
    with pytest.raises(InputError, match=r'relative: none; tensors with other values: network.conv1.weight'):
        verify.compare(done.path, 'resnet18', 'torchvision', source, 'timm')


def test_tool_prints_the_proof(weights, tmp_path):
    work_dir = tmp_path / 'sd_r18'
    work_dir.mkdir()
    FORMATS['ours.pth'](weights['resnet18'], work_dir / 'snapshot_2.pth')
    done = run([ROOT / 'tools/convert_checkpoint.py', work_dir, tmp_path / 'r18', '--to', 'torchvision'])
    path = next(tmp_path.glob('r18-*.pth'))
    assert (done.returncode, done.stderr) == (0, '')
    first, note, features, last = done.stdout.splitlines()
    assert first == (
        f'resnet18 from {work_dir / "snapshot_2.pth"}: 122 of 122 tensors matched for torchvision ResNet-18'
    )
    assert 'has no result.json' in note
    assert features.startswith('features agree: layer1 ')
    assert last == f'{path}  sha256 {sha256_of(path)}'
