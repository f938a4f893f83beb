"""What a JPEG, JPEG-LS or JPEG 2000 stream says of itself, and whether a lossless JPEG stream fits its picture."""

from struct import error, unpack_from
from typing import NamedTuple

import numpy as np

START_OF_FRAME = {0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7}
LEFT_NEIGHBOUR = 1  # predictor of table H.1
HUFFMAN_TABLES, RESTART_INTERVAL, START_OF_SCAN, END_OF_IMAGE = 0xC4, 0xDD, 0xDA, b"\xff\xd9"


class Picture(NamedTuple):
    rows: int
    cols: int
    samples: int
    precision: int  # bits


def picture_of(frame: bytes) -> Picture | None:
    """None where the stream has no header that can be read."""
    try:
        if frame.startswith(b"\xff\x4f\xff\x51"):  # JPEG 2000, ISO/IEC 15444-1 A.5.1
            right, lower, left, upper = unpack_from(">4I", frame, 8)
            (samples,) = unpack_from(">H", frame, 40)
            return Picture(lower - upper, right - left, samples, (frame[42] & 0x7F) + 1)
        for marker, place in _segments(frame):
            if marker in START_OF_FRAME:
                precision, rows, cols, samples = unpack_from(">BHHB", frame, place)
                return Picture(rows, cols, samples, precision)
    except (IndexError, error):
        pass
    return None


def _segments(frame: bytes):
    """(marker, where its content begins) of a JPEG stream, up to its first scan."""
    place = 2 if frame.startswith(b"\xff\xd8") else len(frame)
    while place < len(frame) and frame[place] == 0xFF:
        marker = frame[place + 1]
        if marker == 0xFF:  # a fill byte
            place += 1
            continue
        yield marker, place + 4
        if marker == START_OF_SCAN:
            return
        place += 2 + unpack_from(">H", frame, place + 2)[0]


def lossless_jpeg_fits(frame: bytes, decoded: np.ndarray) -> bool:
    """Whether the pixels take as many bits as the scan of a lossless JPEG stream holds (ITU-T T.81, annex H).

    libjpeg goes on, with a word on stderr at most, where a stream is damaged: it loses its place, and runs out of bits
    or has some left. `decoded` [R, C] is what it made of the stream. Up to 15 bits of padding, all alike, may be left.
    Not seen: damage that takes as many bits as what it replaced. Streams with restart intervals, or another
    predictor than the left neighbour, which nearly all have, are let pass.
    """
    code_bits = np.zeros(17, np.int64)
    precision = scan = transform = 0
    for marker, place in _segments(frame):
        if marker == HUFFMAN_TABLES:
            counts = frame[place + 1 : place + 17]
            categories = frame[place + 17 : place + 17 + sum(counts)]
            lengths = [length for length, count in enumerate(counts, 1) for _ in range(count)]
            for category, length in zip(categories, lengths, strict=True):
                if category <= 16:
                    code_bits[category] = length
        elif marker == RESTART_INTERVAL and unpack_from(">H", frame, place)[0]:
            return True
        elif marker in START_OF_FRAME:
            precision = frame[place]
        elif marker == START_OF_SCAN:
            if frame[place + 3] != LEFT_NEIGHBOUR:
                return True
            transform = frame[place + 5] & 15
            scan = place - 2 + unpack_from(">H", frame, place - 2)[0]
    coded = frame[scan : frame.rfind(END_OF_IMAGE)].rstrip(b"\xff")
    stuffed = coded.count(b"\xff\x00")
    if not scan or coded.count(b"\xff") != stuffed:
        return False
    mask = np.uint16((1 << precision) - 1)
    values = (decoded.astype(np.uint16) & mask) >> transform
    bits = (code_bits + EXTRA_BITS).astype(np.uint8)[CATEGORY]
    taken = int(bits[_differences(values, 1 << precision - transform - 1)].sum(dtype=np.int64))
    left = 8 * (len(coded) - stuffed) - taken
    if not 0 <= left < 16:
        return False
    padding = int.from_bytes(coded[-4:].replace(b"\xff\x00", b"\xff")[-2:]) & (1 << left) - 1
    return padding in (0, (1 << left) - 1)


def _differences(values: np.ndarray, start: int) -> np.ndarray:
    """uint16, modulo 65536, from the left neighbour; the first column from above, the first pixel from `start`."""
    result = np.empty(values.shape, np.uint16)
    result[0, 0] = int(values[0, 0]) - start & 0xFFFF
    np.subtract(values[1:, 0], values[:-1, 0], out=result[1:, 0])
    np.subtract(values[:, 1:], values[:, :-1], out=result[:, 1:])
    return result


# Category of a difference modulo 65536: the bits of its absolute value. 32768 is category 16, which has no extra bits.
_absolute = np.abs(np.arange(65536) - 65536 * (np.arange(65536) > 32768))
CATEGORY = np.frexp(_absolute)[1].astype(np.uint8)
EXTRA_BITS = np.array([*range(16), 0])
