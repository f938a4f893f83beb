"""The header pass: each kind of file gets its fate, by hand; nothing makes it raise; nothing plain is copied."""

import errno
import hashlib
import io
import math
import struct
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom.data
import pytest
from archive import header
from archive.header import COLUMNS, SCHEMA, pseudonym
from archive.listing import Entry
from prepare.conftest import Failing
from pydicom.dataset import Dataset

IMAGE, NO_DICOM = "image", "rejected: not DICOM"
PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"
PIXEL_DATA = b"\xe0\x7f\x10\x00OW"


def test_row_by_hand(archive):
    row = archive.header(archive.write(np.zeros((40, 48), np.int16), BitsStored=12, HighBit=11))
    assert tuple(row) == COLUMNS
    assert row["size"] == (archive.root / "a").stat().st_size
    names = {"patient": "ID_0123abcd", "study": "1.2.3", "series": "1.2.3.4", "sop": "1.2.3.4.5"}
    for kind, name in names.items():
        assert row.pop(kind) == "ich-" + hashlib.sha256(f"ich:{kind}:{name}".encode()).hexdigest()[:16]
    assert row == {
        **{"source": "ich", "path": "a", "member": "", "size": row["size"], "modality": "CT"},
        **{"transfer_syntax": "1.2.840.10008.1.2.1", "rows": 40, "cols": 48, "bits_allocated": 16, "bits_stored": 12},
        **{"pixel_representation": 1, "photometric": "MONOCHROME2", "slope": 1.0, "intercept": -1024.0},
        **{"position": [-125.0, -131.5, 60.25], "orientation": [1.0, 0.0, 0.0, 0.0, 1.0, 0.0]},
        **{"spacing_xy_mm": 0.5, "status": "image", "reason": "", "flags": ""},
        **{"study_uid": "1.2.3", "series_uid": "1.2.3.4", "sop_uid": "1.2.3.4.5"},
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
    entry = archive.put(archive.bytes_of("a").replace(b"1.2.840.10008.1.2.1", b"SMITH^JOHN SMITH^JO"))
    recwarn.clear()
    caplog.clear()
    assert archive.fate(entry) == "other: another modality"
    assert "SMITH" not in repr(archive.header(entry))
    assert archive.header(entry)["transfer_syntax"] is None
    assert [*recwarn.list, *caplog.records, *filter(None, capfd.readouterr())] == []


def tilted(degrees: float) -> list[float]:
    """The orientation of a gantry that is tilted."""
    return [1, 0, 0, 0, round(math.cos(math.radians(degrees)), 6), round(-math.sin(math.radians(degrees)), 6)]


RTSTRUCT = {"Modality": "RTSTRUCT", "PixelData": None, "Rows": None}


@pytest.mark.parametrize(
    ("fate", "flags", "tags"),
    [
        (IMAGE, "", {}),
        (IMAGE, "", {"RescaleSlope": None, "RescaleIntercept": None}),
        (IMAGE, "no orientation", dict.fromkeys(("PixelSpacing", "ImagePositionPatient", "ImageOrientationPatient"))),
        (IMAGE, "", {"HighBit": None, "SOPInstanceUID": None, "SeriesInstanceUID": None}),
        (IMAGE, "", {"Modality": "ct"}),
        ("other: RTSTRUCT", None, RTSTRUCT),
        ("rejected: no modality", None, {"Modality": None}),
        (IMAGE, "", {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}),
        ("other: secondary capture", None, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"}),
        ("rejected: multi-frame", None, {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2", "NumberOfFrames": 9}),
        ("other: another kind of object", None, {"SOPClassUID": "1.2.840.113619.4.30"}),  # GE, private
        ("rejected: no patient", None, {"PatientID": None}),
        ("rejected: multi-frame", None, {"SharedFunctionalGroupsSequence": [Dataset()]}),
        ("rejected: colour", None, {"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}),
        ("rejected: colour", None, {"PhotometricInterpretation": "PALETTE COLOR"}),
        ("rejected: no pixel data", None, {"PixelData": None}),
        ("rejected: incomplete image header", None, {"SamplesPerPixel": None}),
        ("rejected: implausible size", None, {"Rows": 0}),
        ("rejected: implausible size", None, {"Columns": 65535}),
        ("rejected: unsupported bits", None, {"BitsAllocated": 8}),
        ("rejected: unsupported bits", None, {"BitsStored": 8, "HighBit": 7}),
        ("rejected: unsupported bits", None, {"BitsStored": 12, "HighBit": 15}),
        ("rejected: unsupported bits", None, {"PixelRepresentation": 2}),
        ("rejected: unsupported bits", None, {"PixelData": None, "FloatPixelData": bytes(4)}),
        (IMAGE, "few bits", {"BitsStored": 11, "HighBit": 10}),
        ("rejected: implausible slope or intercept", None, {"RescaleSlope": 0}),
        ("rejected: implausible slope or intercept", None, {"RescaleSlope": [1, 2]}),
        ("rejected: implausible slope or intercept", None, {"RescaleIntercept": "1e30"}),
        ("rejected: modality LUT", None, {"RescaleSlope": None, "ModalityLUTSequence": [Dataset()]}),
        (IMAGE, "", {"RescaleType": "HU"}),
        (IMAGE, header.UNSPECIFIED, {"RescaleType": "US"}),  # the pixel pass looks whether it may be HU
        ("rejected: not in HU", None, {"RescaleType": "MGML"}),
        (IMAGE, "", {"PixelSpacing": [0.5, 0.502]}),
        (IMAGE, "anisotropic", {"PixelSpacing": [0.5, 0.6]}),
        (IMAGE, "odd spacing", {"PixelSpacing": [100, 100]}),  # 3.2 m
        (IMAGE, "odd spacing", {"PixelSpacing": [0.5, 0]}),
        (IMAGE, "no orientation,odd spacing", {"ImageOrientationPatient": None, "PixelSpacing": [9000, 1]}),
        (IMAGE, "lossy", {"LossyImageCompression": "01"}),
        (IMAGE, "", {"LossyImageCompression": "00"}),
        (IMAGE, "", {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL", "CT_SOM5 SPI"]}),
        (IMAGE, "derived", {"ImageType": ["DERIVED", "PRIMARY", "AXIAL"]}),
        (IMAGE, "derived", {"ImageType": ["ORIGINAL", "SECONDARY", "AXIAL"]}),
        ("other: localizer", None, {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}),
        ("other: derived picture", None, {"ImageType": ["DERIVED", "SECONDARY", "OTHER", "CSA MPR", "THICK"]}),
        (IMAGE, "", {"ImageOrientationPatient": tilted(29)}),
        (IMAGE, "oblique", {"ImageOrientationPatient": tilted(40)}),
        ("other: not axial", None, {"ImageOrientationPatient": tilted(50)}),
        (IMAGE, "turned", {"ImageOrientationPatient": [-1, 0, 0, 0, -1, 0]}),  # prone
        (IMAGE, "no orientation", {"ImageOrientationPatient": [0, 0, 0, 0, 0, 0]}),
        (IMAGE, "no orientation", {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}),
        (IMAGE, "", {"source": "radcure", "PatientID": "RADCURE-0005"}),
        (IMAGE, "", {"source": "cspine", "PatientID": "anything"}),
        (IMAGE, "", {"source": "cspine", "PatientID": None}),  # goes by the study
        ("rejected: no patient", None, {"source": "cspine", "PatientID": None, "StudyInstanceUID": None}),
        ("rejected: patient of another collection", None, {"PatientID": "RADCURE-0005"}),
        ("rejected: patient of another collection", None, {"PatientID": "ID_0123abcd_epidural"}),
        ("rejected: patient of another collection", None, {"source": "radcure", "PatientID": "RADCURE-00056"}),
        ("rejected: patient of another collection", None, {"source": "cspine", "PatientID": "RADCURE-0005"}),
    ],
)  # fmt: skip
def test_fate_and_flags_by_tags(archive, fate, flags, tags):
    entry = archive.write(**tags)
    assert archive.fate(entry) == fate
    row = archive.header(entry)
    assert flags is None or row["flags"] == flags
    assert "no orientation" not in (flags or "") or row["orientation"] is None
    source, patient = tags.get("source", "ich"), tags.get("PatientID", "ID_0123abcd") or "1.2.3"
    assert row["patient"] in (None, pseudonym(source, "patient", patient))
    assert (row["patient"] is None) == (fate == "rejected: no patient")


@pytest.mark.parametrize("value", ["nan", "inf", "one"])
def test_slope_that_is_no_number(archive, value):
    entry = archive.write(RescaleSlope="1.25000")
    raw = archive.bytes_of("a")
    assert raw.count(b"1.25000 ") == 1
    archive.put(raw.replace(b"1.25000 ", value.encode().ljust(8)))
    assert archive.fate(entry) == "rejected: implausible slope or intercept"


@pytest.mark.parametrize(
    ("name", "content", "fate"),
    [
        ("1.dcm", b"", "rejected: empty file"),
        ("empty.csv", b"", "other: side file: table"),
        ("1.dcm", b"a,b\n1,2\n" * 100, NO_DICOM),
        ("1", b"\x08\x00" + bytes(range(256)) * 4, NO_DICOM),
        ("a.exe", b"MZ" + bytes(2000), "other: side file: program"),
        ("train.CSV", b"a,b\n1,2\n" * 100, "other: side file: table"),
        ("1.2.3.nii", struct.pack("<i", 348) + bytes(100_000), "other: side file: volume"),
        ("1.nii.gz", b"\x1f\x8b" + bytes(1000), "other: side file: volume"),
        ("RADCURE-0001", b"Rar!\x1a\x07" + bytes(1000), "other: side file: archive"),
        ("RADCURE-0001", b"PK\x03\x04" + bytes(1000), "rejected: zip under another name"),
        ("LICENSE", b"Some words." * 20, "other: side file: text"),
        ("NOTLICENSE", b"Some words." * 20, NO_DICOM),
        ("clinical.xlsx", b"PK\x03\x04" + bytes(300), "other: side file: table"),
        ("._1-001.dcm", b"\x00\x05\x16\x07\x00\x02\x00\x00Mac OS X        " + bytes(4072), "other: side file: system"),
        ("Thumbs.db", b"\xd0\xcf\x11\xe0" + bytes(600), "other: side file: system"),
        ("scan", b"\xff\xd8\xff\xe0" + bytes(300), "other: side file: picture"),
        ("1.md5", b"0" * 32, "other: side file: checksums"),
    ],
)
def test_files_that_are_no_dicom_go_by_name_and_first_bytes(archive, name, content, fate):
    assert archive.fate(archive.put(content, name)) == fate


def test_dicom_goes_by_header_whatever_its_name(archive):
    for name in ("1-001.dcm", "noextension", "image.csv", "LICENSE", "1.2.840"):
        assert archive.fate(archive.write(name=name)) == IMAGE


@pytest.mark.parametrize("syntax", ["implicit", "explicit", "big endian"])
def test_without_preamble(archive, syntax):
    archive.write(syntax=syntax)
    dataset = pydicom.dcmread(archive.root / "a")
    bare = io.BytesIO()
    dataset.save_as(bare, enforce_file_format=False)
    raw = bare.getvalue()[132:]
    assert archive.fate(archive.put(raw)) == IMAGE  # no preamble
    entry = archive.put(raw[12 + struct.unpack_from("<I", raw, 8)[0] :])  # nor any file meta group
    assert archive.fate(entry) == IMAGE
    assert archive.header(entry)["transfer_syntax"] == dataset.file_meta.TransferSyntaxUID


@pytest.mark.parametrize(
    ("fate", "tags"),
    [
        (IMAGE, {}),
        ("other: RTSTRUCT", RTSTRUCT),
        (NO_DICOM, {"Columns": 0}),
        (NO_DICOM, {"PixelData": None}),
    ],
)
def test_without_preamble_only_what_makes_sense(archive, fate, tags):
    archive.write(**tags)
    assert archive.fate(archive.put(archive.bytes_of("a")[132:])) == fate


def test_transfer_syntaxes_that_are_refused(archive):
    assert archive.fate(archive.write(syntax="deflated")) == "rejected: unsupported transfer syntax"
    archive.write(syntax="jpeg lossless 70")
    raw = archive.bytes_of("a")
    without = archive.put(raw[144 + struct.unpack_from("<I", raw, 140)[0] :])
    assert archive.fate(without) == "rejected: pixel data and transfer syntax disagree"
    for syntax in (b"1.2.840.10008.1.2.4.50", b"1.2.840.10008.1.2.4.100\0", b"9.9\0"):
        archive.write()
        explicit, raw = b"1.2.840.10008.1.2.1\0", archive.bytes_of("a")
        place = raw.index(explicit)
        raw = raw[: place - 2] + struct.pack("<H", len(syntax)) + syntax + raw[place + len(explicit) :]
        assert archive.fate(archive.put(raw)) == "rejected: unsupported transfer syntax"


@pytest.mark.parametrize(
    ("error", "is_of_the_file"),
    [
        (PermissionError(errno.EACCES, "Permission denied"), True),
        (OSError(errno.EIO, "Input/output error"), True),
        (OSError(errno.ENOENT, "gone"), False),  # a share that is gone: else thousands of sound files were rejected
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
            assert archive.fate(entry) == "rejected: unreadable"
        else:
            with pytest.raises(type(error)):
                archive.fate(entry)


def test_zip_member(archive):
    plain = archive.header(archive.write(name="b"))
    row = archive.header(archive.zip(archive.bytes_of("b")))
    assert (row["path"], row["member"]) == ("a.zip", "x/1.dcm")
    assert {**row, "path": "b", "member": ""} == plain
    for fate, content, *members in (
        ("other: side file: text", b"Some words.", "x/LICENSE"),
        (NO_DICOM, b"Some words.", "x/1.dcm"),
        ("other: side file: system", b"\x00\x05\x16\x07", "__MACOSX/x/1.dcm", "__MACOSX/a.zip", "x/._1.dcm", "x\\._1"),
        ("rejected: zip inside a zip", b"PK\x03\x04", "x/RADCURE-0001.zip", "x/RADCURE-0001"),
        ("rejected: zip inside a zip", b"?", "y.zip"),
    ):
        for member in members:
            assert archive.fate(archive.zip(content, member=member)) == fate


# What would fill the memory


class Watched(io.BytesIO):
    def read(self, size=-1):
        assert size < 1 << 26
        return super().read(size)

    def close(self):
        self.read_to = self.tell()


def test_neither_pixels_nor_absurd_lengths_are_read(archive, monkeypatch):
    entry = archive.write(np.zeros((1024, 1024), np.uint16))
    raw = archive.bytes_of("a")
    study = raw.index(b"\x20\x00\x0d\x00UI")
    absurd = raw[:study] + b"\x20\x00\x0d\x00OB\0\0" + struct.pack("<I", 0xFFFFFF00) + raw[study + 8 :]  # 4 GB
    for content, fate in ((raw, IMAGE), (absurd, "rejected: truncated file")):
        file = Watched(content)
        monkeypatch.setattr(header, "open_entry", lambda root, entry, file=file: file)
        assert archive.fate(entry) == fate
        assert file.read_to < 2000


PRIVATE = b"\x29\x00\x10\x10OB\0\0"


def put_before_pixels(archive, *parts: bytes | int) -> Entry:
    """A sound file with `parts` before its pixel data; a number is so many zeros, which take no room on the disk."""
    archive.write(name="sound")
    raw = archive.bytes_of("sound")
    with (archive.root / "a").open("wb") as file:
        for part in (raw[: raw.index(PIXEL_DATA)], *parts, raw[raw.index(PIXEL_DATA) :]):
            file.seek(part, io.SEEK_CUR) if isinstance(part, int) else file.write(part)
    return archive.entry("a")


def element(length: int) -> tuple[bytes, int]:
    return PRIVATE + struct.pack("<I", length), length


def test_long_values_are_passed_over_and_files_without_end_refused(archive):
    dose = archive.write(Modality="RTDOSE", BitsAllocated=32, PixelData=bytes(73 << 20))
    assert archive.fate(dose) == "other: RTDOSE"
    long = put_before_pixels(archive, *element(100 << 20))
    assert archive.fate(long) == IMAGE
    assert archive.picture(long).stored[0, 0] == 1024
    assert archive.fate(put_before_pixels(archive, *element(300 << 20))) == "rejected: larger than any slice"
    # A sequence of undefined length, whose items fill the memory before its end is known.
    item = (b"\xfe\xff\x00\xe0" + struct.pack("<I", 12 + (9 << 20)), *element(9 << 20))
    sequence = (b"\x29\x00\x10\x10SQ\0\0\xff\xff\xff\xff", *item * 20, b"\xfe\xff\xdd\xe0\0\0\0\0")
    assert archive.fate(put_before_pixels(archive, *sequence)) == "rejected: header too long"


def test_a_long_entry_of_a_zip_is_not_read_into_memory(archive, monkeypatch):
    entry = archive.write(NumberOfFrames=140)
    packed = archive.zip(archive.bytes_of("a") + bytes(70 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert archive.fate(packed) == "rejected: multi-frame" == archive.fate(entry)


# Damage


def test_file_cut_anywhere_in_its_header(archive):
    """Never an image before the pixel data, never an exception; a cut within a value is called one."""
    archive.write(ReferencedImageSequence=[Dataset(), Dataset()])
    raw = archive.bytes_of("a")
    pixels, in_position = raw.index(PIXEL_DATA), raw.index(b"\\-131.5")
    fates = {
        length: archive.fate(archive.put(raw[:length])) for length in {131, in_position, *range(132, pixels + 12, 4)}
    }
    assert all(fate != IMAGE for length, fate in fates.items() if length < pixels + 8)
    assert fates[in_position] == "rejected: truncated file"
    assert fates[131] == NO_DICOM
    assert archive.fate(archive.put(raw[: pixels + 12])) == IMAGE  # the pixel pass finds that out


def test_damaged_headers_never_raise(archive):
    archive.write(ReferencedImageSequence=[Dataset()], ImageType=["ORIGINAL", "PRIMARY"])
    raw = archive.bytes_of("a")
    end = raw.index(PIXEL_DATA) + 12
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
    "dicomdirtests/98892001/CT2N/6293": "other: localizer",
    "dicomdirtests/DICOMDIR": "other: DICOMDIR",
    "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000": "rejected: no pixel data",
    "MR_truncated.dcm": "other: MR",
    "rtstruct.dcm": "other: RTSTRUCT",  # without preamble
    "rtdose.dcm": "other: RTDOSE",
    "ExplVR_BigEndNoMeta.dcm": "other: RTPLAN",
    "liver_1frame.dcm": "other: SEG",
    "reportsi.dcm": "other: SR",
    "SC_rgb_rle.dcm": "other: another modality",
    "meta_missing_tsyntax.dcm": "rejected: no modality",
    "rtplan.dump": NO_DICOM,
    "zipMR.gz": "other: side file: archive",
}


def test_files_of_pydicom(archive):
    """Every one of them gets a row; the fate of those that are known is that one."""
    archive.root = PYDICOM_FILES
    names = [path.relative_to(PYDICOM_FILES).as_posix() for path in PYDICOM_FILES.rglob("*") if path.is_file()]
    rows = [archive.header(archive.entry(name, "cspine")) for name in names]
    pa.Table.from_pylist(rows, schema=SCHEMA).validate(full=True)
    assert {name: archive.fate(archive.entry(name, "cspine")) for name in FATE_OF_PYDICOM_FILE} == FATE_OF_PYDICOM_FILE
