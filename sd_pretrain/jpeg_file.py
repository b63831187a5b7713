"""The parts of a JPEG file that can be cropped before they are decoded: baseline, one interleaved scan."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

SOF, SOF1, DHT, SOS, DRI, APP9 = 0xC0, 0xC1, 0xC4, 0xDA, 0xDD, 0xE9
# An application segment of ours: the bytes of each restart interval, its marker included, as 16-bit numbers.
INDEX = b'SDrestarts\0'
_FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}


class Component(NamedTuple):
    """A colour component: sampling factors, and which Huffman tables its blocks use."""

    horizontal: int
    vertical: int
    dc_table: int
    ac_table: int


class Baseline(NamedTuple):
    """Where in a file what stands; sizes in pixels, positions in bytes from the file's beginning.

    Attributes:
        width: of the image.
        height: of the image.
        components: one or three.
        unit: width and height of a minimum coded unit (MCU).
        interval: MCUs between restart markers; 0: there are none.
        size_at: position of the height (2 bytes), which the width follows.
        scan_at: position of the first byte of entropy-coded data.
        index_at: positions of the first byte of the index of the restart intervals and of its end; or 0, 0.
    """

    width: int
    height: int
    components: tuple[Component, ...]
    unit: tuple[int, int]
    interval: int
    size_at: int
    scan_at: int
    index_at: tuple[int, int]

    @property
    def units(self) -> tuple[int, int]:
        """Number of MCUs in a row and in a column."""
        return -(-self.width // self.unit[0]), -(-self.height // self.unit[1])


def segments(content: bytes) -> Iterator[tuple[int, int, int]]:
    """The header's segments, up to the start of scan: marker, first byte of the content, its end.

    It ends early where the file is no JPEG or is damaged.
    """
    at = 2 if content[:2] == b'\xff\xd8' else len(content)
    while at + 4 <= len(content) and content[at] == 0xFF:
        marker = content[at + 1]
        if marker == 0xFF:  # fill bytes may precede a marker
            at += 1
            continue
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4], 'big')
        if end < at + 4 or end > len(content):
            return
        yield marker, at + 4, end
        if marker == SOS:
            return
        at = end


def parse_baseline(content: bytes) -> Baseline | None:
    """Read a file's header.

    Returns:
        ``None`` for whatever is to be decoded as a whole: no JPEG, progressive, arithmetic or 12-bit coding,
        four components (CMYK), more than one scan, bytes after the image's end, or a damaged header.
    """
    if content[-2:] != b'\xff\xd9':
        return None
    frame, interval, index_at = None, 0, (0, 0)
    for marker, start, end in segments(content):
        if marker in (SOF, SOF1) and frame is None:
            frame = start, end
        elif marker in _FRAMES:
            return None
        elif marker == DRI and end - start == 2:
            interval = int.from_bytes(content[start:end], 'big')
        elif marker == APP9 and content.startswith(INDEX, start):
            index_at = start + len(INDEX), end
        elif marker == SOS and frame is not None:
            return _assemble(content, frame, (start, end), interval, index_at)
    return None


def _assemble(
    content: bytes, frame: tuple[int, int], scan: tuple[int, int], interval: int, index_at: tuple[int, int]
) -> Baseline | None:
    (start, end), (scan_start, scan_end) = frame, scan
    if end - start < 6:
        return None
    count = content[start + 5]
    height, width = (int.from_bytes(content[start + at : start + at + 2], 'big') for at in (1, 3))
    expected = bytes((0, 63, 0))  # all coefficients, in one go
    if content[start] != 8 or count not in (1, 3) or not width or not height or end - start != 6 + 3 * count:
        return None
    if (
        scan_end - scan_start != 4 + 2 * count
        or content[scan_start] != count
        or content[scan_end - 3 : scan_end] != expected
    ):
        return None
    components = []
    for index in range(count):
        name, sampling, _ = content[start + 6 + 3 * index : start + 9 + 3 * index]
        scanned, tables = content[scan_start + 1 + 2 * index : scan_start + 3 + 2 * index]
        component = Component(sampling >> 4, sampling & 15, tables >> 4, tables & 15)
        if name != scanned or max(component[2:]) > 1 or not all(0 < side <= 4 for side in component[:2]):
            return None
        components.append(component)
    if count == 1:  # a scan of one component is in blocks, whatever its sampling factors
        components = [components[0]._replace(horizontal=1, vertical=1)]
    unit = tuple(8 * max(component[axis] for component in components) for axis in (0, 1))
    return Baseline(width, height, tuple(components), unit, interval, start + 1, scan_end, index_at)
