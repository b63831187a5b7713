"""Which network a checkpoint is of, by its tensors and by its own words."""

import pytest
import torch
from convert_common import prefixed, random_weights

from sd_pretrain.cli import InputError
from transfer.architecture import detect_arch
from transfer.convert import convert


@pytest.fixture(scope='module')
def weights():
    return {arch: random_weights(arch) for arch in ('resnet18', 'resnet50')}


@pytest.mark.parametrize(
    ('name', 'found'),
    [
        ('timm:resnet50d', 'a deep stem'),
        ('timm:seresnet50', 'squeeze-excitation'),
        ('timm:ecaresnet50t', 'a deep stem'),
        ('timm:resnet26', 'bottleneck blocks in stages of 2, 2, 2, 2'),
        ('timm:resnet50_gn', None),
        ('torchvision:resnext50_32x4d', 'ResNeXt'),
        ('torchvision:wide_resnet50_2', 'wide ResNet'),
        ('torchvision:densenet121', 'holds no ResNet'),
    ],
)
def test_other_networks_are_told_by_what_they_are(name, found):
    import timm
    import torchvision

    library, model = name.split(':')
    with torch.device('meta'):
        make = timm.create_model if library == 'timm' else torchvision.models.get_model
        state_dict = make(model).state_dict()
    if (
        found is None
    ):  # no batch norm: the blocks are those of a ResNet-50, the running statistics will be missing
        assert detect_arch(state_dict) == 'resnet50'
        return
    with pytest.raises(InputError, match=found):
        detect_arch(state_dict)


@pytest.mark.parametrize(
    'record',
    [
        {'meta': {'arch': 'resnetblur18'}},
        {'meta': {'run_settings': {'model.network': 'resnetblur18'}}},
        {'arch': 'resnetaa50'},
    ],
    ids=['snapshot', 'epoch', 'timm'],
)
def test_a_lookalike_is_told_by_the_name_in_its_checkpoint(record, weights, tmp_path):
    torch.save({'state_dict': weights['resnet18'], **record}, tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'is a resnet(blur18|aa50): .* names and shapes of a plain ResNet'):
        convert(tmp_path / 'x.pth', tmp_path / 'out', 'mmdet')
    assert not (tmp_path / 'out').exists()


def test_a_resnet_with_other_arguments_is_none_that_computes_the_same(weights, tmp_path):
    for record in (
        {'arch': 'resnet18', 'network_args': {'drop_path_rate': 0.1, 'act_layer': 'silu'}},
        {'run_settings': {'model.network': 'resnet18', 'model.network_args': {'act_layer': 'silu'}}},
    ):
        torch.save({'state_dict': weights['resnet18'], 'meta': record}, tmp_path / 'x.pth')
        with pytest.raises(InputError, match=r"network_args=\{'act_layer': 'silu'\}: a plain ResNet"):
            convert(tmp_path / 'x.pth', tmp_path / 'out', 'mmdet')
    record = {'arch': 'resnet18', 'network_args': {'drop_path_rate': 0.1}}
    torch.save({'state_dict': weights['resnet18'], 'meta': record}, tmp_path / 'x.pth')
    convert(tmp_path / 'x.pth', tmp_path / 'out', 'mmdet')


@pytest.mark.parametrize('prefix', ['encoder.', 'module.net.'])
def test_the_only_network_is_taken_whatever_its_prefix(prefix, weights, tmp_path):
    others = {'projector.weight': torch.zeros(2, 2)}
    torch.save(prefixed(weights['resnet18'], prefix) | others, tmp_path / 'x.pth')
    done = convert(tmp_path / 'x.pth', tmp_path, 'torchvision')
    assert done.classifier and done.notes == ['1 tensors beside the network left out (projector)']


def test_entries_with_weights_are_named(weights, tmp_path):
    both = {'student': weights['resnet18'], 'teacher': weights['resnet18'], 'epoch': 3}
    torch.save(both, tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'has weights in student, teacher: take one with .* --key'):
        convert(tmp_path / 'x.pth', tmp_path, 'mmdet')
    assert convert(tmp_path / 'x.pth', tmp_path, 'mmdet', key='teacher').arch == 'resnet18'


def test_two_networks_in_one_checkpoint(weights, tmp_path):
    both = prefixed(weights['resnet18'], 'network.') | prefixed(weights['resnet18'], 'module.')
    torch.save(both, tmp_path / 'x.pth')
    with pytest.raises(InputError, match=r'cannot tell which network to take: .* network\., module\.'):
        convert(tmp_path / 'x.pth', tmp_path, 'mmdet')
