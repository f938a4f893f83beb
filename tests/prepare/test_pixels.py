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
from prepare.conftest import Failing
from pydicom.encaps import encapsulate, generate_frames

GDCM_SYNTAXES = ["jpeg lossless 57", "jpeg lossless 70", "jpeg-ls", "jpeg 2000"]
SYNTAXES = ["implicit", "explicit", "big endian", "rle", *GDCM_SYNTAXES]
PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
BITS_12 = {"BitsStored": 12, "HighBit": 11}


def picture_of_hu() -> np.ndarray:
    """HU [256, 256], at which size the stored picture is HU + 1024: smooth, noisy, with every bound of the codings."""
    y, x = np.mgrid[:256, :256]
    hu = np.rint(400 * np.sin(x / 19) * np.cos(y / 13) + np.random.default_rng(0).normal(0, 15, (256, 256)))
    hu[0, :8] = -1024, -1001, -1000, -100, 0, 1, 2046, 2047
    return hu


def to_padded(hu):
    y, x = np.mgrid[:256, :256]
    hu[(x - 128) ** 2 + (y - 128) ** 2 > 170**2] = -3024
    return (hu + 1024).astype(np.int16)  # -2000 outside the circle


CODINGS = {  # what is stored of HU, and its tags
    "unsigned": (lambda hu: (hu + 1024).astype(np.uint16), {}),
    "signed": (lambda hu: hu.astype(np.int16), {"RescaleIntercept": 0}),
    "padded": (to_padded, {}),
    "unsigned 12": (lambda hu: (hu + 1024).astype(np.uint16), BITS_12),
    "signed 12": (lambda hu: hu.clip(-2048, 2047).astype(np.int16), {"RescaleIntercept": 0, **BITS_12}),
    "scaled": (lambda hu: (hu + 1024).astype(np.uint16) * 8, {"RescaleSlope": 0.125}),
}


def reason(archive, entry) -> str:
    """Why the picture is rejected; "" where it is not."""
    try:
        archive.picture(entry)
        return ""
    except Rejected as error:
        rejected = error
    assert rejected.reason in REJECTED
    assert str(rejected) == rejected.reason
    # The message of the decoder stays where it arose.
    assert rejected.__suppress_context__ or rejected.__context__ is None
    return rejected.reason


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_every_coding_in_every_syntax(archive, syntax):
    prints = {}
    for name, (coding, tags) in CODINGS.items():
        hu = picture_of_hu()
        picture = archive.picture(archive.write(coding(hu), syntax=syntax, **tags))
        np.testing.assert_array_equal(picture.stored, hu.clip(-1024, 3071) + 1024, err_msg=name)
        assert picture.stored.dtype == np.uint16
        assert set(picture.flags) <= {UNSPECIFIED}  # GDCM, which compresses here, writes RescaleType US
        assert picture.ambiguous_pixels == 0
        prints[name] = picture.fingerprint
    assert prints.pop("padded") != prints["signed"]
    assert len(set(prints.values())) == 1  # of the HU, not of the file


def test_fingerprint_by_hand(archive):
    hu = np.pad(picture_of_hu(), ((0, 0), (10, 0)))
    hu[1, :2] = -2000, 5000
    picture = archive.picture(archive.write((hu + 3024).astype(np.uint16), RescaleIntercept=-3024))
    clipped = hu.clip(-1024, 3071).astype("<i2").tobytes()  # all columns, also those that the crop drops
    assert picture.fingerprint == hashlib.blake2b(b"256 x 266:" + clipped, digest_size=16).hexdigest()


def test_bits_above_those_stored(archive):
    stored = np.full((256, 256), 1024, np.uint16)
    stored[0, :4] = 0, 4095, 4096, 65535
    np.testing.assert_array_equal(archive.picture(archive.write(stored)).stored[0, :5], [0, 4095, 4095, 4095, 1024])
    hu = picture_of_hu()
    zeros = archive.write(hu.astype(np.int16) & 0x0FFF, RescaleIntercept=0, **BITS_12)  # -1 as 0x0FFF
    np.testing.assert_array_equal(archive.picture(zeros).stored, hu + 1024)
    for values in (np.array([0, 4096], np.uint16), np.array([-1, 2048], np.int16)):
        entry = archive.write(np.resize(values, (32, 32)), source="cspine", **BITS_12)
        assert reason(archive, entry) == "values outside the bits stored"


# Wrapped: signed HU kept modulo 4096 in 12 unsigned bits, under an intercept of 0 or 1 (0028,1052).


@pytest.mark.parametrize("intercept", [0, 1, -99])
def test_wrapped_group_of_ich(archive, intercept):
    stored = np.zeros((256, 256), np.uint16)
    stored[0, :5] = 3072, 3095, 3096, 0, 2047
    stored[1, :2] = 2048, 4095
    stored[2] = 3096
    picture = archive.picture(archive.write(stored, RescaleIntercept=intercept, **BITS_12))
    np.testing.assert_array_equal(picture.stored[0, :5], np.array([-1024, -1001, -1000, 0, 2047]) + 1024)
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
    picture = archive.picture(archive.write(np.full((256, 256), 3000, np.uint16), source=source, **tags))
    assert picture.stored[0, 0] == min(3000 + tags["RescaleIntercept"] + 1024, 4095)
    assert "wrapped 12 bit" not in picture.flags
    assert picture.ambiguous_pixels == 0


# Scale and padding


def in_air(value: int, air: int, padding: int | None = None, dtype=np.uint16) -> np.ndarray:
    """A square of tissue in the middle of air, below 40 rows of `padding`."""
    stored = np.full((256, 256), air, dtype)
    stored[64:-64, 64:-64] = value
    if padding is not None:
        stored[:40] = padding
    return stored


SIGNED = in_air(40, -1000, dtype=np.int16)
UNSIGNED = in_air(1064, 24)


@pytest.mark.parametrize(
    ("flags", "tags", "stored"),
    [
        ({"no slope"}, {"RescaleSlope": None}, UNSIGNED),
        ({"monochrome1"}, {"PhotometricInterpretation": "MONOCHROME1"}, UNSIGNED),
        ({"no intercept"}, {"RescaleIntercept": None}, SIGNED),
        ({"no intercept", "no slope"}, {"RescaleSlope": None, "RescaleIntercept": None}, SIGNED),
        ({UNSPECIFIED}, {"RescaleType": "US", "RescaleIntercept": 0}, SIGNED),
        # Padding is air, however its tag was written: -2000 and -500 without their signs, outside the bits stored.
        ({"padding"}, {"PixelPaddingValue": 63536}, in_air(1064, 24, 63536)),
        ({"padding"}, {"PixelPaddingValue": 4095, **BITS_12}, in_air(1064, 24, 4095)),
        ({"padding"}, {"PixelPaddingValue": 63536, **BITS_12}, in_air(1064, 24, 63536)),
        ({"padding"}, {"PixelPaddingValue": 3000, "PixelPaddingRangeLimit": 4095}, in_air(1064, 24, 3800)),
        ({"padding"}, {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 3000}, in_air(1064, 24, 3800)),
        *(
            ({"padding"}, {"RescaleIntercept": 0, "PixelPaddingValue": value, **BITS_12}, stored)
            for value in (-500, 65036, 3596)
            for stored in (in_air(40, -1000, -500, np.int16), in_air(40, -1000, -500, np.int16) & 0x0FFF)
        ),
    ],
)  # fmt: skip
def test_flags_of_tags(archive, flags, tags, stored):
    picture = archive.picture(archive.write(stored, source="cspine", **tags))
    assert set(picture.flags) == flags
    assert picture.stored[0, 0] == (0 if flags == {"padding"} else 24)
    assert [picture.stored[60, 0], picture.stored[128, 128]] == [24, 1064]
    assert picture.stored.max() <= 1070  # nothing bleeds into the body


def test_padding_that_tissue_has_too_is_left_where_it_is_scattered(archive):
    noise = np.random.default_rng(0).integers(-10, 10, (256, 256)).astype(np.int16)
    stored = in_air(0, -1000, dtype=np.int16) + noise  # water
    picture = archive.picture(archive.write(stored, RescaleIntercept=0, PixelPaddingValue=0))
    assert picture.flags == ("scattered padding",)
    np.testing.assert_array_equal(picture.stored, stored + 1024)


UNSURE = {"RescaleIntercept": None}
BEYOND = "values beyond any tissue"
INTERCEPT_0 = {"RescaleIntercept": 0}


@pytest.mark.parametrize(
    ("fault", "stored", "tags"),
    [
        # Where the header does not say, the values must look like HU, and padding is not to be told.
        *(("not in HU", UNSIGNED, tags) for tags in (UNSURE, {"RescaleType": "US", **INTERCEPT_0})),
        ("not in HU", in_air(1064, 24, -2000, np.int16), UNSURE),
        ("not in HU", in_air(1064, 24, -2000, np.int16), UNSURE | {"PixelPaddingValue": -2000}),
        ("not in HU", UNSIGNED, UNSURE | {"PixelPaddingValue": 24}),
        (BEYOND, in_air(64, 64536), INTERCEPT_0),  # -1000 HU without their sign
        (BEYOND, in_air(1064, 63536), {}),  # padding of -2000 that no tag names
        (BEYOND, in_air(1064, 4095), BITS_12),
        (BEYOND, in_air(64, 3096), INTERCEPT_0 | BITS_12),  # wrapped at 12 bits
        (BEYOND, in_air(64, (1 << 14) - 1000), INTERCEPT_0 | {"BitsStored": 14, "HighBit": 13}),
        (BEYOND, in_air(1064 >> 8 | (1064 & 255) << 8, 24 << 8), {}),  # bytes swapped
        *(
            (fault, np.ones((512, 512), np.uint16), {"PixelData": bytes(length)})
            for fault, length in (
                ("short pixel data", 0),
                ("short pixel data", 153_710),  # as ID_6431af929.dcm of RSNA ICH
                ("short pixel data", 524_286),
                ("surplus pixel data", 524_290),
            )
        ),
    ],
)
def test_values_that_cannot_be_hu_are_rejected(archive, fault, stored, tags):
    assert reason(archive, archive.write(stored, source="cspine", **tags)) == fault


@pytest.mark.parametrize(("share", "flags"), [(0.002, ()), (0.01, ("dense",)), (0.04, None)])
def test_metal_is_stored_up_to_a_few_per_cent(archive, share, flags):
    stored = in_air(1064, 24)
    side = round(256 * share**0.5)
    stored[100 : 100 + side, 100 : 100 + side] = 6000
    entry = archive.write(stored)
    if flags is None:
        assert reason(archive, entry) == BEYOND
    else:
        assert archive.picture(entry).flags == flags


@pytest.mark.parametrize(
    ("stored", "tags", "flag"),
    [
        (UNSIGNED, INTERCEPT_0, "no air"),  # all of it 1024 HU too high
        (in_air(1064, 3096), {}, "dense"),  # wrapped, and moved: air is 2072 HU
        (SIGNED, {}, "below air"),  # rescaled twice
        (in_air(40, 2000), {}, "dense"),  # inverted: air is 976 HU
        (UNSIGNED, {"RescaleSlope": 0.1}, "no tissue"),
    ],
)
def test_a_scale_that_is_off_is_flagged(archive, stored, tags, flag):
    noisy = stored + np.random.default_rng(0).integers(-20, 20, stored.shape).astype(stored.dtype)
    assert flag in archive.picture(archive.write(noisy, source="cspine", **tags)).flags


@pytest.mark.parametrize(
    ("shape", "flags"),
    [((256, 300), {"cropped"}), ((512, 512), set()), ((300, 128), {"cropped", "upsampled"})],
)
def test_flags_of_sizes(archive, shape, flags):
    stored = np.full(shape, 1024, np.uint16)
    short = min(shape)
    top, left = (shape[0] - short) // 2, (shape[1] - short) // 2
    stored[top : top + short, left : left + short] = 2024  # the centre, which the crop keeps
    picture = archive.picture(archive.write(stored))
    assert (set(picture.flags) & {"cropped", "upsampled"}, picture.stored.shape) == (flags, (256, 256))
    assert (picture.stored == 2024).all()


def test_nearly_constant_pictures_are_flagged(archive):
    generator = np.random.default_rng(0)
    for spread, constant in ((0, True), (9, True), (11, False)):
        stored = (24 + np.rint(generator.normal(0, spread, (256, 256)))).clip(0).astype(np.uint16)
        assert ("nearly constant" in archive.picture(archive.write(stored)).flags) == constant


# Damage


@pytest.mark.parametrize("syntax", SYNTAXES)
def test_truncated_file(archive, syntax):
    archive.write(CODINGS["unsigned"][0](picture_of_hu()), syntax=syntax)
    raw = archive.bytes_of("a")
    for share in (0.5, 0.999):
        assert reason(archive, archive.put(raw[: int(share * len(raw))])) == "truncated file"


def write_stream(archive, stored, syntax) -> bytes:
    archive.write(stored, syntax=syntax)
    return next(generate_frames(pydicom.dcmread(archive.root / "a").PixelData, number_of_frames=1))


def put_frames(archive, *frames: bytes) -> Entry:
    archive.change("a", PixelData=encapsulate([frame + b"\0" * (len(frame) % 2) for frame in frames]))
    return archive.entry("a")


@pytest.mark.parametrize("syntax", ["rle", *GDCM_SYNTAXES])
def test_damaged_stream(archive, syntax):
    """Cut anywhere, or 60 bytes overwritten, none a marker. GDCM alone returns all of the lossless JPEG ones."""
    frame = write_stream(archive, CODINGS["unsigned"][0](picture_of_hu()), syntax)
    for length in (2, 20, 100, len(frame) // 2, len(frame) * 9 // 10, len(frame) - 100, len(frame) - 8):
        assert reason(archive, put_frames(archive, frame[:length])) == "damaged stream", length
    if syntax in ("rle", "jpeg 2000"):
        return
    generator = np.random.default_rng(0)
    reasons = []
    for place in generator.integers(200, len(frame) - 100, 40):
        noise = generator.integers(0, 255, 60).astype(np.uint8).tobytes()
        reasons.append(reason(archive, put_frames(archive, frame[:place] + noise + frame[place + 60 :])))
    assert set(reasons) <= {"damaged stream", ""}
    assert reasons.count("") <= (0 if syntax == "jpeg-ls" else 4)  # damage may take as many bits as what it replaced


def test_runs_that_are_too_long_are_not_cut(archive):
    frame = write_stream(archive, np.full((32, 32), 1024, np.uint16), "rle")
    offset = struct.unpack_from("<I", frame, 8)[0]  # of the second segment
    longer = frame[:offset] + b"\x81\x00" + frame[offset:]  # 128 zeros more
    assert reason(archive, put_frames(archive, longer)) == "damaged stream"


@pytest.mark.parametrize("syntax", GDCM_SYNTAXES)
def test_stream_of_another_size_than_the_header(archive, syntax):
    """GDCM crops a JPEG-LS stream that is larger, and ends the process where it is smaller."""
    entry = archive.write(np.full((64, 64), 1024, np.uint16), syntax=syntax)
    for rows, columns in ((32, 64), (64, 32), (128, 64), (64, 128)):
        archive.change("a", Rows=rows, Columns=columns)
        assert reason(archive, entry) == "damaged stream"


def test_stream_with_fewer_bits_than_signed_values_need(archive):
    frame = write_stream(archive, np.full((64, 64), -5, np.int16), "jpeg lossless 70")
    place = frame.index(b"\xff\xc3") + 4
    assert frame[place] == 16
    coarse = put_frames(archive, frame[:place] + b"\x0c" + frame[place + 1 :])
    assert reason(archive, coarse) == "unsupported bits"


def test_frames_fragments_and_what_lies_behind_the_pixels(archive):
    hu = picture_of_hu()
    stored = CODINGS["unsigned"][0](hu)
    frame = write_stream(archive, stored, "jpeg lossless 70")
    assert reason(archive, put_frames(archive, frame, frame)) == "surplus pixel data"
    archive.change("a", PixelData=encapsulate([frame], fragments_per_frame=5, has_bot=False))
    np.testing.assert_array_equal(archive.picture(archive.entry("a")).stored, hu + 1024)
    archive.write(stored)
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
    archive.write(CODINGS["unsigned"][0](picture_of_hu()), name="b")
    entry = archive.zip(archive.bytes_of("b"))
    row = archive.header(entry)
    damaged = bytearray(archive.bytes_of("a.zip"))
    damaged[5000:5100] = bytes(100)
    archive.put(bytes(damaged), "a.zip")
    with pytest.raises(Rejected, match="damaged zip"):
        read_picture(archive.root, entry, row)


# pydicom's own files, against another reader


def hu_by_gdcm(path: Path) -> np.ndarray:
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
    ],
)
def test_files_of_pydicom(archive, name, flags):
    archive.root = PYDICOM_FILES
    picture = archive.picture(archive.entry(name, "cspine"))
    hu = hu_by_gdcm(PYDICOM_FILES / name)
    assert picture.flags == flags
    assert picture.stored.mean() == pytest.approx(hu.mean() + 1024, abs=1)
    by_hand = f"{hu.shape[0]} x {hu.shape[1]}:".encode() + hu.astype("<i2").tobytes()
    assert picture.fingerprint == hashlib.blake2b(by_hand, digest_size=16).hexdigest()
