"""The header pass: each kind of file gets its fate, by hand; nothing makes it raise; nothing plain is copied."""

import errno
import hashlib
import io
import math
import struct
import zipfile
import zlib
from pathlib import Path

import dicom_hu
import numpy as np
import pyarrow as pa
import pydicom.data
import pytest
from archive import header
from archive.header import COLUMNS, SCHEMA, pseudonym
from archive.listing import Entry
from prepare.broken import Failing
from pydicom.dataset import Dataset

IMAGE = ("image", "")
PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"


def test_row_by_hand(archive):
    row = archive.header(archive.write(np.zeros((40, 48), np.int16), BitsStored=12, HighBit=11))
    assert tuple(row) == COLUMNS
    assert row["size"] == (archive.root / "a").stat().st_size
    names = {"patient": "ID_0123abcd", "study": "1.2.3.4", "series": "1.2.3.4.5", "sop": "1.2.3"}
    for kind, name in names.items():
        assert row.pop(kind) == "ich-" + hashlib.sha256(f"ich:{kind}:{name}".encode()).hexdigest()[:16]
    assert row == {
        **{"source": "ich", "path": "a", "member": "", "size": row["size"], "modality": "CT"},
        **{"transfer_syntax": "1.2.840.10008.1.2.1", "rows": 40, "cols": 48, "bits_allocated": 16, "bits_stored": 12},
        **{"pixel_representation": 1, "photometric": "MONOCHROME2", "slope": 1.0, "intercept": -1024.0},
        **{"position": [-125.0, -131.5, 60.25], "orientation": [1.0, 0.0, 0.0, 0.0, 0.985, -0.17]},
        **{"spacing_xy_mm": 0.488, "status": "image", "reason": "", "flags": ""},
        **{"study_uid": "1.2.3.4", "series_uid": "1.2.3.4.5", "sop_uid": "1.2.3"},
    }


def test_no_text_of_the_file_is_copied(archive, recwarn, caplog, capfd):
    archive.write()
    secret = "SMITH^JOHN"
    dataset = pydicom.dcmread(archive.root / "a")
    dataset.PatientName = dataset.StudyDescription = dataset.InstitutionName = secret
    for tag in ("Modality", "PhotometricInterpretation", "PatientID", "StudyInstanceUID", "SOPInstanceUID"):
        setattr(dataset, tag, secret)
    dataset.ImageType = ["ORIGINAL", secret]
    dataset.save_as(archive.root / "a")
    raw = archive.bytes_of("a").replace(b"1.2.840.10008.1.2.1", b"SMITH^JOHN SMITH^JO")
    entry = archive.put(raw)
    recwarn.clear()
    caplog.clear()
    row = archive.header(entry)
    assert "SMITH" not in repr(row)
    assert row["transfer_syntax"] is None
    assert (row["status"], row["reason"]) == ("other", "another modality")
    assert not recwarn.list
    assert not caplog.records
    assert not any(capfd.readouterr())


@pytest.mark.parametrize(
    ("tags", "fate"),
    [
        ({}, IMAGE),
        ({"RescaleSlope": None, "RescaleIntercept": None}, IMAGE),
        ({"PixelSpacing": None, "ImagePositionPatient": None, "ImageOrientationPatient": None}, IMAGE),
        ({"HighBit": None, "SOPInstanceUID": None, "SeriesInstanceUID": None}, IMAGE),
        ({"Modality": "RTSTRUCT", "PixelData": None, "Rows": None}, ("other", "RTSTRUCT")),
        ({"Modality": "ct"}, IMAGE),
        ({"Modality": None}, ("rejected", "no modality")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"}, ("other", "secondary capture")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, IMAGE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2", "NumberOfFrames": 9}, ("rejected", "multi-frame")),
        ({"SOPClassUID": "1.2.840.113619.4.30"}, ("other", "another kind of object")),  # GE, private
        ({"PatientID": None}, ("rejected", "no patient")),
        ({"NumberOfFrames": 2}, ("rejected", "multi-frame")),
        ({"SharedFunctionalGroupsSequence": [Dataset()]}, ("rejected", "multi-frame")),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, ("rejected", "colour")),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, ("rejected", "colour")),
        ({"PixelData": None}, ("rejected", "no pixel data")),
        ({"SamplesPerPixel": None}, ("rejected", "incomplete image header")),
        ({"Rows": 0}, ("rejected", "implausible size")),
        ({"Columns": 65535}, ("rejected", "implausible size")),
        ({"BitsAllocated": 8}, ("rejected", "unsupported bits")),
        ({"BitsStored": 8, "HighBit": 7}, ("rejected", "unsupported bits")),
        ({"BitsStored": 12, "HighBit": 15}, ("rejected", "unsupported bits")),
        ({"PixelRepresentation": 2}, ("rejected", "unsupported bits")),
        ({"PixelData": None, "FloatPixelData": bytes(4)}, ("rejected", "unsupported bits")),
        ({"RescaleSlope": 0}, ("rejected", "implausible slope or intercept")),
        ({"RescaleSlope": [1, 2]}, ("rejected", "implausible slope or intercept")),
        ({"RescaleIntercept": "1e30"}, ("rejected", "implausible slope or intercept")),
        ({"RescaleSlope": None, "ModalityLUTSequence": [Dataset()]}, ("rejected", "modality LUT")),
        ({"RescaleType": "HU"}, IMAGE),
        ({"RescaleType": "US"}, IMAGE),  # unspecified: the pixel pass looks whether it may be HU
        ({"RescaleType": "MGML"}, ("rejected", "not in HU")),
    ],
)
def test_fate_by_tags(archive, tags, fate):
    assert archive.fate(archive.write(**tags)) == fate


@pytest.mark.parametrize(
    ("tags", "flags"),
    [
        ({"PixelSpacing": [0.5, 0.502]}, ""),
        ({"PixelSpacing": [0.5, 0.6]}, "anisotropic"),
        ({"PixelSpacing": [100, 100]}, "odd spacing"),  # 3.2 m
        ({"PixelSpacing": [0.5, 0]}, "odd spacing"),
        ({"LossyImageCompression": "01"}, "lossy"),
        ({"LossyImageCompression": "00"}, ""),
        ({"BitsStored": 12, "HighBit": 11}, ""),
        ({"BitsStored": 11, "HighBit": 10}, "few bits"),
        ({"ImageOrientationPatient": None, "PixelSpacing": [9000, 1]}, "no orientation,odd spacing"),
    ],
)
def test_flags_by_tags(archive, tags, flags):
    assert archive.header(archive.write(**tags))["flags"] == flags


@pytest.mark.parametrize(
    ("image_type", "fate", "flags"),
    [
        ("ORIGINAL PRIMARY AXIAL", IMAGE, ""),
        ("ORIGINAL PRIMARY AXIAL,CT_SOM5 SPI", IMAGE, ""),
        ("ORIGINAL PRIMARY LOCALIZER", ("other", "localizer"), None),
        ("DERIVED PRIMARY AXIAL", IMAGE, "derived"),
        ("ORIGINAL SECONDARY AXIAL", IMAGE, "derived"),
        ("DERIVED SECONDARY OTHER,CSA MPR,THICK", ("other", "derived picture"), None),
        ("DERIVED SECONDARY REFORMATTED,AVERAGE", ("other", "derived picture"), None),
        ("DERIVED SECONDARY AXIAL,CT_SOM7 MIP", ("other", "derived picture"), None),
        ("DERIVED PRIMARY PERFUSION,RGB,CBF", ("other", "derived picture"), None),
    ],
)
def test_fate_by_image_type(archive, image_type, fate, flags):
    values, *further = image_type.split(",")  # what stands behind a comma is one value
    row = archive.header(archive.write(ImageType=[*values.split(), *further]))
    assert (row["status"], row["reason"]) == fate
    assert flags is None or row["flags"] == flags


def tilted(degrees: float) -> list[float]:
    """The orientation of a gantry that is tilted."""
    return [1, 0, 0, 0, round(math.cos(math.radians(degrees)), 6), round(-math.sin(math.radians(degrees)), 6)]


@pytest.mark.parametrize(
    ("orientation", "fate", "flags"),
    [
        ([1, 0, 0, 0, 1, 0], IMAGE, ""),
        (tilted(29), IMAGE, ""),
        (tilted(40), IMAGE, "oblique"),
        (tilted(50), ("other", "not axial"), None),
        ([1, 0, 0, 0, 0, -1], ("other", "not axial"), None),  # coronal
        ([-1, 0, 0, 0, -1, 0], IMAGE, "turned"),  # prone
        ([0, 1, 0, -1, 0, 0], IMAGE, "turned"),
        (None, IMAGE, "no orientation"),
        ([0, 0, 0, 0, 0, 0], IMAGE, "no orientation"),
        ([1, 0, 0, 1, 0, 0], IMAGE, "no orientation"),
    ],
)
def test_fate_by_orientation(archive, orientation, fate, flags):
    row = archive.header(archive.write(ImageOrientationPatient=orientation))
    assert (row["status"], row["reason"]) == fate
    assert flags is None or row["flags"] == flags
    if flags == "no orientation":
        assert row["orientation"] is None


@pytest.mark.parametrize("value", ["nan", "inf", "one"])
def test_slope_that_is_no_number(archive, value):
    entry = archive.write(RescaleSlope="1.25000")
    raw = archive.bytes_of("a")
    assert raw.count(b"1.25000 ") == 1
    archive.put(raw.replace(b"1.25000 ", value.encode().ljust(8)))
    assert archive.fate(entry) == ("rejected", "implausible slope or intercept")


@pytest.mark.parametrize(
    ("source", "patient", "fate"),
    [
        ("ich", "ID_0123abcd", IMAGE),
        ("ich", "RADCURE-0005", ("rejected", "patient of another collection")),
        ("ich", "ID_0123abcd_epidural", ("rejected", "patient of another collection")),
        ("radcure", "RADCURE-0005", IMAGE),
        ("radcure", "RADCURE-00056", ("rejected", "patient of another collection")),
        ("cspine", "anything", IMAGE),
        ("cspine", "RADCURE-0005", ("rejected", "patient of another collection")),
        ("cspine", "ID_0123abcd", ("rejected", "patient of another collection")),
    ],
)
def test_patients_by_collection(archive, source, patient, fate):
    row = archive.header(archive.write(source=source, PatientID=patient))
    assert (row["status"], row["reason"]) == fate
    assert row["patient"] == pseudonym(source, "patient", patient)


def test_cspine_without_patient_id_goes_by_study(archive):
    row = archive.header(archive.write(source="cspine", PatientID=None))
    assert row["status"] == "image"
    assert row["patient"] == pseudonym("cspine", "patient", "1.2.3.4")
    row = archive.header(archive.write(source="cspine", PatientID=None, StudyInstanceUID=None))
    assert (row["status"], row["reason"], row["patient"]) == ("rejected", "no patient", None)


def side(kind: str) -> tuple[str, str]:
    return "other", f"side file: {kind}"


NO_DICOM = ("rejected", "not DICOM")


@pytest.mark.parametrize(
    ("name", "content", "fate"),
    [
        ("1.dcm", b"", ("rejected", "empty file")),
        ("empty.csv", b"", side("table")),
        ("1.dcm", b"a,b\n1,2\n" * 100, NO_DICOM),
        ("1", b"\x08\x00" + bytes(range(256)) * 4, NO_DICOM),
        ("a.exe", b"MZ" + bytes(2000), side("program")),
        ("train.CSV", b"a,b\n1,2\n" * 100, side("table")),
        ("1.2.3.nii", struct.pack("<i", 348) + bytes(100_000), side("volume")),
        ("1.nii.gz", b"\x1f\x8b" + bytes(1000), side("volume")),
        ("RADCURE-0001.tar", bytes(1024), side("archive")),
        ("RADCURE-0001", b"Rar!\x1a\x07" + bytes(1000), side("archive")),
        ("RADCURE-0001", b"PK\x03\x04" + bytes(1000), ("rejected", "zip under another name")),
        ("LICENSE", b"Some words." * 20, side("text")),
        ("NOTLICENSE", b"Some words." * 20, NO_DICOM),
        ("clinical.xlsx", b"PK\x03\x04" + bytes(300), side("table")),
        ("short.txt", b"x", side("text")),
        ("._1-001.dcm", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072), side("system")),
        (".DS_Store", b"\x00\x00\x00\x01Bud1" + bytes(6000), side("system")),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(600), side("system")),
        ("scan.PNG", b"\x89PNG\r\n\x1a\n" + bytes(300), side("picture")),
        ("scan", b"\xff\xd8\xff\xe0" + bytes(300), side("picture")),
        ("paper.pdf", b"%PDF-1.7" + bytes(300), side("document")),
        ("1.md5", b"0" * 32, side("checksums")),
    ],
)
def test_files_that_are_no_dicom_go_by_name_and_first_bytes(archive, name, content, fate):
    assert archive.fate(archive.put(content, name)) == fate


def test_dicom_goes_by_header_whatever_its_name(archive):
    for name in ("1-001.dcm", "1.dcm", "noextension", "image.txt", "image.csv", "LICENSE", "1.2.840"):
        assert archive.fate(archive.write(name=name)) == IMAGE
    assert archive.fate(archive.write(name="1-002.dcm", Modality="RTSTRUCT")) == ("other", "RTSTRUCT")


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big endian"])
def test_without_preamble(archive, syntax):
    archive.write(syntax=syntax)
    dataset = pydicom.dcmread(archive.root / "a")
    expected = dataset.file_meta.TransferSyntaxUID
    bare = io.BytesIO()
    dataset.save_as(bare, enforce_file_format=False)
    raw = bare.getvalue()[132:]
    assert archive.fate(archive.put(raw)) == IMAGE  # no preamble
    group_length = struct.unpack_from("<I", raw, 8)[0]
    row = archive.header(archive.put(raw[12 + group_length :]))  # nor any file meta group
    assert (row["status"], row["reason"], row["transfer_syntax"]) == (*IMAGE, expected)


@pytest.mark.parametrize(
    ("tags", "fate"),
    [
        ({}, IMAGE),
        ({"Modality": "RTSTRUCT", "PixelData": None, "Rows": None}, ("other", "RTSTRUCT")),
        ({"Columns": 0}, ("rejected", "not DICOM")),
        ({"PixelData": None}, ("rejected", "not DICOM")),
    ],
)
def test_without_preamble_only_what_makes_sense(archive, tags, fate):
    archive.write(**tags)
    assert archive.fate(archive.put(archive.bytes_of("a")[132:])) == fate


def test_compressed_without_its_syntax_is_refused(archive):
    archive.write(syntax="jpeg lossless 70")
    raw = archive.bytes_of("a")
    group_length = struct.unpack_from("<I", raw, 140)[0]
    fate = archive.fate(archive.put(raw[144 + group_length :]))
    assert fate == ("rejected", "pixel data and transfer syntax disagree")


@pytest.mark.parametrize(
    "syntax", ["1.2.840.10008.1.2.4.50", "1.2.840.10008.1.2.4.51", "1.2.840.10008.1.2.4.100", "9.9"]
)
def test_unsupported_transfer_syntax(archive, syntax):
    archive.write()
    explicit = b"1.2.840.10008.1.2.1\0"
    raw = archive.bytes_of("a")
    place = raw.index(explicit)
    written = syntax.encode() + b"\0" * (len(syntax) % 2)
    raw = raw[: place - 2] + struct.pack("<H", len(written)) + written + raw[place + len(explicit) :]
    assert archive.fate(archive.put(raw)) == ("rejected", "unsupported transfer syntax")


@pytest.mark.parametrize(
    ("error", "is_of_the_file"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOENT, "gone"), False),  # a share that is gone: else thousands of sound files were rejected
        (OSError(errno.ESTALE, "gone"), False),
        (OSError(errno.EMFILE, "too many"), False),
        (MemoryError(), False),
        (KeyboardInterrupt(), False),
    ],
)
def test_errors_are_a_files_own_or_end_the_pass(archive, monkeypatch, error, is_of_the_file):
    entry = archive.write()
    raw = archive.bytes_of("a")

    def refuse(root, entry):
        raise error

    for opened in (refuse, lambda root, entry: Failing(raw, error)):
        monkeypatch.setattr(header, "open_entry", opened)
        if is_of_the_file:
            assert archive.fate(entry) == ("rejected", "unreadable")
        else:
            with pytest.raises(type(error)):
                archive.fate(entry)


def test_zip_member(archive):
    plain = archive.header(archive.write(name="b"))
    row = archive.header(archive.zip(archive.bytes_of("b")))
    assert (row["path"], row["member"]) == ("a.zip", "x/1.dcm")
    assert {**row, "path": "b", "member": ""} == plain
    assert archive.fate(archive.zip(b"Some words.", member="x/LICENSE")) == side("text")
    assert archive.fate(archive.zip(b"Some words.", member="x/1.dcm")) == NO_DICOM
    for member in ("__MACOSX/x/1.dcm", "__MACOSX/a.zip", "x/._1.dcm", "x\\._1.dcm"):
        assert archive.fate(archive.zip(b"\x00\x05\x16\x07", member=member)) == side("system")
    for member, content in (("x/RADCURE-0001.zip", b"PK\x03\x04"), ("x/RADCURE-0001", b"PK\x03\x04"), ("y.zip", b"?")):
        assert archive.fate(archive.zip(content, member=member)) == ("rejected", "zip inside a zip")


def test_pixels_are_not_read(archive, monkeypatch):
    entry = archive.write(np.zeros((1024, 1024), np.uint16))
    opened = []

    def watch(root, entry):
        opened.append(io.BytesIO((root / entry.path).read_bytes()))
        opened[-1].close = lambda: None
        return opened[-1]

    monkeypatch.setattr(header, "open_entry", watch)
    assert archive.fate(entry) == IMAGE
    assert opened[0].tell() < 2000


class Modest(io.BytesIO):
    def read(self, size=-1):
        assert size < 1 << 26
        return super().read(size)


def test_absurd_length_is_not_asked_for(archive, monkeypatch):
    """An element that says 4 GB: reading it would take that much memory."""
    entry = archive.write()
    raw = archive.bytes_of("a")
    study = raw.index(b"\x20\x00\x0d\x00UI")
    raw = raw[:study] + b"\x20\x00\x0d\x00OB\0\0" + struct.pack("<I", 0xFFFFFF00) + raw[study + 8 :]
    monkeypatch.setattr(header, "open_entry", lambda root, entry: Modest(raw))
    assert archive.fate(entry) == ("rejected", "truncated file")


def long_file(archive, length: int, element: bytes) -> Entry:
    """A sound file with `element` of `length` zeros before its pixel data; the zeros take no room on the disk."""
    archive.write(name="sound")
    raw = archive.bytes_of("sound")
    pixels = raw.index(b"\xe0\x7f\x10\x00OW")
    with (archive.root / "a").open("wb") as file:
        file.write(raw[:pixels] + element + struct.pack("<I", length))
        file.seek(length, io.SEEK_CUR)
        file.write(raw[pixels:])
    return archive.entry("a")


OTHER_DOSE = ("other", "RTDOSE")
PRIVATE = b"\x29\x00\x10\x10OB\0\0"


def test_long_values_are_passed_over_and_files_without_end_refused(archive):
    assert archive.fate(archive.write(Modality="RTDOSE", BitsAllocated=32, PixelData=bytes(73 << 20))) == OTHER_DOSE
    assert archive.fate(long_file(archive, 100 << 20, PRIVATE)) == IMAGE
    assert archive.picture(archive.entry("a")).stored[0, 0] == 1024
    assert archive.fate(long_file(archive, 300 << 20, PRIVATE)) == ("rejected", "larger than any slice")


def test_header_without_end(archive):
    """A sequence of undefined length, whose items fill the memory before its end is known."""
    archive.write(name="sound")
    raw = archive.bytes_of("sound")
    pixels = raw.index(b"\xe0\x7f\x10\x00OW")
    item = b"\xfe\xff\x00\xe0" + struct.pack("<I", 12 + (9 << 20)) + PRIVATE + struct.pack("<I", 9 << 20)
    with (archive.root / "a").open("wb") as file:
        file.write(raw[:pixels] + b"\x29\x00\x10\x10SQ\0\0\xff\xff\xff\xff")
        for _ in range(20):
            file.write(item)
            file.seek(9 << 20, io.SEEK_CUR)
        file.write(b"\xfe\xff\xdd\xe0\0\0\0\0" + raw[pixels:])
    assert archive.fate(archive.entry("a")) == ("rejected", "header too long")


def test_what_swells_when_inflated(archive, monkeypatch):
    """Zeros of 3 GiB would deflate to 3 MB as well."""
    monkeypatch.setattr(dicom_hu, "LARGEST_INFLATED", 4 << 20)
    archive.write(syntax="deflated")
    raw = archive.bytes_of("a")
    start = 144 + struct.unpack_from("<I", raw, 140)[0]
    plain = zlib.decompress(raw[start:], -zlib.MAX_WBITS)
    for length, fate in ((3 << 20, IMAGE), (5 << 20, ("rejected", "inflates beyond the limit"))):
        deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        swollen = plain[:-2060] + PRIVATE + struct.pack("<I", length) + bytes(length) + plain[-2060:]
        entry = archive.put(raw[:start] + deflater.compress(swollen) + deflater.flush())
        assert entry.size < length / 100
        assert archive.fate(entry) == fate


def test_a_long_entry_of_a_zip_is_not_read_into_memory(archive, monkeypatch):
    entry = archive.write(NumberOfFrames=140)
    packed = archive.zip(archive.bytes_of("a") + bytes(70 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert archive.fate(packed) == ("rejected", "multi-frame") == archive.fate(entry)


def test_file_cut_anywhere_in_its_header(archive):
    """Never an image before the pixel data, never an exception; a cut within a value is called one."""
    archive.write(ReferencedImageSequence=[Dataset(), Dataset()])
    raw = archive.bytes_of("a")
    pixels, in_position = raw.index(b"\xe0\x7f\x10\x00OW"), raw.index(b"\\-131.5")
    fates = {
        length: archive.fate(archive.put(raw[:length])) for length in {131, in_position, *range(132, pixels + 12, 4)}
    }
    assert all(status != "image" for length, (status, _) in fates.items() if length < pixels + 8)
    assert fates[in_position] == ("rejected", "truncated file")
    assert fates[131] == ("rejected", "not DICOM")
    assert archive.fate(archive.put(raw[: pixels + 12])) == IMAGE  # the pixel pass finds that out


def test_damaged_headers_never_raise(archive):
    archive.write(ReferencedImageSequence=[Dataset()], ImageType=["ORIGINAL", "PRIMARY"])
    raw = archive.bytes_of("a")
    end = raw.index(b"\xe0\x7f\x10\x00OW") + 12
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(120):
        damaged = bytearray(raw)
        place, width = generator.integers(132, end), generator.integers(1, 9)
        damaged[place : place + width] = generator.bytes(width)
        rows.append(archive.header(archive.put(bytes(damaged))))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table.validate(full=True)
    assert len(set(table.column("reason").to_pylist())) > 5


# What each file is, from its own documentation (test_files/README.txt) or its name. The files have no patient pattern.
FATE_OF_PYDICOM_FILE = {
    "CT_small.dcm": IMAGE,
    "693_J2KI.dcm": IMAGE,
    "dicomdirtests/77654033/CT2/17106": IMAGE,
    "dicomdirtests/98892001/CT2N/6293": ("other", "localizer"),
    "dicomdirtests/98892003/MR1/15820": ("other", "MR"),
    "dicomdirtests/DICOMDIR": ("other", "DICOMDIR"),
    "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000": ("rejected", "no pixel data"),
    "MR_truncated.dcm": ("other", "MR"),
    "rtstruct.dcm": ("other", "RTSTRUCT"),  # without preamble
    "rtplan.dcm": ("other", "RTPLAN"),
    "rtdose.dcm": ("other", "RTDOSE"),
    "ExplVR_BigEndNoMeta.dcm": ("other", "RTPLAN"),
    "liver_1frame.dcm": ("other", "SEG"),
    "reportsi.dcm": ("other", "SR"),
    "SC_rgb_rle.dcm": ("other", "another modality"),
    "meta_missing_tsyntax.dcm": ("rejected", "no modality"),
    "README.txt": ("other", "side file: text"),
    "rtplan.dump": ("rejected", "not DICOM"),
    "zipMR.gz": ("other", "side file: archive"),
}


def test_files_of_pydicom(archive):
    """Every one of them gets a row; the fate of those that are known is that one."""
    archive.root = PYDICOM_FILES
    names = [path.relative_to(PYDICOM_FILES).as_posix() for path in PYDICOM_FILES.rglob("*") if path.is_file()]
    rows = {name: archive.header(archive.entry(name, "cspine")) for name in names}
    pa.Table.from_pylist(list(rows.values()), schema=SCHEMA).validate(full=True)
    assert {name: (rows[name]["status"], rows[name]["reason"]) for name in FATE_OF_PYDICOM_FILE} == FATE_OF_PYDICOM_FILE
