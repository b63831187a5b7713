"""Put restart markers into a JPEG without touching its pixels: the entropy-coded data alone is written anew.

At a restart marker the decoder's state (the bits of the current byte, the last DC coefficient of each
component) is reset, so decoding can begin there. Every coefficient stays what it was; DC coefficients, which
are coded as differences, get new codes at the markers, and AC coefficients keep theirs bit for bit.
ITU-T T.81: Sections F.1.2 (coding) and E.1.4 (restart), Tables K.3 and K.4 (DC codes).
"""

from __future__ import annotations

import numpy as np
from numba import njit

from sd_pretrain.jpeg_file import APP9, DHT, DRI, INDEX, SOS, Baseline, parse_baseline, segments
from sd_pretrain.jpeg_region import interval_lengths

# Numbers of codes of 1 to 16 bits, luminance and chrominance; the symbols are 0 to 11 in order.
_DC_COUNTS = (
    bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0)),
    bytes((0, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0)),
)
_DC_SYMBOLS = bytes(range(12))
_MOST_PIXELS = 64
_LARGEST_INDEX = 65_000


def choose_interval(jpeg: Baseline) -> int:
    """MCUs between restart markers: the largest divisor of a row's number of MCUs within 64 pixels.

    Few, so that columns can be left out as well as rows; a divisor, so that they lie in a grid.
    """
    most = _MOST_PIXELS // jpeg.unit[0]
    return next(interval for interval in range(most, 0, -1) if jpeg.units[0] % interval == 0)


def add_restart_markers(content: bytes, interval: int | None = None) -> bytes | None:
    """Write a baseline JPEG with restart markers; header segments stay, but for the tables of DC codes.

    An index of the intervals is added, as an application segment.

    Args:
        content: the file.
        interval: MCUs between the markers; default: :func:`choose_interval`.

    Returns:
        The new file, whose pixels are the same with any decoder; ``None`` if it is none that
        :func:`parse_baseline` knows, or if its data is damaged.
    """
    jpeg = parse_baseline(content)
    if jpeg is None:
        return None
    tables = _code_tables(content)
    if any((0, part.dc_table) not in tables or (1, part.ac_table) not in tables for part in jpeg.components):
        return None
    interval = interval or choose_interval(jpeg)
    dc, ac = (
        np.stack([_lookup(*tables.get((kind, index), (bytes(16), b''))) for index in range(2)])
        for kind in (0, 1)
    )
    new_codes, new_lengths = zip(*(_codes(counts) for counts in _DC_COUNTS), strict=True)
    parts = [
        (index, part.dc_table, part.ac_table)
        for index, part in enumerate(jpeg.components)
        for _ in range(part.horizontal * part.vertical)
    ]
    across, down = jpeg.units
    data = _transcode(
        np.frombuffer(content, np.uint8, offset=jpeg.scan_at),
        np.array(parts, np.int64),
        across * down,
        jpeg.interval,
        interval,
        dc,
        ac,
        np.array(new_codes),
        np.array(new_lengths),
    )
    if not len(data):
        return None
    data = data.tobytes() + b'\xff\xd9'
    return _header(content, jpeg, interval, _index(data, -(-across * down // interval))) + data


def compile_coder() -> None:
    """Have Numba compile the coder now, which takes seconds, so that processes forked later have it."""
    tables = np.zeros((2, 1 << 16), np.uint16)
    _transcode(
        np.frombuffer(bytes(2), np.uint8),
        np.zeros((1, 3), np.int64),
        0,
        0,
        1,
        tables,
        tables,
        np.zeros((2, 12), np.int64),
        np.zeros((2, 12), np.int64),
    )


def _index(data: bytes, count: int) -> bytes:
    """The segment that saves a reader the search for the markers; none if it would be too large for one."""
    lengths = interval_lengths(data, 0, count)
    if 2 * count > _LARGEST_INDEX or lengths.max() >= 1 << 16:
        return b''
    return _segment(APP9, INDEX + lengths.astype('>u2').tobytes())


def _header(content: bytes, jpeg: Baseline, interval: int, index: bytes) -> bytes:
    """The file's beginning up to the entropy-coded data, with new DC tables, the interval and the index."""
    written = [content[:2]]
    for marker, start, end in segments(content):
        if marker == DHT:
            body = b''.join(
                bytes((kind << 4 | index,)) + counts + symbols
                for (kind, index), (counts, symbols) in _read_tables(content[start:end])
                if kind == 1
            )
            if body:
                written.append(_segment(DHT, body))
        elif marker == SOS:
            used = sorted({part.dc_table for part in jpeg.components})
            body = b''.join(bytes((index,)) + _DC_COUNTS[index] + _DC_SYMBOLS for index in used)
            written += [index, _segment(DHT, body), _segment(DRI, interval.to_bytes(2, 'big'))]
            written.append(content[start - 4 : end])
        elif marker != DRI and not (marker == APP9 and content.startswith(INDEX, start)):
            written.append(content[start - 4 : end])
    return b''.join(written)


def _segment(marker: int, body: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(body) + 2).to_bytes(2, 'big') + body


def _code_tables(content: bytes) -> dict[tuple[int, int], tuple[bytes, bytes]]:
    """Huffman tables by (0 for DC or 1 for AC, number): counts of codes of 1 to 16 bits, and the symbols."""
    found = {}
    for marker, start, end in segments(content):
        if marker == DHT:
            found.update(_read_tables(content[start:end]))
    return found


def _read_tables(body: bytes) -> list[tuple[tuple[int, int], tuple[bytes, bytes]]]:
    tables, at = [], 0
    while at + 17 <= len(body):
        counts = body[at + 1 : at + 17]
        end = at + 17 + sum(counts)
        tables.append(((body[at] >> 4, body[at] & 15), (counts, body[at + 17 : end])))
        at = end
    return tables


def _codes(counts: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Codes and their lengths in bits, in the order of the symbols (T.81, Section C.2)."""
    codes, lengths, code = [], [], 0
    for length, count in enumerate(counts, 1):
        codes += range(code, code + count)
        lengths += [length] * count
        code = (code + count) << 1
    return np.array(codes, np.int64), np.array(lengths, np.int64)


def _lookup(counts: bytes, symbols: bytes) -> np.ndarray:
    """``(65536,)``: what the next 16 bits begin with, as ``length << 8 | symbol``; 0: no code."""
    table = np.zeros(1 << 16, np.uint16)
    for symbol, code, length in zip(symbols, *_codes(counts), strict=False):
        table[code << (16 - length) : (code + 1) << (16 - length)] = length << 8 | symbol
    return table


@njit
def _transcode(data, parts, units, old_interval, new_interval, dc_tables, ac_tables, new_codes, new_lengths):
    """Entropy-coded data with other restart intervals; empty if it is damaged.

    Args:
        data: ``(N,)`` bytes from the scan's beginning to the file's end.
        parts: ``(blocks in an MCU, 3)``: component, DC table and AC table of each block.
        units: number of MCUs.
        old_interval: MCUs between the markers of ``data``, or 0.
        new_interval: MCUs between those to be written.
        dc_tables: ``(2, 65536)``, see :func:`_lookup`.
        ac_tables: ``(2, 65536)``.
        new_codes: ``(2, 12)``: DC codes to write, by table and size category.
        new_lengths: ``(2, 12)``: their lengths in bits.
    """
    # A block grows by its DC code, by 20 bits at most; every byte may be 255 and then be followed by a 0.
    out = np.empty(2 * (len(data) + 3 * units * len(parts)) + 4 * (units // new_interval + 2), np.uint8)
    nothing = out[:0]
    at, bits, count, missing = 0, 0, 0, 0
    to, held_bits, held = 0, 0, 0
    read, written = np.zeros(3, np.int64), np.zeros(3, np.int64)
    for unit in range(units):
        if old_interval and unit and unit % old_interval == 0:
            # What is left of the byte is padding, and reading has stopped at the marker.
            if at + 1 >= len(data) or data[at] != 0xFF or data[at + 1] & 0xF8 != 0xD0:
                return nothing
            at, bits, count, missing = at + 2, 0, 0, 0
            read[:] = 0
        if unit and unit % new_interval == 0:
            to = _pad(out, to, held_bits, held)
            out[to] = 0xFF
            out[to + 1] = 0xD0 + (unit // new_interval - 1) % 8
            to, held_bits, held = to + 2, 0, 0
            written[:] = 0
        for block in range(len(parts)):
            component, dc_table, ac_table = parts[block, 0], parts[block, 1], parts[block, 2]
            place = 0
            while place < 64:
                # A code and its value have 31 bits at most. Zeros stand for what a marker has cut off.
                while count < 32:
                    byte = 0
                    if at < len(data) and data[at] != 0xFF:
                        byte = data[at]
                        at += 1
                    elif at + 1 < len(data) and data[at + 1] == 0:
                        byte = 0xFF
                        at += 2
                    else:
                        missing += 8
                    bits = (bits << 8 | byte) & 0xFFFFFFFFFF
                    count += 8
                ahead = bits >> (count - 16) & 0xFFFF
                found = dc_tables[dc_table, ahead] if place == 0 else ac_tables[ac_table, ahead]
                length, symbol = found >> 8, found & 0xFF
                size = symbol & 15
                count -= length + size
                if length == 0 or count < missing or (place == 0 and symbol > 11):
                    return nothing
                if place == 0:
                    value = bits >> count & (1 << size) - 1
                    if size and value >> (size - 1) == 0:
                        value -= (1 << size) - 1
                    read[component] += value
                    change = read[component] - written[component]
                    written[component] = read[component]
                    left, size = abs(change), 0
                    while left:
                        left >>= 1
                        size += 1
                    if size > 11:
                        return nothing
                    if change < 0:
                        change += (1 << size) - 1
                    held_bits = held_bits << new_lengths[dc_table, size] | new_codes[dc_table, size]
                    held_bits = held_bits << size | change
                    held += new_lengths[dc_table, size] + size
                    place = 1
                else:
                    held_bits = held_bits << (length + size) | bits >> count & (1 << (length + size)) - 1
                    held += length + size
                    if size == 0 and symbol != 0xF0:  # end of block
                        place = 64
                    else:
                        place += (symbol >> 4) + 1
                        if place > 64:
                            return nothing
                while held >= 8:
                    held -= 8
                    to = _put(out, to, held_bits >> held & 0xFF)
                held_bits &= 0xFF
    if at != len(data) - 2:
        return nothing
    return out[: _pad(out, to, held_bits, held)].copy()


@njit
def _put(out, to, byte):
    """Write a byte of data at ``to``; returns the next position."""
    out[to] = byte
    if byte == 0xFF:
        out[to + 1] = 0
        return to + 2
    return to + 1


@njit
def _pad(out, to, bits, count):
    """Write the last ``count`` (0 to 7) bits, filled up with ones; returns the next position."""
    if count == 0:
        return to
    return _put(out, to, (bits << (8 - count) | (1 << (8 - count)) - 1) & 0xFF)
