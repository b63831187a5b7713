"""Boxes and masks are drawn where the objects are, in sizes that a page has room for."""

import numpy as np
import pytest
from PIL import Image

from transfer.draw import Detection, Legend, classes_in, draw_boxes, draw_mask
from transfer.voc import CLASSES, palette


def test_small_images_grow_and_boxes_lie_where_the_objects_are():
    picture = draw_boxes(Image.new('RGB', (160, 128)), [Detection('dog', (40, 50, 120, 100))], CLASSES)
    assert picture.size == (480, 384)
    painted = np.argwhere(np.asarray(picture).sum(2) > 0)
    rows, columns = painted[:, 0], painted[:, 1]
    # The outline begins one pixel inside the box of three times the size; the label stands within it.
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (151, 299, 121, 359)


def test_difficult_objects_are_dashed_and_say_so():
    one = Detection('dog', (10, 20, 150, 120), difficult=True)
    assert str(one) == 'dog (difficult)'
    picture = np.asarray(draw_boxes(Image.new('RGB', (160, 128)), [one], CLASSES))
    # The lower edge, below the label: 8 of 16 pixels from the corner on.
    edge = picture[3 * 120 - 2, 31:449].sum(1) > 0
    assert edge[:8].all() and not edge[9:15].any() and edge[16:24].all()
    assert 0.45 < edge.mean() < 0.6


@pytest.mark.parametrize('box', [(40, 50, 41, 100), (40, 50, 120, 51), (160, 50, 160, 100)])
def test_boxes_of_a_pixel_or_none_are_drawn(box):
    assert draw_boxes(Image.new('RGB', (500, 375)), [Detection('dog', box, 0.5)], CLASSES).size == (480, 360)


def test_large_images_shrink():
    assert draw_boxes(Image.new('RGB', (960, 640)), [], CLASSES).size == (480, 320)


def test_masks_take_their_classes_colour_and_leave_the_background():
    labels = np.zeros((128, 160), np.uint8)
    labels[:, 80:] = 12  # dog: (64, 0, 128)
    labels[:, 78:80] = 255
    legend = Legend(('background', *CLASSES), palette()[:21])
    picture = np.asarray(draw_mask(Image.new('RGB', (160, 128), (100, 100, 100)), labels, legend))
    assert picture.shape == (384, 480, 3)
    assert picture[10, 10].tolist() == [100, 100, 100]
    assert picture[10, 470].tolist() == [round(0.4 * 100 + 0.6 * part) for part in (64, 0, 128)]
    assert classes_in(labels, legend) == [12]
