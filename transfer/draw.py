"""Draw detections and masks onto photos, large enough to be read."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from transfer.voc import BORDER

_FONT_PX = 16
_DASH_PX = 8
_OPACITY = 0.6
# One class's hue after the last's: no two of many come near each other.
_HUE_STEP = (3 - 5**0.5) / 2
# Regions below this share of the image have no label: it would cover more than it names.
_LABEL_SHARE = 0.01
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Legend:
    """Names and colours of the classes of masks, by index; a first one named background is not drawn."""

    names: Sequence[str]
    colours: Sequence[Sequence[int]]

    def shown(self, label: int) -> bool:
        """Whether a label is of a class that is drawn."""
        return label < len(self.names) and (label > 0 or self.names[0].lower() != 'background')


@dataclass(frozen=True)
class Detection:
    """A box ``(left, top, right, bottom)`` in pixels of the photo.

    ``score`` is ``None`` for the truth, of which ``difficult`` objects do not count.
    """

    name: str
    box: tuple[float, float, float, float]
    score: float | None = None
    difficult: bool = False

    def __str__(self) -> str:
        name = f'{self.name} (difficult)' if self.difficult else self.name
        return name if self.score is None else f'{name} {self.score:.2f}'


def enlarge(image: Image.Image, width: int = 480) -> tuple[Image.Image, float]:
    """Scale an image to about ``width`` pixels: by a whole number if it is smaller, down if it is larger."""
    factor = max(1, round(width / image.width)) if image.width < width else width / image.width
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Image.Resampling.LANCZOS), factor


def box_colour(name: str, names: Sequence[str]) -> Colour:
    """A bright colour of its own for each class of ``names``."""
    index = names.index(name) if name in names else len(names)
    hue = index * _HUE_STEP % 1
    return tuple(round(255 * part) for part in colorsys.hls_to_rgb(hue, 0.6 + 0.12 * (index % 2), 1.0))


def draw_boxes(image: Image.Image, detections: Sequence[Detection], names: Sequence[str]) -> Image.Image:
    """Draw boxes with class and score onto an enlarged copy of ``image``; the highest score lies on top.

    Those of difficult objects are dashed. Each class of ``names`` has its colour.
    """
    picture, factor = enlarge(image.convert('RGB'))
    canvas = ImageDraw.Draw(picture)
    ordered = sorted(detections, key=lambda one: one.score or 0.0)
    for one in ordered:
        box = [factor * edge for edge in one.box]
        inner = [box[0] + 1, box[1] + 1, max(box[0] + 1, box[2] - 1), max(box[1] + 1, box[3] - 1)]
        if one.difficult:
            _draw_dashes(canvas, inner, box_colour(one.name, names))
            continue
        canvas.rectangle(box, outline=(0, 0, 0), width=5)
        canvas.rectangle(inner, outline=box_colour(one.name, names), width=3)
    taken: list[tuple[float, float, float, float]] = []
    for one in reversed(ordered):
        corner = (factor * one.box[0], factor * one.box[1])
        _draw_label(canvas, picture.size, str(one), corner, box_colour(one.name, names), taken)
    return picture


def draw_mask(image: Image.Image, labels: np.ndarray, legend: Legend) -> Image.Image:
    """Blend a mask into an enlarged copy of ``image``, with a name on each class.

    Args:
        image: the photo.
        labels: ``(H, W)``: indices of the classes, 255 what has no label (drawn white).
        legend: of those classes.
    """
    colours = np.full((256, 3), 255, np.uint8)
    colours[: len(legend.names)] = legend.colours
    drawn = np.array([legend.shown(label) or label == BORDER for label in range(256)])
    pixels = np.asarray(image.convert('RGB'), np.float32)
    blended = np.where(drawn[labels][..., None], (1 - _OPACITY) * pixels + _OPACITY * colours[labels], pixels)
    picture, factor = enlarge(Image.fromarray(blended.round().astype(np.uint8)))
    canvas = ImageDraw.Draw(picture)
    taken: list[tuple[float, float, float, float]] = []
    for label in classes_in(labels, legend):
        ys, xs = np.nonzero(labels == label)
        # The pixel of the region nearest its centre: the centre itself may lie outside.
        nearest = np.argmin((ys - ys.mean()) ** 2 + (xs - xs.mean()) ** 2)
        corner = (factor * float(xs[nearest]) - 20, factor * float(ys[nearest]) - _FONT_PX / 2)
        colour = tuple(map(int, colours[label]))
        _draw_label(canvas, picture.size, legend.names[label], corner, colour, taken)
    return picture


def classes_in(labels: np.ndarray, legend: Legend) -> list[int]:
    """Class indices that cover at least a hundredth of a mask, the largest first, without background."""
    counts = np.bincount(labels.ravel(), minlength=256)
    order = np.argsort(-counts, kind='stable')
    return [int(k) for k in order if legend.shown(k) and counts[k] >= _LABEL_SHARE * labels.size]


def _draw_dashes(canvas: ImageDraw.ImageDraw, box: Sequence[float], colour: Colour) -> None:
    left, top, right, bottom = box
    for x in np.arange(left, right, 2 * _DASH_PX):
        for y in (top + 1, bottom - 1):
            canvas.line([x, y, min(x + _DASH_PX, right), y], fill=colour, width=3)
    for y in np.arange(top, bottom, 2 * _DASH_PX):
        for x in (left + 1, right - 1):
            canvas.line([x, y, x, min(y + _DASH_PX, bottom)], fill=colour, width=3)


def _draw_label(
    canvas: ImageDraw.ImageDraw,
    size: tuple[int, int],
    text: str,
    corner: tuple[float, float],
    colour: Colour,
    taken: list[tuple[float, float, float, float]],
) -> None:
    """Write ``text`` on ``colour`` near ``corner``, inside the picture and clear of ``taken`` labels."""
    font = ImageFont.load_default(_FONT_PX)
    left, top, right, bottom = canvas.textbbox((0, 0), text, font=font)
    width, height = right - left + 8, bottom - top + 8
    x = min(max(corner[0], 0), size[0] - width)
    start = min(max(corner[1], 0), size[1] - height)
    steps = [start + sign * offset for offset in range(0, size[1], 4) for sign in (1, -1)]
    inside = [y for y in steps if 0 <= y <= size[1] - height]
    free = [y for y in inside if not any(_overlap((x, y, x + width, y + height), other) for other in taken)]
    y = (free or inside or [0])[0]
    taken.append((x, y, x + width, y + height))
    canvas.rectangle([x, y, x + width, y + height], fill=colour, outline=(0, 0, 0))
    dark = 0.299 * colour[0] + 0.587 * colour[1] + 0.114 * colour[2] < 120
    canvas.text((x + 4 - left, y + 4 - top), text, font=font, fill=(255, 255, 255) if dark else (0, 0, 0))


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]
