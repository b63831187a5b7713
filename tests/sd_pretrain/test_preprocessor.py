import math

import torch
from torch._dynamo.utils import counters

from sd_pretrain.augment import draw, jitter, rotate
from sd_pretrain.classifier import TimmClassifier
from sd_pretrain.preprocessor import ImageBatchPreprocessor

CPU = torch.device('cpu')


def chance():
    return torch.Generator().manual_seed(0)


def angles(count, degrees):
    return draw(count, CPU, rotation=degrees, generator=chance()).angle


def test_preprocessor_normalises():
    batch = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    pre = ImageBatchPreprocessor(rotation=30, jitter=0.5, channels_last=True)
    out = pre({'inputs': batch, 'labels': torch.tensor([1, 2])}, training=False)
    red = (batch[:, 0].float() - 123.675) / 58.395
    torch.testing.assert_close(out['inputs'][:, 0], red)
    assert out['inputs'].is_contiguous(memory_format=torch.channels_last)
    assert out['labels'].tolist() == [1, 2]
    trained = pre({'inputs': batch, 'labels': torch.tensor([1, 2])}, training=True)
    assert not torch.allclose(trained['inputs'], out['inputs'])


def test_half_of_the_images_are_mirrored_and_the_others_are_not():
    batch = torch.randint(0, 256, (400, 3, 4, 4), dtype=torch.uint8)
    pre = ImageBatchPreprocessor(mean=(0, 0, 0), std=(1, 1, 1), mirror=0.5)
    pre.set_seed(0)
    out = pre({'inputs': batch}, training=True)['inputs']
    same = (out == batch).all(3).all(2).all(1)
    mirrored = (out == batch.flip(3)).all(3).all(2).all(1)
    assert (same ^ mirrored).all()
    # 200 of 400, give or take four standard deviations of 10.
    assert 160 < mirrored.sum() < 240
    assert torch.equal(pre({'inputs': batch}, training=False)['inputs'], batch.float())


def test_the_same_seed_draws_the_same():
    batch = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    pre = ImageBatchPreprocessor(mirror=0.5, rotation=10, jitter=0.4)
    found = []
    for seed in (3, 3, 4):
        pre.set_seed(seed)
        found.append(pre({'inputs': batch}, training=True)['inputs'])
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_jitter_changes_each_image_within_bounds():
    grey = torch.full((64, 3, 4, 4), 100.0)
    out = jitter(grey, draw(64, CPU, jitter=0.2, generator=chance()).factors)
    # A grey image has neither contrast nor saturation: brightness alone remains.
    assert 80 <= out.min() < 85
    assert 115 < out.max() <= 120
    assert (out.amax((1, 2, 3)) - out.amin((1, 2, 3))).max() < 1e-3


def test_rotation_turns_about_the_centre():
    """Rings stay rings, also in a picture that is not square; a shear or a stretch would move them."""
    y, x = torch.meshgrid(torch.arange(60.0) - 29.5, torch.arange(90.0) - 44.5, indexing='ij')
    rings = (torch.hypot(x, y) / 4).sin().expand(16, 3, 60, 90)
    out = rotate(rings, angles(16, 45))
    inner = torch.hypot(x, y) < 28
    assert (out - rings)[..., inner].abs().max() < 0.1
    stripes = (x / 4).sin().expand(16, 3, 60, 90)
    assert (rotate(stripes, angles(16, 45)) - stripes)[..., inner].abs().max() > 1


def test_rotation_of_a_mirror_image_is_one_operation():
    images = 255 * torch.rand(6, 3, 20, 30, generator=chance())
    mirror = torch.tensor([True, False, True, True, False, False])
    swapped = torch.where(mirror.view(-1, 1, 1, 1), images.flip(3), images)
    expected = rotate(swapped, angles(6, 20))
    torch.testing.assert_close(rotate(images, angles(6, 20), mirror), expected, rtol=0, atol=0.01)


def test_angles_fill_their_range():
    drawn = angles(1000, 30)
    assert drawn.abs().max() <= math.radians(30)
    assert drawn.min() < math.radians(-29) and drawn.max() > math.radians(29)


def test_rotation_is_as_precise_under_autocast():
    images = 255 * torch.rand(2, 3, 64, 64, generator=chance())
    plain = rotate(images, angles(2, 10))
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(rotate(images, angles(2, 10)), plain)


def test_compiled_augmentation_and_network_compute_the_same_under_the_same_names():
    batch = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    found = []
    for compile in (False, True):
        torch.manual_seed(0)
        model = TimmClassifier(
            'test_resnet', 4, compile=compile, data_preprocessor=dict(mirror=0.5, rotation=10, jitter=0.4)
        )
        model.data_preprocessor.set_seed(1)
        data = model.data_preprocessor({'inputs': batch, 'labels': torch.arange(4)}, training=True)
        loss = sum(model(**data, mode='loss').values())
        loss.backward()
        found.append((data['inputs'], loss.detach(), model.network.fc.weight.grad, list(model.state_dict())))
    plain, compiled = found
    torch.testing.assert_close(plain[:3], compiled[:3], rtol=1e-3, atol=1e-3)
    assert plain[3] == compiled[3]


def test_code_compiled_for_other_threads_is_not_taken_out_of_the_cache(tmp_path, monkeypatch):
    monkeypatch.setenv('TORCHINDUCTOR_CACHE_DIR', str(tmp_path))
    images, before, misses = torch.randn(4, 3, 32, 32), torch.get_num_threads(), []
    try:
        for threads in (2, 1, 1):
            torch._dynamo.reset()
            counters.clear()
            torch.set_num_threads(threads)
            # Compiled is what runs, which is the augmentation here.
            model = TimmClassifier('test_resnet', 4, compile=True)
            model.data_preprocessor({'inputs': images, 'labels': torch.arange(4)})
            misses.append(counters['inductor']['fxgraph_cache_miss'])
    finally:
        torch._dynamo.reset()
        torch.set_num_threads(before)
    assert misses == [1, 1, 0]
