import copy
import functools

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from sd_pretrain.bfloat16 import cpu_has_bf16
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.cli import InputError
from sd_pretrain.imagenet import ImageNetFolder
from sd_pretrain.losses import sd_loss
from sd_pretrain.snapshot_hook import SnapshotDistillationHook
from sd_pretrain.teacher import FrozenTeacher, no_tf32

needs_bf16 = pytest.mark.skipif(not cpu_has_bf16(), reason='this CPU has no bfloat16 instructions')


@pytest.fixture(scope='module')
def photos(real_data):
    """Images and labels of all ILSVRC photos there are, at 48 px, normalised."""
    found = []
    for split in ('train', 'val'):
        data = ImageNetFolder(str(real_data / 'ILSVRC2012'), split, size=48, resize=54, augment=False)
        found += [data[index] for index in range(len(data))]
    model = TimmClassifier('resnet18', num_classes=24)
    batch = {
        'inputs': torch.stack([one['inputs'] for one in found]),
        'labels': torch.tensor([one['labels'] for one in found]),
    }
    batch = model.data_preprocessor(batch)
    return batch['inputs'], batch['labels']


@pytest.fixture(scope='module')
def trained(photos):
    """A ResNet-18 that knows the photos."""
    images, labels = photos
    torch.manual_seed(0)
    network = timm.create_model('resnet18', num_classes=24, zero_init_last=False)
    network.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.02, momentum=0.9)
    for _ in range(15):
        for part in torch.randperm(len(images)).split(24):
            optimizer.zero_grad()
            F.cross_entropy(network(images[part]), labels[part]).backward()
            optimizer.step()
    return network.eval()


@pytest.mark.parametrize('precision, tolerance', [('float32', 1e-5), ('float16', 2e-3), ('bfloat16', 0.02)])
def test_it_agrees_with_the_plain_network_on_photos(trained, photos, precision, tolerance):
    images, labels = photos
    with torch.no_grad():
        expected = trained(images)
    assert (expected.argmax(1) == labels).float().mean() > 0.95
    logits = FrozenTeacher(trained, precision=precision)(images)
    assert (logits - expected).abs().max() / expected.abs().max() < tolerance
    assert (logits.argmax(1) == expected.argmax(1)).float().mean() >= 0.999


def curve(start, teacher, images, labels):
    """Losses of fifteen taught steps from the weights of ``start``."""
    torch.manual_seed(1)
    student = copy.deepcopy(start).train().requires_grad_(True)
    optimizer = torch.optim.SGD(student.parameters(), lr=0.001, momentum=0.9)
    losses = []
    for _ in range(3):
        for part in torch.randperm(len(images)).split(24):
            optimizer.zero_grad()
            terms = sd_loss(student(images[part]), teacher(images[part]), labels[part])
            sum(terms.values()).backward()
            optimizer.step()
            losses.append(torch.stack(list(terms.values())).detach())
    return torch.stack(losses)


@needs_bf16
def test_the_loss_curve_is_that_of_a_naive_teacher(trained, photos):
    """Ours is no further from a float32 teacher's than that of the plain network under autocast."""
    images, labels = photos

    def plain(batch, amp=False):
        with torch.no_grad(), torch.autocast('cpu', torch.bfloat16, enabled=amp):
            return trained(batch).float()

    torch.manual_seed(2)
    start = timm.create_model('resnet18', num_classes=24, zero_init_last=False)
    expected = curve(start, plain, images, labels)
    ours = curve(start, FrozenTeacher(trained, precision='bfloat16'), images, labels)
    naive = curve(start, functools.partial(plain, amp=True), images, labels)
    assert (ours - expected).abs().mean() < 1.5 * (naive - expected).abs().mean()
    torch.testing.assert_close(ours.mean(0), expected.mean(0), rtol=0.03, atol=0)


def small():
    torch.manual_seed(0)
    return timm.create_model('test_resnet', num_classes=4)


@pytest.mark.parametrize('amp', [False, True])
def test_automatic_precision_on_a_cpu_is_that_of_the_student(amp):
    images, network = torch.randn(2, 3, 32, 32), small()
    precision = 'bfloat16' if amp and cpu_has_bf16() else 'float32'
    expected = FrozenTeacher(network, precision=precision)(images)
    teacher = FrozenTeacher(network)
    with torch.autocast('cpu', torch.bfloat16, enabled=amp):
        logits = teacher(images)
    assert logits.dtype == torch.float32
    assert torch.equal(logits, expected)
    # Once made, it stays what it is.
    assert torch.equal(teacher(images), expected)


@pytest.mark.cuda
def test_automatic_precision_on_a_gpu_is_float16_whatever_the_network_is():
    images = torch.randn(8, 3, 32, 32, device='cuda')
    for network in (small().eval().cuda(), Undecided().cuda()):
        logits = FrozenTeacher(network)(images)
        assert torch.equal(logits, FrozenTeacher(network, precision='float16')(images))
        with torch.no_grad():
            torch.testing.assert_close(logits, network(images), rtol=5e-3, atol=5e-3)


@pytest.mark.cuda
@pytest.mark.parametrize('cuda_graph', [False, True])
def test_float32_on_a_gpu_is_within_rounding_of_the_plain_network(cuda_graph):
    network = timm.create_model('resnet18', num_classes=10).eval().cuda()
    images = torch.randn(8, 3, 64, 64, device='cuda')
    with torch.no_grad(), no_tf32():
        expected = network(images)
    teacher = FrozenTeacher(network, precision='float32', cuda_graph=cuda_graph)
    for _ in range(2):
        assert (teacher(images) - expected).abs().max() / expected.abs().max() < 1e-5


def test_what_leaves_the_range_on_one_process_teaches_in_bfloat16_on_all(monkeypatch):
    """Each has images of its own, and would choose its own precision."""
    monkeypatch.setattr('sd_pretrain.teacher.all_reduce', lambda finite, op: finite.zero_())
    made = FrozenTeacher(small(), precision='float16')
    made(torch.randn(2, 3, 32, 32))
    assert made._dtype == torch.bfloat16


@pytest.mark.parametrize('fused', [True, False])
def test_a_network_beyond_the_range_of_float16_teaches_in_bfloat16(fused, monkeypatch):
    said = []
    monkeypatch.setattr('sd_pretrain.teacher.print_log', lambda text, *_, **__: said.append(text))
    network = small() if fused else Undecided()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        (network.conv1[0] if fused else network.fc).weight.mul_(1e8)
    logits = FrozenTeacher(network, precision='float16')(images)
    assert logits.isfinite().all()
    assert torch.equal(logits, FrozenTeacher(network, precision='bfloat16')(images))
    assert sum('leaves the range of float16' in text for text in said) == 1


def test_autocast_of_the_student_is_not_the_teachers():
    network, images = small(), torch.randn(2, 3, 32, 32)
    teacher = FrozenTeacher(network, precision='float32')
    alone = teacher(images)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(teacher(images), alone)


def test_what_is_saved_is_the_unfused_network():
    network = small()
    teacher = FrozenTeacher(network, precision='bfloat16')
    teacher(torch.randn(2, 3, 32, 32))
    state = teacher.state_dict()
    assert state.keys() == network.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())


def test_it_follows_the_model_to_another_type():
    model = TimmClassifier('test_resnet', num_classes=4)
    model.attach_teacher(FrozenTeacher(model.network, precision='float32'))
    images = torch.randn(2, 3, 32, 32)
    before = model.teacher(images)
    model.double()
    assert next(iter(model.teacher.state_dict().values())).dtype == torch.float64
    model.float()
    torch.testing.assert_close(model.teacher(images), before)


class Undecided(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x):
        x = x.mean((2, 3))
        return self.fc(x if x.sum() > 0 else -x)


def test_a_network_that_cannot_be_fused_teaches_as_it_is():
    network, images = Undecided(), torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        expected = network(images)
    torch.testing.assert_close(FrozenTeacher(network, precision='float32')(images), expected)
    half = FrozenTeacher(network, precision='bfloat16')(images)
    torch.testing.assert_close(half, expected, rtol=0.02, atol=0.02)
    assert half.dtype == torch.float32


@pytest.mark.parametrize('precision', ['bfloat16', 'float16'])
def test_a_network_whose_fused_form_does_not_run_teaches_as_it_is(precision):
    torch.manual_seed(0)
    network = timm.create_model('test_convnext2', num_classes=7).eval()
    nn.init.normal_(network.get_classifier().weight)
    images = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = network(images)
    logits = FrozenTeacher(network, precision=precision)(images)
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


@pytest.mark.parametrize(
    'options, said',
    [
        ({'precision': 'fp8'}, "one of auto, float32, float16, bfloat16; found 'fp8'"),
        ({'speed': 11}, 'has no speed; it takes precision, cuda_graph, overlap'),
    ],
)
def test_wrong_options_are_said_before_any_training(options, said):
    with pytest.raises(InputError, match=said):
        SnapshotDistillationHook(ends=[1, 2], teacher_options=options)


@pytest.mark.cuda
@pytest.mark.parametrize('overlap', [False, True])
@pytest.mark.parametrize('cuda_graph', [False, True])
def test_cuda_graphs_and_streams_change_nothing(cuda_graph, overlap):
    network = timm.create_model('resnet18', num_classes=10).cuda().to(memory_format=torch.channels_last)
    plain = FrozenTeacher(network, cuda_graph=False)
    teacher = FrozenTeacher(network, cuda_graph=cuda_graph, overlap=overlap)
    for size in (16, 16, 5, 16):  # the last batch of an epoch is smaller
        images = torch.randn(size, 3, 64, 64, device='cuda')
        pending = teacher.start(images)
        network(images)
        torch.testing.assert_close(pending(), plain(images), rtol=1e-2, atol=1e-2)
    assert (teacher._graph is not None) == cuda_graph


@pytest.mark.cuda
def test_cuda_graph_keeps_logits_of_earlier_batches():
    teacher = FrozenTeacher(timm.create_model('resnet18', num_classes=10).cuda())
    first, second = torch.randn(2, 8, 3, 64, 64, device='cuda')
    logits = teacher(first)
    kept = logits.clone()
    teacher(second)
    assert torch.equal(logits, kept)
