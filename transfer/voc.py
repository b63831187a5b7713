"""PASCAL VOC as it lies on disk: class names, colours, list files, annotations."""

from __future__ import annotations

import xml.etree.ElementTree as ET
from dataclasses import dataclass
from pathlib import Path

# The official order: class k of a mask is CLASSES[k - 1].
CLASSES = (
    *('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow'),
    *(
        'diningtable',
        'dog',
        'horse',
        'motorbike',
        'person',
        'pottedplant',
        'sheep',
        'sofa',
        'train',
        'tvmonitor',
    ),
)
BORDER = 255


@dataclass(frozen=True)
class Box:
    """One annotated object; coordinates as VOC writes them, 1-based and inclusive, in pixels."""

    name: str
    xmin: float
    ymin: float
    xmax: float
    ymax: float
    difficult: bool = False


@dataclass(frozen=True)
class Annotation:
    """What training reads of an annotation file; ``size`` is ``(width, height)``, if it is given."""

    size: tuple[int, int] | None
    boxes: tuple[Box, ...]


def read_list(path: Path) -> list[str]:
    """Names of the images in a list file, one a line; blank lines are left out."""
    return [line.strip() for line in path.read_text().splitlines() if line.strip()]


def read_annotation(path: Path) -> Annotation:
    """Parse a VOC annotation.

    Raises:
        ValueError: it is no XML, or an entry that is needed is missing or no number; says which.
    """
    try:
        root = ET.parse(path).getroot()
    except ET.ParseError as error:
        raise ValueError(f'is no XML ({error})') from error
    if root.tag != 'annotation':
        raise ValueError(f'has <{root.tag}> where <annotation> is expected')
    size = root.find('size')
    boxes = []
    for index, one in enumerate(root.findall('object'), 1):
        where = f'object {index}'
        bounds = one.find('bndbox')
        if bounds is None:
            raise ValueError(f'{where} has no <bndbox>')
        edges = [_number(bounds, edge, where) for edge in ('xmin', 'ymin', 'xmax', 'ymax')]
        difficult = one.findtext('difficult', '0').strip() == '1'
        boxes.append(Box(one.findtext('name', '').strip(), *edges, difficult))
    if size is not None:
        size = tuple(int(_number(size, edge, '<size>')) for edge in ('width', 'height'))
    return Annotation(size, tuple(boxes))


def _number(element: ET.Element, tag: str, where: str) -> float:
    text = element.findtext(tag)
    try:
        return float(text)
    except (TypeError, ValueError):
        raise ValueError(f'{where}: <{tag}> is {text!r} where a number is expected') from None


def palette() -> list[tuple[int, int, int]]:
    """VOC's 256 mask colours: the bits of the index, highest first, dealt to red, green and blue in turn."""
    return [
        tuple(
            sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(3)) for channel in range(3)
        )
        for index in range(256)
    ]
