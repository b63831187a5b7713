import pytest
import timm
import torch

from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.cli import InputError
from sd_pretrain.fused_network import FusedConv2d, fused_network
from sd_pretrain.losses import sd_loss
from sd_pretrain.small_maps import SmallMapConv2d
from sd_pretrain.teacher import FrozenTeacher


@pytest.fixture
def model():
    torch.manual_seed(0)
    return TimmClassifier('test_resnet', num_classes=4, network_args={'zero_init_last': False})


@pytest.fixture
def images():
    return torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(1))


LABELS = torch.tensor([0, 1, 2, 3])


def test_the_teacher_is_no_part_of_the_model(model):
    names, modules = set(model.state_dict()), len(list(model.modules()))
    parameters = {id(parameter) for parameter in model.parameters()}
    model.attach_teacher(FrozenTeacher(model.network))
    assert set(model.state_dict()) == names
    assert all(name.startswith('network.') for name in names)
    assert len(list(model.modules())) == modules
    assert {id(parameter) for parameter in model.parameters()} == parameters
    assert not any(parameter.requires_grad for parameter in model.teacher.network.parameters())


def test_the_teacher_sleeps_whatever_the_model_does(model, images):
    model.attach_teacher(FrozenTeacher(model.network))
    before, logits = model.teacher.state_dict(), model.teacher(images)
    mean = model.network.bn1.running_mean.clone()
    model.train()
    for _ in range(3):
        sum(model(images, LABELS, mode='loss').values()).backward()
    assert not torch.equal(model.network.bn1.running_mean, mean)
    for key, value in model.teacher.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert torch.equal(model.teacher(images), logits)
    assert all(parameter.grad is None for parameter in model.teacher.network.parameters())


@pytest.mark.parametrize('channels_last', [False, True])
def test_on_small_maps_it_trains_as_the_network_of_timm_and_its_teacher_is_fused(channels_last):
    """The last stage sees 2x2 pixels, where convolutions are computed as products."""
    model = TimmClassifier('resnet18', 4, {'zero_init_last': False}, channels_last=channels_last).double()
    plain = timm.create_model('resnet18', num_classes=4).double()
    plain.load_state_dict(model.network.state_dict())
    assert sum(type(one) is SmallMapConv2d for one in model.modules()) == 16
    images = torch.randn(4, 3, 64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    model(images, LABELS, mode='loss')['loss_ce'].backward()
    torch.nn.functional.cross_entropy(plain(images), LABELS).backward()
    for (name, one), other in zip(model.network.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=lambda text, name=name: f'{name}: {text}')
        assert one.grad.stride() == one.stride()
    fused = fused_network(model.network.float(), torch.float32)
    assert sum(isinstance(one, FusedConv2d) for one in fused.modules()) == 20


def test_the_loss_is_that_of_student_and_teacher(model, images):
    model.eval()
    student = model(images)
    assert list(model(images, LABELS, mode='loss')) == ['loss_ce']
    other = TimmClassifier('test_resnet', num_classes=4)
    model.attach_teacher(FrozenTeacher(other.network, precision='float32'), temperature=3.0, lambda_t=0.5)
    expected = sd_loss(student, other.eval()(images), LABELS, 3.0, lambda_t=0.5)
    loss = model(images, LABELS, mode='loss')
    for name in ('loss_ce', 'loss_kl'):
        torch.testing.assert_close(loss[name], expected[name], rtol=1e-5, atol=1e-6)


def test_the_teacher_follows_the_model(model):
    model.attach_teacher(FrozenTeacher(model.network))
    model.double()
    assert next(model.teacher.network.parameters()).dtype == torch.float64


def test_init_weights_keeps_zero_init_last_off(model):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    model.init_weights()
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key
    assert (model.network.layer1[0].bn2.weight == 1).all()


def test_predictions(model, images):
    model.eval()
    predictions = model(images, LABELS, mode='predict')
    torch.testing.assert_close(torch.stack([sample['logits'] for sample in predictions]), model(images))
    assert [int(sample['label']) for sample in predictions] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match='mode'):
        model(images, mode='train')


def test_unknown_network_names_its_neighbours():
    with pytest.raises(InputError, match=r"'resnet125'.*resnet152"):
        TimmClassifier('resnet125')
