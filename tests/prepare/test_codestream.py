"""Lossless JPEG (ITU-T T.81) against an encoder of a few lines, whose streams pydicom's decoders read."""

import io
import struct

import numpy as np
import pydicom
import pytest
from codestream import Picture, lossless_jpeg_fits, picture_of
from prepare.synthetic import slice_bytes
from pydicom.encaps import encapsulate, generate_frames


def encode(values: np.ndarray, precision: int, predictor: int = 1, restart: int = 0) -> bytes:
    """From the left neighbour, whatever `predictor` says. The code of a category is its number, in five bits."""
    v = values.tolist()
    bits = ""
    for y in range(values.shape[0]):
        for x in range(values.shape[1]):
            predicted = v[y][x - 1] if x else v[y - 1][0] if y else 1 << precision - 1
            difference = (v[y][x] - predicted) & 0xFFFF
            if difference > 32768:
                difference -= 65536
            category = abs(difference).bit_length()
            bits += f"{category:05b}"
            if 0 < category < 16:
                extra = difference if difference > 0 else difference + (1 << category) - 1
                bits += f"{extra:0{category}b}"
    bits += "1" * (-len(bits) % 8)
    coded = int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\x00")
    frame = struct.pack(">BHHB3B", precision, *values.shape, 1, 1, 0x11, 0)
    table = bytes([0, 0, 0, 0, 0, 17, *[0] * 11, *range(17)])
    scan = bytes([1, 1, 0, predictor, 0, 0])
    parts = [b"\xff\xd8"]
    for marker, content in ((0xC3, frame), (0xC4, table), (0xDD, struct.pack(">H", restart)), (0xDA, scan)):
        parts.append(struct.pack(">BBH", 0xFF, marker, 2 + len(content)) + content)
    return b"".join(parts) + coded + b"\xff\xd9"


@pytest.mark.parametrize("precision", [12, 16])
def test_sound_streams_fit(precision):
    generator = np.random.default_rng(precision)
    values = generator.integers(0, 1 << precision, (24, 17)).astype(np.uint16)
    values[12:] = 700 + generator.integers(0, 30, (12, 17))
    frame = encode(values, precision)
    content = slice_bytes(values, "jpeg lossless 57", PixelData=encapsulate([frame + b"\0" * (len(frame) % 2)]))
    np.testing.assert_array_equal(pydicom.dcmread(io.BytesIO(content)).pixel_array, values)
    assert picture_of(frame) == Picture(24, 17, 1, precision)
    assert lossless_jpeg_fits(frame, values)


def test_odd_values_fit():
    values = np.array([[32768, 0, 32768, 1], [0, 32768, 65535, 0]], np.uint16)  # 32768 has no extra bits
    assert lossless_jpeg_fits(encode(values, 16), values)
    signed = np.array([[-2000, -2000, 5], [0, 40, -1024]], np.int16)
    assert lossless_jpeg_fits(encode(signed.view(np.uint16), 16), signed)
    assert lossless_jpeg_fits(encode(signed.view(np.uint16) & 0x0FFF, 12), signed)
    for passed in ({"restart": 4}, {"predictor": 2}):
        assert lossless_jpeg_fits(encode(values, 12, **passed), values + 7)


def test_a_stream_that_does_not_end_with_the_last_pixel_is_noticed():
    values = np.random.default_rng(0).integers(0, 4096, (24, 17)).astype(np.uint16)
    frame = encode(values, 12)
    assert lossless_jpeg_fits(frame[:-2] + b"\xff\xff" + frame[-2:], values)  # fill bytes before a marker are legal
    for missing in (1, 2, 3, 10):
        assert not lossless_jpeg_fits(frame[: -2 - missing] + frame[-2:], values)
    for more in (b"\x12", b"\x00\x00"):
        assert not lossless_jpeg_fits(frame[:-2] + more + frame[-2:], values)
    marked = frame[:-60] + b"\xff\xd0" + frame[-58:]  # a marker within the scan
    assert not lossless_jpeg_fits(marked, values)


@pytest.mark.parametrize("syntax", ["jpeg lossless 57", "jpeg lossless 70", "jpeg-ls", "jpeg 2000"])
def test_picture_of_streams_of_gdcm(archive, syntax):
    archive.write(np.zeros((40, 48), np.uint16), syntax=syntax)
    frame = next(generate_frames(pydicom.dcmread(archive.root / "a").PixelData, number_of_frames=1))
    assert picture_of(frame) == Picture(40, 48, 1, 16)


@pytest.mark.parametrize(
    "frame", [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\x4f\xff\x51\x00", b"no stream", bytes(100)]
)
def test_what_is_no_stream(frame):
    assert picture_of(frame) is None
