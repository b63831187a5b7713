"""A training step on a CUDA device without one: PyTorch's fake tensors have device and shape, and no values.

They refuse to be read by the host and to meet tensors of another device. That is what "no host
synchronisation" means, and it can be seen on any machine. Their limits: no backward pass, no fused optimizer,
no autocast.
"""

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from sd_pretrain import fused_network, teacher
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.teacher import FrozenTeacher

# PyTorch's own deep copy asks for it.
pytestmark = pytest.mark.filterwarnings('ignore:Accessing the data pointer of FakeTensor')
CUDA = torch.device('cuda', 0)


def convert(module, function, recurse=True):
    """What ``nn.Module._apply`` does, by new parameters: those of fake tensors cannot be changed in place."""
    for child in module.children():
        convert(child, function)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            with torch.no_grad():
                converted = function(parameter)
            module._parameters[name] = nn.Parameter(converted, parameter.requires_grad)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            module._buffers[name] = function(buffer)
    return module


@pytest.fixture
def fake_tensors(monkeypatch):
    """All tensors are fake ones, on any device."""
    monkeypatch.setattr(nn.Module, '_apply', convert)
    # A teacher is a deep copy: its tensors are of the same mode.
    monkeypatch.setattr(FakeTensorMode, '__deepcopy__', lambda mode, _: mode, raising=False)
    monkeypatch.setattr(teacher, '_in_range', lambda _: True)  # once in a mini-generation, this is read
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda _: (9, 0))
    monkeypatch.setattr(fused_network, '_cudnn_fuses', lambda *_: False)
    with FakeTensorMode():
        yield


def classifier(name):
    model = TimmClassifier(
        name,
        num_classes=10,
        channels_last=True,
        data_preprocessor=dict(mirror=0.5, rotation=10, jitter=0.4),
    )
    model = convert(model, lambda tensor: tensor.to(CUDA)).train()
    preprocessor = model.data_preprocessor
    preprocessor._device = CUDA
    preprocessor._random = lambda device: None  # a generator of a device needs the device
    return model


def losses(model):
    batch = {'inputs': torch.zeros(4, 3, 64, 64, dtype=torch.uint8), 'labels': torch.arange(4)}
    return model(**model.data_preprocessor(batch, training=True), mode='loss')


@pytest.mark.parametrize('name', ['resnet18', 'resnet50', 'cifar_resnet20', 'cifar_densenet100'])
def test_no_value_of_a_step_is_read_by_the_host_and_all_is_on_the_device(fake_tensors, name):
    model = classifier(name)
    assert {one.device for one in losses(model).values()} == {CUDA}
    for precision in ('auto', 'float32'):
        model.attach_teacher(FrozenTeacher(model.network, precision=precision, cuda_graph=False))
        for _ in range(2):
            found = losses(model)
            assert set(found) == {'loss_ce', 'loss_kl'}
            assert {one.device for one in found.values()} == {CUDA}
        assert isinstance(model.teacher._forward, torch.fx.GraphModule)
    assert model.train_hits.device == CUDA


@pytest.mark.parametrize('precision', ['auto', 'float32'])
def test_a_teacher_in_float32_alone_does_without_tf32(fake_tensors, precision, monkeypatch):
    network, flags = classifier('resnet18').network, torch.backends.cudnn
    conv2d, seen = nn.functional.conv2d, set()
    monkeypatch.setattr(
        nn.functional, 'conv2d', lambda *args: seen.add((args[0].dtype, flags.allow_tf32)) or conv2d(*args)
    )
    before = flags.allow_tf32, flags.benchmark, flags.deterministic
    assert before[0], "cuDNN's default"
    FrozenTeacher(network, precision=precision, cuda_graph=False)(torch.zeros(2, 3, 64, 64, device=CUDA))
    assert seen == {(torch.float16, True) if precision == 'auto' else (torch.float32, False)}
    assert (flags.allow_tf32, flags.benchmark, flags.deterministic) == before


def test_reading_a_value_would_be_found_out(fake_tensors):
    model = classifier('resnet18')
    with pytest.raises(DataDependentOutputException):
        losses(model)['loss_ce'].item()
    with pytest.raises(RuntimeError, match='two different devices'):
        model.train_hits + torch.zeros(4)
