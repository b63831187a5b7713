"""Where training crops lie, and how near the resized crop is to PIL's."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import ks_2samp
from torchvision.transforms import v2

from sd_pretrain.crops import DRAWS, crop_box, resize
from sd_pretrain.imagenet import decode_as_pil


def test_first_try_that_fits_by_hand():
    # A quarter of 100 x 400 with aspect ratio 1 is 100 x 100, at the middle of 0 to 0 and of 0 to 300.
    draws = [0.25, 0.5] * 10 + [0.5, 0.5]
    assert crop_box(draws, 100, 400, scale=(0.0, 1.0)) == (0, 150, 100, 100)
    # Half of it, 141 x 141, does not fit; the second try does.
    assert crop_box([0.5, 0.5, *draws[2:]], 100, 400, scale=(0.0, 1.0)) == (0, 150, 100, 100)


@pytest.mark.parametrize(
    'size, box',
    [((100, 400), (0, 133, 100, 133)), ((400, 100), (133, 0, 133, 100)), ((90, 100), (0, 0, 90, 100))],
)
def test_centre_when_no_try_fits(size, box):
    assert crop_box([0.999] * DRAWS, *size, scale=(2.0, 3.0)) == box


def test_crops_are_distributed_as_torchvisions():
    generator = np.random.default_rng(0)
    torch.manual_seed(0)
    crop = v2.RandomResizedCrop(224)
    for width, height in ((500, 375), (40, 200)):
        image = torch.empty((3, height, width), device='meta')
        theirs = []
        for _ in range(4000):
            found = crop.make_params([image])
            theirs.append((found['left'], found['top'], found['width'], found['height']))
        ours = [crop_box(generator.random(DRAWS).tolist(), width, height) for _ in range(4000)]
        for column in range(4):
            columns = [box[column] for box in ours], [box[column] for box in theirs]
            assert ks_2samp(*columns).pvalue > 0.001, (width, height, column)
        shapes = [math.log(box[2] / box[3]) for box in ours], [math.log(box[2] / box[3]) for box in theirs]
        assert ks_2samp(*shapes).pvalue > 0.001


def assert_near_pil(image, boxes):
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    for left, top, width, height in boxes:
        crop = pixels[:, top : top + height, left : left + width]
        wanted = image.crop((left, top, left + width, top + height)).resize(
            (224, 224), Image.Resampling.BILINEAR
        )
        wanted = torch.from_numpy(np.array(wanted)).permute(2, 0, 1).int()
        assert (resize(crop, 224).int() - wanted).abs().max() <= 1


def test_resized_crop_is_within_one_level_of_pil():
    pixels = np.random.default_rng(0).integers(0, 256, (375, 500, 3), dtype=np.uint8)
    boxes = [(0, 0, 500, 375), (3, 5, 17, 230), (100, 50, 224, 224), (20, 30, 301, 260), (7, 7, 1, 2)]
    assert_near_pil(Image.fromarray(pixels), boxes)


def test_resized_crop_is_within_one_level_of_pil_on_photos(real_data):
    generator = np.random.default_rng(1)
    for path in sorted((real_data / 'ILSVRC2012' / 'train').rglob('*.*'))[::12]:
        image = decode_as_pil(path.read_bytes())
        assert_near_pil(image, [crop_box(generator.random(DRAWS).tolist(), *image.size) for _ in range(4)])
