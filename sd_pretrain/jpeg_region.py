"""Decode a rectangle of a JPEG: the same pixels as cut out of the whole, for less work.

What a decoder spends its time on is the entropy-coded data, which can only be read from its beginning. So the
header is told a smaller height, and the decoder ends below the rectangle. Restart markers are where reading
can begin anew: with them (``tools/prepare_imagenet.py --restart-markers``) the rectangle's stretches of data
are put together to a smaller JPEG, and nothing else is decoded.
"""

from __future__ import annotations

import numpy as np
import simplejpeg

from sd_pretrain.jpeg_file import Baseline


def decode_region(content: bytes, jpeg: Baseline, left: int, top: int, width: int, height: int) -> np.ndarray:
    """Decode a rectangle, given in pixels, of the file that :func:`parse_baseline` read as ``jpeg``.

    Returns:
        uint8 ``(height, width, 3)``, RGB: a view of what was decoded around it.

    Raises:
        ValueError: the file is damaged.
    """
    # Chroma samples are interpolated with their neighbours, which a pixel at the cut would miss.
    margin = max(jpeg.unit) // 8 if max(jpeg.unit) > 8 else 0
    box = (
        max(left - margin, 0),
        max(top - margin, 0),
        min(left + width + margin, jpeg.width),
        min(top + height + margin, jpeg.height),
    )
    smaller = _cut_intervals(content, jpeg, box) if jpeg.interval else None
    if smaller is None:
        smaller = bytearray(content)
        smaller[jpeg.size_at : jpeg.size_at + 2] = box[3].to_bytes(2, 'big')
        x, y = 0, 0
    else:
        smaller, x, y = smaller
    # Not strict: the rest of the data, below the rectangle, would count as an error.
    pixels = simplejpeg.decode_jpeg(smaller, strict=False)
    return pixels[top - y : top - y + height, left - x : left - x + width]


def _cut_intervals(
    content: bytes, jpeg: Baseline, box: tuple[int, int, int, int]
) -> tuple[np.ndarray, int, int] | None:
    """A JPEG of the restart intervals that ``box`` (left, top, right, bottom; pixels) touches.

    Returns:
        Its bytes, and the left and top of its place in the image; ``None`` if intervals do not fit into rows
        or rows into intervals, or the markers are not where they should be.
    """
    across, down = jpeg.units
    if across % jpeg.interval and jpeg.interval % across:
        return None
    # Intervals as a grid of cells: of one row of MCUs and some columns, or of whole rows.
    cell = min(jpeg.interval, across), max(jpeg.interval // across, 1)
    columns, rows = across // cell[0], -(-down // cell[1])
    ends = _interval_ends(content, jpeg.scan_at, columns * rows)
    if ends is None:
        return None
    cell = cell[0] * jpeg.unit[0], cell[1] * jpeg.unit[1]
    x0, y0, x1, y1 = box[0] // cell[0], box[1] // cell[1], -(-box[2] // cell[0]), -(-box[3] // cell[1])
    starts = np.concatenate(([jpeg.scan_at], ends[:-1]))
    firsts = range(y0 * columns + x0, y1 * columns + x0, columns)
    data = np.frombuffer(content, np.uint8)
    wide = x1 - x0
    pieces = [data[: jpeg.scan_at], *(data[starts[at] : ends[at + wide - 1]] for at in firsts)]
    smaller = np.concatenate(pieces)
    chosen = (np.arange(y0, y1)[:, None] * columns + np.arange(x0, x1)).ravel()
    at = jpeg.scan_at + np.cumsum(ends[chosen] - starts[chosen]) - 1
    smaller[at] = 0xD0 + np.arange(len(at)) % 8
    smaller[-1] = 0xD9
    size = [
        min(y1 * cell[1], jpeg.height) - y0 * cell[1],
        min(x1 * cell[0], jpeg.width) - x0 * cell[0],
    ]
    smaller[jpeg.size_at : jpeg.size_at + 4] = np.array(size, '>u2').view(np.uint8)
    return smaller, x0 * cell[0], y0 * cell[1]


def _interval_ends(content: bytes, scan_at: int, count: int) -> np.ndarray | None:
    """Positions behind the markers that end the ``count`` intervals (RST0 to RST7 in turn, and EOI)."""
    data = np.frombuffer(content, np.uint8, offset=scan_at)
    at = np.flatnonzero(data[:-1] == 0xFF) + 1
    at = at[data[at] != 0]  # 0 is what follows a data byte of 255
    expected = np.append(0xD0 + np.arange(count - 1) % 8, 0xD9)
    if len(at) != count or not np.array_equal(data[at], expected):
        return None
    return at + (scan_at + 1)
