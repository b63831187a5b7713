"""Crops of JPEGs, decoded alone, are the pixels of the whole; with and without restart markers."""

import io

import numpy as np
import pytest
import torch
from ilsvrc_common import encoded, picture
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from sd_pretrain.cli import InputError
from sd_pretrain.imagenet import ImageNetFolder, random_crop
from sd_pretrain.jpeg_file import parse_baseline
from sd_pretrain.jpeg_region import decode_region
from sd_pretrain.restart_markers import add_restart_markers

# Sides that are and are not whole MCUs; 13 is a prime number of MCUs of 8 pixels.
SIZES = [(160, 96), (97, 61), (33, 150), (7, 5)]
KINDS = {
    '4:4:4': dict(subsampling=0),
    '4:2:2': dict(subsampling=1),
    '4:2:0': dict(subsampling=2),
    'optimised tables': dict(subsampling=2, optimize=True),
    'high quality': dict(subsampling=0, quality=100),
    'low quality': dict(quality=5),
    'restart in rows': dict(subsampling=2, restart_marker_rows=1),
    'restart in two rows': dict(subsampling=0, restart_marker_rows=2),
    'restart across rows': dict(subsampling=2, restart_marker_blocks=3),
}


def noisy(size, seed=0, mode='RGB'):
    """Smooth colours with noise: large and small coefficients, bytes of 255 in the data."""
    pixels = np.array(picture(seed, size)).astype(int)
    pixels += np.random.default_rng(seed).integers(-40, 41, pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).convert(mode)


def whole(content):
    return np.array(Image.open(io.BytesIO(content)).convert('RGB'))


def assert_regions(content, count=12):
    jpeg = parse_baseline(content)
    pixels = whole(content)
    assert pixels.shape == (jpeg.height, jpeg.width, 3)
    rng = np.random.default_rng(0)
    boxes = [(0, 0, jpeg.width, jpeg.height), (jpeg.width - 1, jpeg.height - 1, 1, 1)]
    for _ in range(count):
        width, height = int(rng.integers(1, jpeg.width + 1)), int(rng.integers(1, jpeg.height + 1))
        left, top = (
            int(rng.integers(0, full - part + 1))
            for full, part in zip((jpeg.width, jpeg.height), (width, height), strict=True)
        )
        boxes.append((left, top, width, height))
    for left, top, width, height in boxes:
        found = decode_region(content, jpeg, left, top, width, height)
        assert np.array_equal(found, pixels[top : top + height, left : left + width]), (
            left,
            top,
            width,
            height,
        )


@pytest.mark.parametrize('kind', KINDS)
@pytest.mark.parametrize('mode', ['RGB', 'L'])
def test_regions_are_cut_out_of_the_whole(kind, mode):
    for size in SIZES:
        content = encoded(noisy(size, mode=mode), **KINDS[kind])
        assert_regions(content)
        marked = add_restart_markers(content)
        assert parse_baseline(marked).interval
        assert np.array_equal(whole(marked), whole(content))
        assert_regions(marked)


@pytest.mark.parametrize('interval', [1, 2, 3, 7, 10, 20, 40])
def test_regions_with_any_interval(interval):
    """Parts of a row (20 MCUs), rows, two rows; 3 and 7 fit into none and leave the whole above the crop."""
    content = encoded(noisy((160, 96)), subsampling=0)
    marked = add_restart_markers(content, interval)
    assert parse_baseline(marked).interval == interval
    assert np.array_equal(whole(marked), whole(content))
    assert_regions(marked)


def test_other_decoders_see_the_same_pixels_in_a_rewritten_file():
    content = encoded(noisy((97, 61)), subsampling=2, quality=90)
    images = [
        decode_jpeg(torch.frombuffer(bytearray(one), dtype=torch.uint8), ImageReadMode.RGB)
        for one in (content, add_restart_markers(content))
    ]
    assert torch.equal(*images)


def test_rewriting_twice_changes_nothing_more():
    marked = add_restart_markers(encoded(noisy((160, 96))))
    assert add_restart_markers(marked) == marked


def test_segments_of_the_header_stay():
    exif = Image.Exif()
    exif[274] = 6
    marked = add_restart_markers(encoded(noisy((40, 40)), exif=exif, comment=b'taken at noon'))
    opened = Image.open(io.BytesIO(marked))
    assert opened.getexif()[274] == 6
    assert opened.info['comment'] == b'taken at noon'


@pytest.mark.parametrize('kind', ['progressive', 'CMYK', 'PNG', 'bytes after the end', 'cut off', 'empty'])
def test_what_is_no_plain_baseline_is_decoded_as_a_whole(kind):
    image, content = noisy((97, 61)), encoded(noisy((97, 61)))
    content = {
        'progressive': encoded(image, progressive=True),
        'CMYK': encoded(image.convert('CMYK')),
        'PNG': encoded(image, 'PNG'),
        'bytes after the end': content + b'more',
        'cut off': content[: len(content) // 2],
        'empty': b'',
    }[kind]
    assert parse_baseline(content) is None
    assert add_restart_markers(content) is None
    if kind not in ('cut off', 'empty'):
        assert random_crop(content, 32).shape == (3, 32, 32)


def test_every_way_of_decoding_gives_the_same_crop():
    content = encoded(noisy((160, 96)), subsampling=2)
    crops = []
    for one in (content, add_restart_markers(content), content + b'\0'):
        torch.manual_seed(3)
        crops.append(random_crop(one, 48))
    assert torch.equal(crops[0], crops[1]) and torch.equal(crops[0], crops[2])


def test_damaged_data_is_not_rewritten():
    content = bytearray(encoded(noisy((160, 96)), quality=95))
    at = parse_baseline(bytes(content)).scan_at
    assert add_restart_markers(bytes(content[: at + 900]) + b'\xff\xd9') is None
    content[at + 300 : at + 302] = b'\xff\xd9'
    assert add_restart_markers(bytes(content)) is None


@pytest.mark.parametrize('change', ['length', 'count', 'none'])
def test_without_a_true_index_the_markers_are_searched_for(change):
    content = encoded(noisy((160, 96)), subsampling=2)
    marked = bytearray(add_restart_markers(content))
    jpeg = parse_baseline(bytes(marked))
    start, end = jpeg.index_at
    assert end - start == 2 * 10 * 6 // jpeg.interval
    if change == 'length':
        marked[start + 1] ^= 4
    elif change == 'count':
        marked[start - 13 : start - 11] = (end - start + 13 + 2).to_bytes(2, 'big')
        marked[end:end] = b'\0\7'
    else:
        marked[start - 2] ^= 1
    assert_regions(bytes(marked))


def test_markers_in_the_wrong_order_do_not_mislead():
    """What a wrong marker does is the decoder's to say; the crop is then as in the whole."""
    marked = bytearray(add_restart_markers(encoded(noisy((160, 96)), subsampling=0), 5))
    at = marked.index(b'\xff\xd1', parse_baseline(bytes(marked)).scan_at)
    del marked[at : at + 2]
    assert_regions(bytes(marked), count=3)


@pytest.mark.parametrize('kept', [200, 0.5])
def test_damaged_training_image_is_named(image_folder, tmp_path, kept):
    path = tmp_path / 'train' / 'n00000000' / '0.JPEG'
    path.parent.mkdir(parents=True)
    content = (image_folder / 'ILSVRC2012' / 'train' / 'n00000000' / '0.JPEG').read_bytes()
    path.write_bytes(content[: kept if isinstance(kept, int) else int(kept * len(content))])
    with pytest.raises(InputError, match=r'cannot read image .*n00000000.0\.JPEG'):
        ImageNetFolder(str(tmp_path), 'train', size=32)[0]


def test_photos(real_data):
    """Real files: many tables, both samplings, markers already there, bytes after the end."""
    plain = 0
    for path in sorted((real_data / 'ILSVRC2012').rglob('*.*'))[::3]:
        content = path.read_bytes()
        marked = add_restart_markers(content)
        if marked is not None:
            plain += 1
            assert np.array_equal(whole(marked), whole(content))
            assert_regions(content, 3)
            assert_regions(marked, 3)
    assert plain > 30


@pytest.mark.parametrize('factors', [b'\x21\x21\x21', b'\x11\x21\x21'])
def test_unusual_sampling_factors_are_decoded_all_the_same(factors):
    """All components of 2 x 1 (which is 4:4:4), and less luminance than colour, as no encoder writes it."""
    content = bytearray(encoded(noisy((160, 96)), subsampling=0))
    at = parse_baseline(bytes(content)).size_at
    content[at + 6 : at + 14 : 3] = factors
    crops = []
    for one in (bytes(content), bytes(content) + b'\0'):
        torch.manual_seed(3)
        crops.append(random_crop(one, 48))
    assert torch.equal(*crops)
