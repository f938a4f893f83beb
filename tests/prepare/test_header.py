"""The header pass: each kind of file gets its fate, by hand; nothing makes it raise; nothing plain is copied."""

import errno
import io
import math
import os
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom.data
import pytest
from archive import header
from archive.header import COLUMNS, FLAGS, SCHEMA, pseudonym
from archive.listing import Entry
from archive.reasons import OTHER, REJECTED
from prepare.broken import Failing
from pydicom.dataset import Dataset

IMAGE = ("image", "")
PYDICOM_FILES = Path(pydicom.data.__file__).parent / "test_files"


def test_row_by_hand(archive):
    row = archive.header(archive.write(np.zeros((40, 48), np.int16), BitsStored=12, HighBit=11))
    assert tuple(row) == COLUMNS
    assert row["size"] == (archive.root / "a").stat().st_size
    hashed = {column: row.pop(column) for column in ("patient", "study", "series", "sop")}
    # printf 'ich:patient:ID_0123abcd' | sha256sum
    assert hashed["patient"] == "ich-a9f0ab5ed2ace7ee"
    assert hashed["study"] == pseudonym("ich", "study", "1.2.3.4")
    assert hashed["series"] == pseudonym("ich", "series", "1.2.3.4.5")
    assert hashed["sop"] == pseudonym("ich", "sop", "1.2.3")
    assert row == {
        **{"source": "ich", "path": "a", "member": "", "size": row["size"], "modality": "CT"},
        **{"transfer_syntax": "1.2.840.10008.1.2.1", "rows": 40, "cols": 48, "bits_allocated": 16, "bits_stored": 12},
        **{"pixel_representation": 1, "photometric": "MONOCHROME2", "slope": 1.0, "intercept": -1024.0},
        **{"position": [-125.0, -131.5, 60.25], "orientation": [1.0, 0.0, 0.0, 0.0, 0.985, -0.17]},
        **{"spacing_xy_mm": 0.488, "status": "image", "reason": "", "flags": ""},
        **{"study_uid": "1.2.3.4", "series_uid": "1.2.3.4.5", "sop_uid": "1.2.3"},
    }


def test_pseudonyms_differ_by_source_and_kind():
    assert len({pseudonym(source, kind, "1") for source in ("ich", "cspine") for kind in ("patient", "study")}) == 4


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
        ({"PhotometricInterpretation": "MONOCHROME1"}, IMAGE),
        ({"NumberOfFrames": 1}, IMAGE),
        ({"HighBit": None, "SOPInstanceUID": None, "SeriesInstanceUID": None}, IMAGE),
        ({"Modality": "RTSTRUCT", "PixelData": None, "Rows": None}, ("other", "RTSTRUCT")),
        ({"Modality": "RTDOSE"}, ("other", "RTDOSE")),
        ({"Modality": "SEG"}, ("other", "SEG")),
        ({"Modality": "US"}, ("other", "another modality")),
        ({"Modality": "ct"}, IMAGE),
        ({"Modality": None}, ("rejected", "no modality")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ("other", "secondary capture")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"}, ("other", "secondary capture")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2"}, IMAGE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.2.2", "NumberOfFrames": 9}, ("rejected", "multi-frame")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.20"}, ("other", "another kind of object")),
        ({"SOPClassUID": "1.2.840.113619.4.30"}, ("other", "another kind of object")),  # GE, private
        ({"PatientID": None}, ("rejected", "no patient")),
        ({"PatientID": ""}, ("rejected", "no patient")),
        ({"NumberOfFrames": 2}, ("rejected", "multi-frame")),
        ({"SharedFunctionalGroupsSequence": [Dataset()]}, ("rejected", "multi-frame")),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, ("rejected", "colour")),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, ("rejected", "colour")),
        ({"PixelData": None}, ("rejected", "no pixel data")),
        ({"SamplesPerPixel": None}, ("rejected", "incomplete image header")),
        ({"BitsStored": None}, ("rejected", "incomplete image header")),
        ({"PixelRepresentation": None}, ("rejected", "incomplete image header")),
        ({"Rows": 0}, ("rejected", "implausible size")),
        ({"Columns": 65535}, ("rejected", "implausible size")),
        ({"BitsAllocated": 8}, ("rejected", "unsupported bits")),
        ({"BitsStored": 17}, ("rejected", "unsupported bits")),
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
        ({"RescaleType": "OD"}, ("rejected", "not in HU")),
        ({"RescaleType": "MGML"}, ("rejected", "not in HU")),
    ],
)
def test_fate_by_tags(archive, tags, fate):
    assert archive.fate(archive.write(**tags)) == fate


@pytest.mark.parametrize(
    ("image_type", "fate", "flags"),
    [
        ("ORIGINAL PRIMARY AXIAL", IMAGE, ""),
        ("ORIGINAL PRIMARY AXIAL,CT_SOM5 SPI", IMAGE, ""),
        ("ORIGINAL PRIMARY VOLUME NONE", IMAGE, ""),
        ("ORIGINAL PRIMARY LOCALIZER", ("other", "localizer"), None),
        ("ORIGINAL PRIMARY SCOUT", ("other", "localizer"), None),
        ("DERIVED PRIMARY AXIAL", IMAGE, "derived"),
        ("DERIVED SECONDARY", IMAGE, "derived"),
        ("ORIGINAL SECONDARY AXIAL", IMAGE, "derived"),
        ("DERIVED SECONDARY MPR", ("other", "derived picture"), None),
        ("DERIVED SECONDARY OTHER,CSA MPR,THICK", ("other", "derived picture"), None),
        ("DERIVED SECONDARY REFORMATTED,AVERAGE", ("other", "derived picture"), None),
        ("DERIVED SECONDARY AXIAL,CT_SOM7 MIP", ("other", "derived picture"), None),
        ("DERIVED SECONDARY SCREEN SAVE", ("other", "derived picture"), None),
        ("DERIVED SECONDARY DOSE_INFO", ("other", "derived picture"), None),
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
        (tilted(-29), IMAGE, ""),
        (tilted(40), IMAGE, "oblique"),
        (tilted(50), ("other", "not axial"), None),
        ([1, 0, 0, 0, 0, -1], ("other", "not axial"), None),  # coronal
        ([0, 1, 0, 0, 0, -1], ("other", "not axial"), None),  # sagittal
        ([-1, 0, 0, 0, -1, 0], IMAGE, "turned"),  # prone
        ([-1, 0, 0, 0, 1, 0], IMAGE, "turned"),  # mirrored
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


@pytest.mark.parametrize(
    ("spacing", "flags"),
    [
        ([0.5, 0.5], ""),
        ([0.5, 0.502], ""),
        ([0.5, 0.6], "anisotropic"),
        ([100, 100], "odd spacing"),  # 3.2 m
        ([0.5, 0], "odd spacing"),
        ([0.001, 0.001], "odd spacing"),
        (None, ""),
    ],
)
def test_flags_of_spacing(archive, spacing, flags):
    assert archive.header(archive.write(PixelSpacing=spacing))["flags"] == flags


def test_flags_of_loss_and_of_few_bits(archive):
    for tags, flags in (
        ({"LossyImageCompression": "01"}, "lossy"),
        ({"LossyImageCompression": "00"}, ""),
        ({"BitsStored": 12, "HighBit": 11}, ""),
        ({"BitsStored": 11, "HighBit": 10}, "few bits"),
    ):
        assert archive.header(archive.write(**tags))["flags"] == flags, tags


def test_flags_are_of_the_vocabulary(archive):
    row = archive.header(
        archive.write(ImageType=["DERIVED", "SECONDARY"], ImageOrientationPatient=None, PixelSpacing=[9000, 1])
    )
    assert row["flags"] == "derived,no orientation,odd spacing"
    assert set(row["flags"].split(",")) < set(FLAGS)


@pytest.mark.parametrize("value", ["nan", "inf", "one"])
def test_slope_that_is_no_number(archive, value):
    entry = archive.write(RescaleSlope="1.25000")
    raw = archive.bytes_of("a")
    assert raw.count(b"1.25000 ") == 1
    archive.put(raw.replace(b"1.25000 ", value.encode().ljust(8)))
    assert archive.fate(entry) == ("rejected", "implausible slope or intercept")


def test_what_the_file_does_not_say_is_null(archive):
    gone = ("RescaleSlope", "RescaleIntercept", "PixelSpacing", "ImagePositionPatient", "SeriesInstanceUID")
    row = archive.header(archive.write(**dict.fromkeys(gone)))
    assert [row[column] for column in ("slope", "intercept", "spacing_xy_mm", "position", "series")] == [None] * 5


@pytest.mark.parametrize(
    ("source", "patient", "fate"),
    [
        ("ich", "ID_0123abcd", IMAGE),
        ("ich", "RADCURE-0005", ("rejected", "patient of another collection")),
        ("ich", "ID_0123abcd_epidural", ("rejected", "patient of another collection")),
        ("radcure", "RADCURE-0005", IMAGE),
        ("radcure", "RADCURE-00056", ("rejected", "patient of another collection")),
        ("radcure", "10001", ("rejected", "patient of another collection")),
        ("cspine", "10001", IMAGE),
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
        ("1", b"", ("rejected", "empty file")),
        ("empty.csv", b"", side("table")),
        ("1.dcm", b"a,b\n1,2\n" * 100, NO_DICOM),
        ("1", b"\x08\x00" + bytes(range(256)) * 4, NO_DICOM),
        ("1.dcm.part", bytes(1000), NO_DICOM),
        ("a.exe", b"MZ" + bytes(2000), side("program")),
        ("train.CSV", b"a,b\n1,2\n" * 100, side("table")),
        ("1.2.3.nii", struct.pack("<i", 348) + bytes(100_000), side("volume")),
        ("1.nii.gz", b"\x1f\x8b" + bytes(1000), side("volume")),
        ("1.gz", b"\x1f\x8b" + bytes(1000), side("archive")),
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
        ("desktop.ini", b"[.ShellClassInfo]", side("system")),
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
        ({"Modality": "US"}, ("rejected", "not DICOM")),
        ({"Rows": None}, ("rejected", "not DICOM")),
        ({"Columns": 0}, ("rejected", "not DICOM")),
        ({"PixelData": None}, ("rejected", "not DICOM")),
        ({"Modality": None}, ("rejected", "not DICOM")),
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


def test_unreadable(archive, monkeypatch):
    entry = archive.write()

    def refuse(root, entry):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(header, "open_entry", refuse)
    assert archive.fate(entry) == ("rejected", "unreadable")


@pytest.mark.parametrize("number", [errno.ENOENT, errno.ESTALE, errno.ENOTCONN, errno.EMFILE, errno.ETIMEDOUT])
def test_a_share_that_is_gone_is_no_fault_of_a_file(archive, monkeypatch, number):
    """Otherwise thousands of sound files would be rejected for good."""
    entry = archive.write()
    for opened in (Failing(archive.bytes_of("a"), OSError(number, "gone")), None):

        def open_entry(root, entry, opened=opened):
            if opened is None:
                raise OSError(number, "gone")
            return opened

        monkeypatch.setattr(header, "open_entry", open_entry)
        with pytest.raises(OSError, match="gone"):
            archive.fate(entry)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_no_permission(archive):
    entry = archive.write()
    (archive.root / "a").chmod(0)
    assert archive.fate(entry) == ("rejected", "unreadable")


def test_errors_of_the_disk_and_of_memory(archive, monkeypatch):
    entry = archive.write()
    raw = archive.bytes_of("a")
    monkeypatch.setattr(header, "open_entry", lambda root, entry: Failing(raw, OSError(5, "Input/output error")))
    assert archive.fate(entry) == ("rejected", "unreadable")
    for error in (MemoryError, KeyboardInterrupt):
        monkeypatch.setattr(header, "open_entry", lambda root, entry, error=error: Failing(raw, error()))
        with pytest.raises(error):
            archive.fate(entry)


def test_problem_of_the_listing_is_kept(archive):
    entry = Entry("ich", "loop", "", 0, "symlink loop")
    assert archive.fate(entry) == ("rejected", "symlink loop")


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


def test_damaged_zip_member(archive):
    archive.write(np.random.default_rng(0).integers(0, 4096, (64, 64)).astype(np.uint16), name="b")
    entry = archive.zip(archive.bytes_of("b"))
    damaged = bytearray(archive.bytes_of("a.zip"))
    damaged[3000:3010] = bytes(10)
    archive.put(bytes(damaged), "a.zip")
    assert archive.fate(entry) == ("rejected", "damaged zip")
    assert archive.fate(entry._replace(member="absent")) == ("rejected", "damaged zip")


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


PRIVATE = b"\x29\x00\x10\x10OB\0\0"


@pytest.mark.parametrize(
    ("tags", "fate"),
    [
        ({"NumberOfFrames": 140}, ("rejected", "multi-frame")),
        ({"Modality": "SEG"}, ("other", "SEG")),
        ({"Modality": "RTDOSE", "BitsAllocated": 32}, ("other", "RTDOSE")),
    ],
)
def test_pixel_data_longer_than_any_slice(archive, tags, fate):
    entry = archive.write(**tags)
    raw = archive.bytes_of("a")
    start = raw.index(b"\xe0\x7f\x10\x00OW") + 8
    with (archive.root / "a").open("wb") as file:
        file.write(raw[:start] + struct.pack("<I", 73 << 20))
        file.truncate(start + 4 + (73 << 20))
    assert archive.fate(archive.entry("a")) == fate
    assert archive.fate(entry) == fate  # whatever the listing says of its size


def test_long_values_are_passed_over_and_files_without_end_refused(archive):
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


def test_what_swells_when_inflated(archive):
    """Zeros of 3 GiB would deflate to 3 MB as well."""
    archive.write(syntax="deflated")
    raw = archive.bytes_of("a")
    start = 144 + struct.unpack_from("<I", raw, 140)[0]
    plain = zlib.decompress(raw[start:], -zlib.MAX_WBITS)
    for length, fate in ((100 << 20, IMAGE), (130 << 20, ("rejected", "inflates beyond the limit"))):
        deflater = zlib.compressobj(1, wbits=-zlib.MAX_WBITS)
        bomb = deflater.compress(plain[:-2060] + PRIVATE + struct.pack("<I", length))
        for _ in range(length >> 20):
            bomb += deflater.compress(bytes(1 << 20))
        bomb += deflater.compress(plain[-2060:]) + deflater.flush()
        assert len(bomb) < length / 200
        entry = archive.put(raw[:start] + bomb)
        assert archive.fate(entry) == fate
        if fate == IMAGE:
            assert archive.picture(entry).stored[0, 0] == 1024


def test_a_long_entry_of_a_zip_is_not_read_into_memory(archive, monkeypatch):
    entry = archive.write(NumberOfFrames=140)
    packed = archive.zip(archive.bytes_of("a") + bytes(70 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "read", None)
    assert archive.fate(packed) == ("rejected", "multi-frame") == archive.fate(entry)


def test_file_cut_anywhere_in_its_header(archive):
    """Never an image before the pixel data, never an exception; a cut within a value is called one."""
    archive.write(ReferencedImageSequence=[Dataset(), Dataset()])
    raw = archive.bytes_of("a")
    pixels = raw.index(b"\xe0\x7f\x10\x00OW")
    fates = {length: archive.fate(archive.put(raw[:length])) for length in range(131, pixels + 12)}
    assert all(status != "image" for length, (status, _) in fates.items() if length < pixels + 8)
    assert {reason for _, reason in fates.values()} <= {*REJECTED, ""}
    in_position = raw.index(b"\\-131.5")
    assert fates[in_position] == ("rejected", "truncated file")
    assert fates[131] == ("rejected", "not DICOM")
    assert archive.fate(archive.put(raw[: pixels + 12])) == IMAGE  # the pixel pass finds that out


def test_damaged_headers_never_raise(archive):
    archive.write(ReferencedImageSequence=[Dataset()], ImageType=["ORIGINAL", "PRIMARY"])
    raw = archive.bytes_of("a")
    end = raw.index(b"\xe0\x7f\x10\x00OW") + 12
    generator = np.random.default_rng(0)
    rows = []
    for _ in range(300):
        damaged = bytearray(raw)
        place, width = generator.integers(132, end), generator.integers(1, 9)
        damaged[place : place + width] = generator.bytes(width)
        rows.append(archive.header(archive.put(bytes(damaged))))
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    table.validate(full=True)
    reasons = set(table.column("reason").to_pylist())
    assert reasons <= {"", *REJECTED, *OTHER}
    assert len(reasons) > 5


# What each file is, from its own documentation (test_files/README.txt) or its name. The files have no patient pattern.
FATE_OF_PYDICOM_FILE = {
    "CT_small.dcm": IMAGE,
    "693_J2KI.dcm": IMAGE,
    "J2K_pixelrep_mismatch.dcm": IMAGE,
    "dicomdirtests/77654033/CT2/17106": IMAGE,
    "dicomdirtests/98892001/CT2N/6293": ("other", "localizer"),
    "dicomdirtests/98892003/MR1/15820": ("other", "MR"),
    "dicomdirtests/DICOMDIR": ("other", "DICOMDIR"),
    "dicomdirtests/DICOMDIR-bigEnd": ("other", "DICOMDIR"),
    "dicomdirtests/TINY_ALPHA/PT000000/ST000000/SE000000/IM000000": ("rejected", "no pixel data"),
    "MR_truncated.dcm": ("other", "MR"),
    "rtstruct.dcm": ("other", "RTSTRUCT"),  # without preamble
    "rtplan.dcm": ("other", "RTPLAN"),
    "rtplan_truncated.dcm": ("other", "RTPLAN"),
    "rtdose.dcm": ("other", "RTDOSE"),
    "ExplVR_BigEndNoMeta.dcm": ("other", "RTPLAN"),
    "ExplVR_LitEndNoMeta.dcm": ("other", "RTPLAN"),
    "liver_1frame.dcm": ("other", "SEG"),
    "reportsi.dcm": ("other", "SR"),
    "SC_rgb_rle.dcm": ("other", "another modality"),
    "image_dfl.dcm": ("other", "another modality"),
    "meta_missing_tsyntax.dcm": ("rejected", "no modality"),
    "README.txt": ("other", "side file: text"),
    "rtplan.dump": ("rejected", "not DICOM"),
    "zipMR.gz": ("other", "side file: archive"),
}


@pytest.mark.parametrize("name", FATE_OF_PYDICOM_FILE)
def test_files_of_pydicom(name):
    entry = Entry("cspine", name, "", (PYDICOM_FILES / name).stat().st_size)
    row = header.read_header(PYDICOM_FILES, entry)
    assert (row["status"], row["reason"]) == FATE_OF_PYDICOM_FILE[name]


def test_every_file_of_pydicom_gets_a_row():
    files = [path for path in PYDICOM_FILES.rglob("*") if path.is_file() and "TINY_ALPHA" not in path.parts]
    assert len(files) > 100
    rows = [
        header.read_header(
            PYDICOM_FILES, Entry("cspine", p.relative_to(PYDICOM_FILES).as_posix(), "", p.stat().st_size)
        )
        for p in files
    ]
    pa.Table.from_pylist(rows, schema=SCHEMA).validate(full=True)
    assert {row["reason"] for row in rows} <= {"", *REJECTED, *OTHER}
