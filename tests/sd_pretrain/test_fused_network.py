import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

import sd_pretrain.networks  # noqa: F401 - timm knows them from here on
from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.fused_network import FusedConv2d, fused_network
from sd_pretrain.teacher import no_tf32

NETWORKS = [
    ('resnet18', 64),
    ('resnet50', 64),
    ('resnet152', 32),
    ('cifar_resnet20', 32),
    ('cifar_densenet100', 32),
    ('test_resnet', 32),
]


def used(network):
    """Give batch normalisation statistics and weights, as after a training."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.0)
            nn.init.normal_(module.bias, std=0.2)
    return network


def build(name):
    torch.manual_seed(0)
    return used(timm.create_model(name, num_classes=10)).eval()


def relative(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize('name, size', NETWORKS)
def test_it_computes_what_the_network_computes(name, size):
    network, images = build(name), torch.randn(4, 3, size, size)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    with torch.no_grad():
        expected = network(images)
        assert relative(fused_network(network, torch.float32)(images), expected) < 1e-5
        half = fused_network(network, torch.bfloat16)(images.bfloat16())
        # Eight bits of mantissa, over tens of layers; logits come in float32.
        assert half.dtype == torch.float32
        assert relative(half, expected) < 0.04
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


@pytest.mark.parametrize('sync', [False, True])
@pytest.mark.parametrize('name', ['resnet18', 'resnet152', 'cifar_resnet20'])
def test_nothing_but_convolutions_is_left_of_a_residual_block(name, sync):
    network = build(name)
    fused = fused_network(
        nn.SyncBatchNorm.convert_sync_batchnorm(network) if sync else network, torch.float32
    )
    kinds = [type(module) for module in fused.modules() if not list(module.children())]
    assert not {nn.BatchNorm2d, nn.SyncBatchNorm} & set(kinds)
    assert nn.Conv2d not in kinds
    calls = [fused.get_submodule(node.target) for node in fused.graph.nodes if node.op == 'call_module']
    convolutions = [call for call in calls if isinstance(call, FusedConv2d)]
    # The last one of a block's three, or two, takes the shortcut in; only those of the shortcuts stay bare.
    shortcuts = sum(not call.relu for call in convolutions)
    assert shortcuts == {'resnet18': 3, 'resnet152': 4, 'cifar_resnet20': 0}[name]
    assert not any(isinstance(call, nn.ReLU) for call in calls)
    assert not any(node.target in (F.relu, torch.add) for node in fused.graph.nodes)


@pytest.mark.parametrize('stride', [1, 2])
@pytest.mark.parametrize('sizes', [(2, 4), (4, 2), (3, 5), (7, 3), (4, 3), (1, 2)])
def test_maps_of_few_pixels_and_larger_ones_in_turn(sizes, stride):
    torch.manual_seed(0)
    plain = nn.Conv2d(8, 6, 3, padding=1, stride=stride)
    conv = FusedConv2d(plain, relu=True)
    for size in (*sizes, *sizes):
        images = torch.randn(3, 8, size, size).contiguous(memory_format=torch.channels_last)
        with torch.no_grad():
            summand = torch.randn_like(plain(images))
            torch.testing.assert_close(conv(images), plain(images).relu())
            expected = (plain(images) + summand).relu()
            torch.testing.assert_close(conv(images, summand), expected)


class Awkward(nn.Module):
    """Sums that a convolution must not do in the place of its other summand."""

    def __init__(self, form):
        super().__init__()
        self.form = form
        self.before, self.first, self.last = (nn.Conv2d(3, 3, 3, padding=1) for _ in range(3))

    def forward(self, x):
        y, z = self.first(x), self.last(self.before(x))
        if self.form == 'the input':
            return F.relu(z + x) + x
        if self.form == 'wanted later':
            return F.relu(z + y) * y
        if self.form == 'a view':
            flat = y.flatten(1)
            return F.relu(z + flat.view_as(x)) + flat.view_as(x)
        if self.form == 'under a ReLU':
            positive = F.relu(y)
            return F.relu(z + positive) * y
        return F.relu(z + self.first(y))  # first runs twice


@pytest.mark.parametrize('form', ['the input', 'wanted later', 'a view', 'under a ReLU'])
def test_what_is_wanted_later_is_not_overwritten(form):
    torch.manual_seed(0)
    network, x = Awkward(form).eval(), torch.randn(2, 3, 8, 8)
    before = x.clone()
    with torch.no_grad():
        expected = network(x)
        found = fused_network(network, torch.float32)(x)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(x, before)


def test_statistics_that_cannot_be_folded_may_leave_the_range_of_float16():
    network = nn.Sequential(nn.ReLU(), nn.BatchNorm2d(3), nn.Conv2d(3, 4, 1)).eval()
    network[1].running_var.fill_(1e6)
    images = 5000 * torch.rand(2, 3, 4, 4)
    found = fused_network(network, torch.float16)(images.half())
    torch.testing.assert_close(found.float(), network(images).detach(), rtol=1e-2, atol=1e-2)


def test_a_convolution_that_is_called_twice_is_refused():
    with pytest.raises(ValueError, match='first is called 2 times'):
        fused_network(Awkward('twice'), torch.float32)


class Undecided(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_a_network_that_cannot_be_traced_says_so():
    with pytest.raises(ValueError, match='cannot be traced'):
        fused_network(Undecided(), torch.float32)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
def test_convolutions_are_onednns_where_the_cpu_has_them(dtype):
    if not torch.backends.mkldnn.is_available() or (dtype == torch.bfloat16 and not cpu_has_bf16()):
        pytest.skip(f'this CPU has no {dtype} in oneDNN')
    conv = FusedConv2d(nn.Conv2d(8, 8, 3).to(dtype).requires_grad_(False), relu=True)
    conv(torch.randn(2, 8, 9, 9, dtype=dtype))
    assert conv._run == conv._onednn


def test_a_shape_that_cudnn_does_not_fuse_is_computed_in_steps(monkeypatch):
    monkeypatch.setattr('sd_pretrain.fused_network._onednn', lambda dtype: False)
    plain = nn.Conv2d(3, 8, 3, padding=1)
    conv = FusedConv2d(plain, relu=True)
    conv._run = conv._cudnn  # it refuses tensors of the CPU
    images, summand = torch.randn(2, 3, 9, 9), torch.randn(2, 8, 9, 9)
    with torch.no_grad():
        expected = (plain(images) + summand).relu()
        torch.testing.assert_close(conv(images, summand.clone()), expected)
        torch.testing.assert_close(conv(images), plain(images).relu())
    assert conv._run == conv._plain


@pytest.mark.cuda
@pytest.mark.parametrize(
    'dtype, tolerance', [(torch.float32, 1e-5), (torch.float16, 5e-3), (torch.bfloat16, 0.04)]
)
def test_cuda_computes_what_the_network_computes(dtype, tolerance):
    network = build('resnet50').cuda()
    images = torch.randn(8, 3, 64, 64, device='cuda')
    fused = fused_network(network, dtype)
    with torch.no_grad(), no_tf32():
        found = fused(images.to(dtype, memory_format=torch.channels_last))
        assert relative(found, network(images)) < tolerance
