"""The header pass: each kind of file gets its fate, by hand; nothing makes it raise; nothing plain is copied."""

import io
import os
import struct
from pathlib import Path

import numpy as np
import pyarrow as pa
import pydicom.data
import pytest
from archive import header
from archive.header import COLUMNS, OTHER_REASONS, REJECTED_REASONS, SCHEMA, pseudonym
from archive.listing import Entry
from dicom_hu import REASONS as DECODING_REASONS
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
        **{"spacing_xy_mm": 0.488, "status": "image", "reason": ""},
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
        ({"Modality": None}, ("rejected", "no modality")),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"]}, ("other", "localizer")),
        ({"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"]}, IMAGE),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7"}, ("other", "secondary capture")),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.7.3"}, ("other", "secondary capture")),
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
    ],
)
def test_fate_by_tags(archive, tags, fate):
    assert archive.fate(archive.write(**tags)) == fate


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


@pytest.mark.parametrize(
    ("name", "content", "fate"),
    [
        ("1.dcm", b"", ("rejected", "empty file")),
        ("1", b"", ("rejected", "empty file")),
        ("empty.csv", b"", ("other", "side file")),
        ("1.dcm", b"a,b\n1,2\n" * 100, ("rejected", "not DICOM")),
        ("1", b"\x08\x00" + bytes(range(256)) * 4, ("rejected", "not DICOM")),
        ("a.exe", b"MZ" + bytes(2000), ("rejected", "not DICOM")),
        ("train.CSV", b"a,b\n1,2\n" * 100, ("other", "side file")),
        ("1.2.3.nii", struct.pack("<i", 348) + bytes(100_000), ("other", "side file")),
        ("1.nii.gz", b"\x1f\x8b" + bytes(1000), ("other", "side file")),
        ("1.gz", b"\x1f\x8b" + bytes(1000), ("rejected", "not DICOM")),
        ("LICENSE", b"Some words." * 20, ("other", "side file")),
        ("NOTLICENSE", b"Some words." * 20, ("rejected", "not DICOM")),
        ("clinical.xlsx", b"PK\x03\x04" + bytes(300), ("other", "side file")),
        ("short.txt", b"x", ("other", "side file")),
    ],
)
def test_files_that_are_no_dicom_go_by_name(archive, name, content, fate):
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
    assert archive.fate(entry._replace(path="gone")) == ("rejected", "unreadable")

    def refuse(root, entry):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(header, "open_entry", refuse)
    assert archive.fate(entry) == ("rejected", "unreadable")


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
    assert archive.fate(archive.zip(b"Some words.", member="x/LICENSE")) == ("other", "side file")
    assert archive.fate(archive.zip(b"Some words.", member="x/1.dcm")) == ("rejected", "not DICOM")


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


def test_file_cut_anywhere_in_its_header(archive):
    """Never an image before the pixel data, never an exception; a cut within a value is called one."""
    archive.write(ReferencedImageSequence=[Dataset(), Dataset()])
    raw = archive.bytes_of("a")
    pixels = raw.index(b"\xe0\x7f\x10\x00OW")
    fates = {length: archive.fate(archive.put(raw[:length])) for length in range(131, pixels + 12)}
    assert all(status != "image" for length, (status, _) in fates.items() if length < pixels + 8)
    assert {reason for _, reason in fates.values()} <= {*REJECTED_REASONS, ""}
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
    assert reasons <= {"", *REJECTED_REASONS, *OTHER_REASONS, *DECODING_REASONS}
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
    "README.txt": ("other", "side file"),
    "rtplan.dump": ("rejected", "not DICOM"),
    "zipMR.gz": ("rejected", "not DICOM"),
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
    assert {row["reason"] for row in rows} <= {"", *REJECTED_REASONS, *OTHER_REASONS}
