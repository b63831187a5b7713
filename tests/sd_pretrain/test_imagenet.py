import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from sd_pretrain.cli import InputError
from sd_pretrain.imagenet import ImageNetFolder, check_imagenet, decode


@pytest.fixture
def root(image_folder, tmp_path):
    return shutil.copytree(image_folder / 'ILSVRC2012', tmp_path / 'ILSVRC2012')


def test_counts(root):
    assert check_imagenet(root) == {'classes': 4, 'train': 24, 'val': 8}


def test_samples_are_uint8_of_the_asked_size_in_class_order(root):
    train = ImageNetFolder(str(root), 'train', size=32)
    sample = train[23]
    assert len(train) == 24
    assert sample['inputs'].shape == (3, 32, 32)
    assert sample['inputs'].dtype == torch.uint8
    assert [train[index]['labels'] for index in (0, 5, 6, 23)] == [0, 0, 1, 3]
    assert train.metainfo['classes'] == ('n00000000', 'n00000001', 'n00000002', 'n00000003')


def test_training_crops_differ_and_testing_takes_the_centre(root):
    train = ImageNetFolder(str(root), 'train', size=32)
    assert not torch.equal(train[0]['inputs'], train[0]['inputs'])
    val = ImageNetFolder(str(root), 'val', size=32, resize=40)
    image = decode((root / 'val' / 'n00000000' / '0.JPEG').read_bytes())
    assert image.shape == (3, 40, 46)
    assert torch.equal(val[0]['inputs'], image[:, 4:36, 7:39])


def test_subset_takes_the_first_of_each_class(root):
    whole, part = (ImageNetFolder(str(root), 'val', 32, 36, subset=count) for count in (None, 5))
    assert [part[index]['labels'] for index in range(len(part))] == [0, 0, 1, 2, 3]
    for index, same in enumerate((0, 1, 2, 4, 6)):
        assert torch.equal(part[index]['inputs'], whole[same]['inputs'])
    with pytest.raises(InputError, match='subset=9 of the 8 val images in .*ILSVRC2012'):
        ImageNetFolder(str(root), 'val', subset=9)


def test_missing_root(tmp_path):
    with pytest.raises(InputError, match=r'no data root .*nothing.*--data-root'):
        check_imagenet(tmp_path / 'nothing')


def test_missing_split(root):
    shutil.rmtree(root / 'val')
    with pytest.raises(InputError, match=r"no folder 'val'.*image-net\.org"):
        check_imagenet(root)


def test_split_without_classes(root):
    shutil.rmtree(root / 'val')
    (root / 'val').mkdir()
    with pytest.raises(InputError, match='no class folders'):
        check_imagenet(root)


def test_empty_class_folder_is_named(root):
    for image in (root / 'train' / 'n00000002').iterdir():
        image.unlink()
    with pytest.raises(InputError, match='n00000002 has no images'):
        check_imagenet(root)
    with pytest.raises(InputError, match='n00000002 has no images'):
        ImageNetFolder(str(root), 'train')


@pytest.mark.parametrize('split, other', [('train', 'val'), ('val', 'train')])
def test_classes_of_both_splits_must_agree(root, split, other):
    shutil.rmtree(root / split / 'n00000001')
    with pytest.raises(InputError, match=f'{split} lacks 1 classes that {other} has: n00000001'):
        check_imagenet(root)


def test_full_size_says_what_is_missing(root):
    with pytest.raises(InputError, match=r'train: 24 of 1,281,167; val: 8 of 50,000.*image-net\.org'):
        check_imagenet(root, full_size=True)


@pytest.mark.parametrize('content', [b'', b'no image', None])
def test_damaged_image_is_named(root, content):
    path = root / 'train' / 'n00000000' / '0.JPEG'
    path.write_bytes(path.read_bytes()[:200] if content is None else content)
    with pytest.raises(InputError, match=r'cannot read image .*n00000000.0\.JPEG'):
        ImageNetFolder(str(root), 'train')[0]


def test_image_too_large_for_pil_is_named(root, monkeypatch):
    monkeypatch.setattr(Image, 'MAX_IMAGE_PIXELS', 10)
    with pytest.raises(InputError, match=r'cannot read image .*n00000000.*exceeds limit'):
        ImageNetFolder(str(root), 'val')[0]


def test_real_photos(real_data):
    counts = check_imagenet(real_data / 'ILSVRC2012')
    assert counts['classes'] == 24
    val = ImageNetFolder(str(real_data / 'ILSVRC2012'), 'val')
    assert val[0]['inputs'].shape == (3, 224, 224)


def pil_pipeline(path, resize, size):
    transform = transforms.Compose(
        [transforms.Resize(resize), transforms.CenterCrop(size), transforms.PILToTensor()]
    )
    with Image.open(path) as opened:
        return transform(opened.convert('RGB'))


@pytest.mark.parametrize('mode', ['RGB', 'L', 'CMYK'])
def test_validation_is_exactly_torchvisions_pil_pipeline(root, mode):
    pixels = np.random.default_rng(0).integers(0, 256, (75, 101, 3), dtype=np.uint8)
    path = root / 'val' / 'n00000000' / '0.JPEG'
    Image.fromarray(pixels).convert(mode).save(path)
    assert torch.equal(ImageNetFolder(str(root), 'val', 32, 36)[0]['inputs'], pil_pipeline(path, 36, 32))


def test_validation_of_photos_is_exactly_torchvisions_pil_pipeline(real_data):
    val = ImageNetFolder(str(real_data / 'ILSVRC2012'), 'val')
    for index in range(0, len(val), 3):
        path = val.samples.where(index)
        assert torch.equal(val[index]['inputs'], pil_pipeline(path, 256, 224)), path
