"""The pixel pass: HU by hand in every coding and transfer syntax; every damage is a reason, never a picture."""

import hashlib
import struct
from pathlib import Path

import gdcm
import numpy as np
import pydicom
import pydicom.data
import pytest
from archive import pixels
from archive.header import UNSPECIFIED
from archive.listing import Entry
from archive.pixels import Rejected, read_picture
from archive.reasons import REJECTED
from prepare.broken import Failing
from pydicom.encaps import encapsulate, generate_frames

GDCM_SYNTAXES = ["jpeg lossless 57", "jpeg lossless 70", "jpeg-ls", "jpeg 2000"]
SYNTAXES = ["implicit", "explicit", "big endian", "deflated", "rle", *GDCM_SYNTAXES]
PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
BITS_12 = {"BitsStored": 12, "HighBit": 11}


def picture_of_hu(generator=None) -> np.ndarray:
    """HU [256, 256], at which size the stored picture is HU + 1024: smooth, noisy, with every bound of the codings."""
    generator = generator or np.random.default_rng(0)
    y, x = np.mgrid[:256, :256]
    hu = np.rint(400 * np.sin(x / 19) * np.cos(y / 13) + generator.normal(0, 15, (256, 256)))
    hu[0, :8] = -1024, -1001, -1000, -100, 0, 1, 2046, 2047
    return hu


def rejected(archive, entry) -> str:
    with pytest.raises(Rejected) as caught:
        archive.picture(entry)
    assert caught.value.reason in REJECTED
    assert str(caught.value) == caught.value.reason
    # The message of the decoder stays where it arose.
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    return caught.value.reason


def to_unsigned(hu):
    return (hu + 1024).astype(np.uint16), {}


def to_signed(hu):
    return hu.astype(np.int16), {"RescaleIntercept": 0}


def to_padded(hu):
    y, x = np.mgrid[:256, :256]
    hu[(x - 128) ** 2 + (y - 128) ** 2 > 200**2] = -3024
    return (hu + 1024).astype(np.int16), {}  # -2000 outside the circle


def to_unsigned_12(hu):
    return (hu + 1024).astype(np.uint16), dict(BITS_12)


def to_signed_12(hu):
    return hu.clip(-2048, 2047).astype(np.int16), {"RescaleIntercept": 0, **BITS_12}


def to_scaled(hu):
    return (hu + 1024).astype(np.uint16) * 8, {"RescaleSlope": 0.125}


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_coding_in_every_syntax(archive, syntax):
    for coding in (to_unsigned, to_signed, to_padded, to_unsigned_12, to_signed_12, to_scaled):
        hu = picture_of_hu()
        stored, tags = coding(hu)
        picture = archive.picture(archive.write(stored, syntax=syntax, **tags))
        np.testing.assert_array_equal(picture.stored, hu.clip(-1024, 3071) + 1024, err_msg=coding.__name__)
        assert picture.stored.dtype == np.uint16
        assert set(picture.flags) <= {UNSPECIFIED}  # GDCM, which compresses here, writes RescaleType US
        assert picture.ambiguous_pixels == 0


def test_unsigned_16_bits_do_not_wrap(archive):
    stored = np.full((256, 256), 1024, np.uint16)
    stored[0, :4] = 0, 4095, 4096, 65535
    picture = archive.picture(archive.write(stored))
    np.testing.assert_array_equal(picture.stored[0, :5], [0, 4095, 4095, 4095, 1024])


def test_signed_12_bits_with_zeros_above(archive):
    """-1 as 0x0FFF: to be extended by hand of the bits stored."""
    hu = picture_of_hu()
    stored = hu.astype(np.int16) & 0x0FFF
    picture = archive.picture(archive.write(stored, RescaleIntercept=0, **BITS_12))
    np.testing.assert_array_equal(picture.stored, hu + 1024)


@pytest.mark.parametrize(
    ("stored", "tags"),
    [
        (np.array([0, 4096], np.uint16), BITS_12),
        (np.array([-1, 2048], np.int16), BITS_12),
    ],
)
def test_values_outside_the_bits_stored(archive, stored, tags):
    entry = archive.write(np.resize(stored, (32, 32)), source="cspine", **tags)
    assert rejected(archive, entry) == "values outside the bits stored"


# Wrapped: signed HU kept modulo 4096 in 12 unsigned bits, under an intercept of 0 or 1 (0028,1052).

WRAPPED_HU = np.array([-1024, -1001, -1000, 0, 2047])
WRAPPED_STORED = np.array([3072, 3095, 3096, 0, 2047], np.uint16)


@pytest.mark.parametrize("intercept", [0, 1, -99])
def test_wrapped_group_of_ich(archive, intercept):
    stored = np.zeros((256, 256), np.uint16)
    stored[0, :5] = WRAPPED_STORED
    stored[1, :2] = 2048, 4095
    stored[2] = 3096
    picture = archive.picture(archive.write(stored, RescaleIntercept=intercept, **BITS_12))
    np.testing.assert_array_equal(picture.stored[0, :5], WRAPPED_HU + 1024)
    np.testing.assert_array_equal(picture.stored[1, :3], [0, 1023, 1024])  # 2048 is -2048, or metal; clipped
    assert picture.flags == ("wrapped 12 bit",)
    assert (picture.stored[2] == 24).all()
    assert picture.ambiguous_pixels == 3  # 3072, 3095 and 2048: the usual mend makes them positive


@pytest.mark.parametrize(
    ("source", "tags"),
    [
        ("ich", {"RescaleIntercept": -1024, **BITS_12}),
        ("ich", {"RescaleIntercept": -100, **BITS_12}),
        ("ich", {"RescaleIntercept": 0, "BitsStored": 13, "HighBit": 12}),
        ("cspine", {"RescaleIntercept": 0, **BITS_12}),
    ],
)
def test_what_is_not_wrapped(archive, source, tags):
    stored = np.full((256, 256), 3000, np.uint16)
    picture = archive.picture(archive.write(stored, source=source, **tags))
    assert picture.stored[0, 0] == min(3000 + tags["RescaleIntercept"] + 1024, 4095)
    assert "wrapped 12 bit" not in picture.flags
    assert picture.ambiguous_pixels == 0


def in_air(value: int, air: int, shape=(256, 256), dtype=np.uint16) -> np.ndarray:
    """A square of tissue in the middle of air."""
    stored = np.full(shape, air, dtype)
    stored[shape[0] // 4 : -shape[0] // 4, shape[1] // 4 : -shape[1] // 4] = value
    return stored


@pytest.mark.parametrize(
    ("tags", "flags", "stored", "air"),
    [
        ({"RescaleSlope": None}, ("no slope",), 1500, 24),
        ({"PhotometricInterpretation": "MONOCHROME1"}, ("monochrome1",), 1500, 24),
    ],
)
def test_flags_of_tags(archive, tags, flags, stored, air):
    picture = archive.picture(archive.write(in_air(1500, air), source="cspine", **tags))
    assert (picture.flags, picture.stored[128, 128]) == (flags, stored)


@pytest.mark.parametrize(
    ("tags", "flags"),
    [
        ({"RescaleIntercept": None}, {"no intercept"}),
        ({"RescaleSlope": None, "RescaleIntercept": None}, {"no intercept", "no slope"}),
        ({"RescaleType": "US", "RescaleIntercept": 0}, {UNSPECIFIED}),
    ],
)
def test_where_the_header_does_not_say_the_values_must_look_like_hu(archive, tags, flags):
    picture = archive.picture(archive.write(in_air(40, -1000, dtype=np.int16), source="cspine", **tags))
    assert set(picture.flags) == flags
    assert [picture.stored[0, 0], picture.stored[128, 128]] == [24, 1064]
    for stored in (in_air(1064, 24), in_air(1064, 24, dtype=np.int16)):  # HU + 1024: air would be 24 HU
        assert rejected(archive, archive.write(stored, source="cspine", **tags)) == "not in HU"
    padded = in_air(1064, 24, dtype=np.int16)
    padded[:10] = -2000
    for padding in (None, -2000):
        entry = archive.write(padded, source="cspine", **tags, **({"PixelPaddingValue": padding} if padding else {}))
        assert rejected(archive, entry) == "not in HU"
    assert rejected(archive, archive.write(in_air(1064, 24), PixelPaddingValue=24, **tags)) == "not in HU"


@pytest.mark.parametrize(
    ("shape", "flags"),
    [
        ((638, 490), {"cropped"}),
        ((256, 300), {"cropped"}),
        ((512, 512), set()),
        ((300, 128), {"cropped", "upsampled"}),
    ],
)
def test_flags_of_sizes(archive, shape, flags):
    stored = np.full(shape, 1024, np.uint16)
    short = min(shape)
    top, left = (shape[0] - short) // 2, (shape[1] - short) // 2
    stored[top : top + short, left : left + short] = 2024  # the centre, which the crop keeps
    picture = archive.picture(archive.write(stored))
    assert (set(picture.flags) & {"cropped", "upsampled"}, picture.stored.shape) == (flags, (256, 256))
    assert (picture.stored == 2024).all()


# The scale.


@pytest.mark.parametrize(
    ("padding", "tags"),
    [
        (63536, {"PixelPaddingValue": 63536}),  # -2000 written by a program without signs
        (4095, {"PixelPaddingValue": 4095, **BITS_12}),
        (63536, {"PixelPaddingValue": 63536, **BITS_12}),  # outside the bits stored
        (3800, {"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 4095}),
        (3800, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3000}),
    ],
)
def test_padding_is_air(archive, padding, tags):
    stored = in_air(1064, 24)
    stored[:40] = padding
    picture = archive.picture(archive.write(stored, **tags))
    assert picture.flags == ("padding",)
    assert [picture.stored[0, 0], picture.stored[60, 0], picture.stored[128, 128]] == [0, 24, 1064]
    assert picture.stored.max() <= 1070  # nothing bleeds into the body


def test_padding_that_tissue_has_too_is_left_where_it_is_scattered(archive):
    noise = np.random.default_rng(0).integers(-10, 10, (256, 256)).astype(np.int16)
    stored = in_air(0, -1000, dtype=np.int16) + noise  # water
    picture = archive.picture(archive.write(stored, RescaleIntercept=0, PixelPaddingValue=0))
    assert picture.flags == ("scattered padding",)
    np.testing.assert_array_equal(picture.stored, stored + 1024)
    stored[:40] = 0
    picture = archive.picture(archive.write(stored, RescaleIntercept=0, PixelPaddingValue=0))
    assert picture.flags == ("padding",)
    assert picture.stored[0, 0] == 0


@pytest.mark.parametrize("value", [-500, 65036, 3596])  # with its sign, without it, and of 12 bits
def test_padding_of_signed_12_bits(archive, value):
    stored = in_air(40, -1000, dtype=np.int16)
    stored[:40] = -500
    for filled in (stored, stored & 0x0FFF):  # the bits above the 12 are the writer's to fill
        picture = archive.picture(archive.write(filled, RescaleIntercept=0, PixelPaddingValue=value, **BITS_12))
        assert (picture.flags, picture.stored[0, 0], picture.stored[60, 0]) == (("padding",), 0, 24)


@pytest.mark.parametrize(
    ("values", "tags"),
    [
        ([64536, 64], {"RescaleIntercept": 0}),  # -1000 and 64 HU without their signs
        ([63536, 1064], {}),  # padding of -2000 that no tag names
        ([4095, 1064], BITS_12),
        ([3096, 64], {"RescaleIntercept": 0, **BITS_12}),  # wrapped at 12 bits
        ([(1 << 14) - 1000, 64], {"RescaleIntercept": 0, "BitsStored": 14, "HighBit": 13}),
        ([24 << 8, 1064 >> 8 | (1064 & 255) << 8], {}),  # bytes swapped
    ],
)
def test_values_beyond_any_tissue(archive, values, tags):
    stored = in_air(values[1], values[0])
    assert rejected(archive, archive.write(stored, source="cspine", **tags)) == "values beyond any tissue"


@pytest.mark.parametrize(("share", "fate"), [(0.002, ()), (0.01, ("dense",)), (0.04, None)])
def test_metal_is_stored_up_to_a_few_per_cent(archive, share, fate):
    stored = in_air(1064, 24)
    side = round(256 * share**0.5)
    stored[100 : 100 + side, 100 : 100 + side] = 6000
    entry = archive.write(stored)
    if fate is None:
        assert rejected(archive, entry) == "values beyond any tissue"
    else:
        assert archive.picture(entry).flags == fate


@pytest.mark.parametrize(
    ("stored", "tags", "flag"),
    [
        (in_air(1064, 24), {"RescaleIntercept": 0}, "no air"),  # all of it 1024 HU too high
        (in_air(1064, 3096), {"RescaleIntercept": -1024}, "dense"),  # wrapped, and moved: air is 2072 HU
        (in_air(40, -1000, dtype=np.int16), {"RescaleIntercept": -1024}, "below air"),  # rescaled twice
        (in_air(40, 2000), {}, "dense"),  # inverted: air is 976 HU
        (in_air(1064, 24), {"RescaleSlope": 0.1}, "no tissue"),
    ],
)
def test_a_scale_that_is_off_is_flagged(archive, stored, tags, flag):
    noisy = stored + np.random.default_rng(0).integers(-20, 20, stored.shape).astype(stored.dtype)
    assert flag in archive.picture(archive.write(noisy, source="cspine", **tags)).flags


# Damage.


@pytest.mark.parametrize(
    ("length", "fault"),
    [
        (0, "short pixel data"),
        (153_710, "short pixel data"),  # as ID_6431af929.dcm of RSNA ICH
        (524_286, "short pixel data"),
        (524_290, "surplus pixel data"),
        (2 * 524_288, "surplus pixel data"),
    ],
)
def test_short_and_surplus_pixel_data(archive, length, fault):
    assert rejected(archive, archive.write(np.ones((512, 512), np.uint16), PixelData=bytes(length))) == fault


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_truncated_file(archive, syntax):
    archive.write(to_unsigned(picture_of_hu())[0], syntax=syntax)
    raw = archive.bytes_of("a")
    for share in (0.5, 0.999):
        entry = archive.put(raw[: int(share * len(raw))])
        if syntax == "deflated":  # not even the header can be inflated
            assert archive.fate(entry) == ("rejected", "truncated file")
        else:
            assert rejected(archive, entry) == "truncated file"


def frame_of(archive) -> bytes:
    return next(generate_frames(pydicom.dcmread(archive.root / "a").PixelData, number_of_frames=1))


def put_frames(archive, *frames: bytes) -> Entry:
    even = [frame + b"\0" * (len(frame) % 2) for frame in frames]
    archive.change("a", PixelData=encapsulate(even))
    return archive.entry("a")


@pytest.mark.parametrize("syntax", ["rle", *GDCM_SYNTAXES])
def test_truncated_stream(archive, syntax):
    archive.write(to_unsigned(picture_of_hu())[0], syntax=syntax)
    frame = frame_of(archive)
    for length in (2, 20, 100, len(frame) // 2, len(frame) * 9 // 10, len(frame) - 100, len(frame) - 8):
        assert rejected(archive, put_frames(archive, frame[:length])) == "damaged stream", length


@pytest.mark.parametrize("syntax", ["jpeg lossless 57", "jpeg lossless 70", "jpeg-ls"])
def test_damaged_stream(archive, syntax):
    """60 bytes overwritten anywhere, none a marker. GDCM alone returns all of the lossless JPEG ones as pictures."""
    archive.write(to_unsigned(picture_of_hu())[0], syntax=syntax)
    frame = frame_of(archive)
    generator = np.random.default_rng(0)
    reasons = []
    for place in generator.integers(200, len(frame) - 100, 40):
        noise = generator.integers(0, 255, 60).astype(np.uint8).tobytes()
        entry = put_frames(archive, frame[:place] + noise + frame[place + len(noise) :])
        try:
            archive.picture(entry)
            reasons.append("")
        except Rejected as error:
            reasons.append(error.reason)
    assert set(reasons) <= {"damaged stream", ""}
    assert reasons.count("") <= (0 if syntax == "jpeg-ls" else 4)  # damage may take as many bits as what it replaced


def test_runs_that_are_too_long_are_not_cut(archive):
    archive.write(np.full((32, 32), 1024, np.uint16), syntax="rle")
    frame = frame_of(archive)
    offset = struct.unpack_from("<I", frame, 8)[0]  # of the second segment
    longer = frame[:offset] + b"\x81\x00" + frame[offset:]  # 128 zeros more
    assert rejected(archive, put_frames(archive, longer)) == "damaged stream"


@pytest.mark.parametrize("syntax", GDCM_SYNTAXES)
def test_stream_of_another_size_than_the_header(archive, syntax):
    """GDCM crops a JPEG-LS stream that is larger, and ends the process where it is smaller."""
    entry = archive.write(np.full((64, 64), 1024, np.uint16), syntax=syntax)
    for rows, columns in ((32, 64), (64, 32), (128, 64), (64, 128)):
        archive.change("a", Rows=rows, Columns=columns)
        assert rejected(archive, entry) == "damaged stream"


def test_stream_with_fewer_bits_than_signed_values_need(archive):
    archive.write(np.full((64, 64), -5, np.int16), syntax="jpeg lossless 70")
    frame = frame_of(archive)
    place = frame.index(b"\xff\xc3") + 4
    assert frame[place] == 16
    assert rejected(archive, put_frames(archive, frame[:place] + b"\x0c" + frame[place + 1 :])) == "unsupported bits"


def test_frames_and_fragments(archive):
    hu = picture_of_hu()
    entry = archive.write(to_unsigned(hu)[0], syntax="jpeg lossless 70")
    frame = frame_of(archive)
    assert rejected(archive, put_frames(archive, frame, frame)) == "surplus pixel data"
    archive.change("a", PixelData=encapsulate([frame], fragments_per_frame=5, has_bot=False))
    np.testing.assert_array_equal(archive.picture(entry).stored, hu + 1024)


def test_what_lies_behind_the_pixels_does_not_matter(archive):
    hu = picture_of_hu()
    archive.write(to_unsigned(hu)[0])
    entry = archive.put(archive.bytes_of("a") + b"\xfc\xff\xfc\xffOB\0\0\xff\xff\xff\x0fshort")
    np.testing.assert_array_equal(archive.picture(entry).stored, hu + 1024)


@pytest.mark.parametrize(
    ("error", "raised"), [(OSError(5, "Input/output error"), Rejected), (MemoryError(), MemoryError)]
)
def test_errors_are_a_files_own_or_end_the_pass(archive, monkeypatch, error, raised):
    entry = archive.write()
    row, raw = archive.header(entry), archive.bytes_of("a")
    monkeypatch.setattr(pixels, "open_entry", lambda root, entry: Failing(raw, error))
    with pytest.raises(raised):
        read_picture(archive.root, entry, row)
    monkeypatch.undo()
    (archive.root / "a").unlink()  # between the passes: the archive is not what was listed
    with pytest.raises(FileNotFoundError):
        read_picture(archive.root, entry, row)


def test_damaged_zip_member(archive):
    archive.write(to_unsigned(picture_of_hu())[0], name="b")
    entry = archive.zip(archive.bytes_of("b"))
    row = archive.header(entry)
    damaged = bytearray(archive.bytes_of("a.zip"))
    damaged[5000:5100] = bytes(100)
    archive.put(bytes(damaged), "a.zip")
    with pytest.raises(Rejected, match="damaged zip"):
        read_picture(archive.root, entry, row)


# Fingerprints.


def test_fingerprint_by_hand(archive):
    hu = np.pad(picture_of_hu(), ((0, 0), (10, 0)))
    hu[1, :2] = -2000, 5000
    picture = archive.picture(archive.write((hu + 3024).astype(np.uint16), RescaleIntercept=-3024))
    by_hand = (
        b"256 x 266:" + hu.clip(-1024, 3071).astype("<i2").tobytes()
    )  # all columns, also those that the crop drops
    assert picture.fingerprint == hashlib.blake2b(by_hand, digest_size=16).hexdigest()


def test_fingerprint_is_of_the_hu_not_of_the_file(archive):
    hu = picture_of_hu()
    codings = (to_unsigned, to_signed, to_unsigned_12, to_signed_12, to_scaled)
    prints = set()
    for coding in codings:
        stored, tags = coding(hu.copy())
        prints.add(archive.picture(archive.write(stored, syntax="jpeg lossless 70", **tags)).fingerprint)
    assert len(prints) == 1
    hu[100, 100] += 1
    assert archive.picture(archive.write(to_unsigned(hu)[0])).fingerprint not in prints


def test_nearly_constant_pictures_are_flagged(archive):
    generator = np.random.default_rng(0)
    for spread, constant in ((0, True), (9, True), (11, False)):
        stored = (24 + np.rint(generator.normal(0, spread, (256, 256)))).clip(0).astype(np.uint16)
        assert archive.picture(archive.write(stored)).flags == (
            ("nearly constant", "no tissue") if constant else ("no tissue",)
        )


# pydicom's own files, against other readers.


def stored_by_gdcm(path: Path) -> np.ndarray:
    """By GDCM's own reader, which shares no code with pydicom's; the sign bit is left to its caller."""
    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    image = reader.GetImage()
    values = np.frombuffer(image.GetBuffer().encode("utf-8", "surrogateescape"), "<u2").astype(np.int64)
    bits = image.GetPixelFormat().GetBitsStored()
    values &= (1 << bits) - 1
    if image.GetPixelFormat().GetPixelRepresentation():
        values -= (values >> bits - 1) << bits
    values = values.reshape(image.GetDimension(1), image.GetDimension(0))
    return (values * image.GetSlope() + image.GetIntercept()).clip(-1024, 3071)


@pytest.mark.parametrize(
    ("name", "flags"),
    [
        ("CT_small.dcm", ("upsampled",)),
        ("J2K_pixelrep_mismatch.dcm", ()),
        ("693_J2KI.dcm", ("below air", "derived", "lossy")),  # padding that is not the same everywhere
        ("dicomdirtests/77654033/CT2/17106", ("odd spacing", "upsampled")),  # 16 x 16: cut down
        ("dicomdirtests/98892001/CT5N/2062", ("odd spacing", "upsampled")),  # 16 x 16: cut down
    ],
)
def test_files_of_pydicom(archive, name, flags):
    path = PYDICOM_FILES / name
    archive.root = PYDICOM_FILES
    picture = archive.picture(Entry("cspine", name, "", path.stat().st_size))
    hu = stored_by_gdcm(path)
    assert picture.flags == flags
    assert picture.stored.mean() == pytest.approx(hu.mean() + 1024, abs=1)
    by_hand = f"{hu.shape[0]} x {hu.shape[1]}:".encode() + hu.astype("<i2").tobytes()
    assert picture.fingerprint == hashlib.blake2b(by_hand, digest_size=16).hexdigest()
