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
) -> tuple[bytearray, int, int] | None:
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
    lengths = _indexed_lengths(content, jpeg, columns * rows)
    if lengths is None:
        lengths = interval_lengths(content, jpeg.scan_at, columns * rows)
    if lengths is None:
        return None
    cell = cell[0] * jpeg.unit[0], cell[1] * jpeg.unit[1]
    x0, y0, x1, y1 = box[0] // cell[0], box[1] // cell[1], -(-box[2] // cell[0]), -(-box[3] // cell[1])
    row_ends = (jpeg.scan_at + np.cumsum(lengths)).reshape(rows, columns)[y0:y1, x1 - 1]
    lengths = lengths.reshape(rows, columns)[y0:y1, x0:x1]
    row_starts = row_ends - lengths.sum(1)
    view = memoryview(content)
    pieces = (view[start:end] for start, end in zip(row_starts.tolist(), row_ends.tolist(), strict=True))
    smaller = bytearray().join((view[: jpeg.scan_at], *pieces))
    at = jpeg.scan_at - 1 + np.cumsum(lengths)
    np.frombuffer(smaller, np.uint8)[at] = _markers(len(at))
    height = min(y1 * cell[1], jpeg.height) - y0 * cell[1]
    width = min(x1 * cell[0], jpeg.width) - x0 * cell[0]
    smaller[jpeg.size_at : jpeg.size_at + 4] = height.to_bytes(2, 'big') + width.to_bytes(2, 'big')
    return smaller, x0 * cell[0], y0 * cell[1]


def interval_lengths(content: bytes, scan_at: int, count: int) -> np.ndarray | None:
    """Search for the markers that end the restart intervals: RST0 to RST7 in turn, and EOI.

    Args:
        content: a file up to its very end.
        scan_at: position of the entropy-coded data.
        count: number of intervals.

    Returns:
        ``(count,)`` bytes of each interval with its marker; ``None`` if the markers are others.
    """
    data = np.frombuffer(content, np.uint8, offset=scan_at)
    at = np.flatnonzero(data[:-1] == 0xFF) + 1
    at = at[data[at] != 0]  # 0 is what follows a data byte of 255
    if len(at) != count or not np.array_equal(data[at], _markers(count)):
        return None
    return np.diff(at, prepend=-1)


def _indexed_lengths(content: bytes, jpeg: Baseline, count: int) -> np.ndarray | None:
    """What :func:`interval_lengths` finds, by the file's index; ``None`` if there is none, or a wrong one."""
    start, end = jpeg.index_at
    if end - start != 2 * count:
        return None
    lengths = np.frombuffer(content, '>u2', count, start).astype(np.int64)
    ends = jpeg.scan_at + np.cumsum(lengths)
    if ends[-1] != len(content):
        return None
    data = np.frombuffer(content, np.uint8)
    if not np.array_equal(data[ends - 1], _markers(count)) or not (data[ends - 2] == 0xFF).all():
        return None
    return lengths


def _markers(count: int) -> np.ndarray:
    """Second bytes of the markers that end ``count`` intervals."""
    markers = 0xD0 + (np.arange(count) & 7)
    markers[-1] = 0xD9
    return markers
