"""The header pass: one file -> one row of the manifest. A file is what its header says, never what its name says.

Free text is never copied: identifiers are hashed, and modality and photometric interpretation are kept only where
they are of a fixed list.
"""

import hashlib
import math
import re
import warnings
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
from archive import reasons
from archive.listing import Entry, is_of_the_file, open_entry
from dicom_hu import LONGEST_VALUE, PIXEL_DATA, SYNTAXES, UNDEFINED_LENGTH, Unusable, read_dataset
from pydicom.dataset import FileDataset
from pydicom.uid import MediaStorageDirectoryStorage

SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("path", pa.string()),
        ("member", pa.string()),
        ("size", pa.int64()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("sop", pa.string()),
        ("modality", pa.string()),
        ("transfer_syntax", pa.string()),
        ("rows", pa.int32()),
        ("cols", pa.int32()),
        ("bits_allocated", pa.int32()),
        ("bits_stored", pa.int32()),
        ("pixel_representation", pa.int32()),
        ("photometric", pa.string()),
        ("slope", pa.float64()),
        ("intercept", pa.float64()),
        ("position", pa.list_(pa.float64())),  # (0020,0032), mm
        ("orientation", pa.list_(pa.float64())),  # (0020,0037), the directions of a row and of a column
        ("spacing_xy_mm", pa.float64()),
        ("status", pa.string()),
        ("reason", pa.string()),
        ("flags", pa.string()),  # of an image: of FLAGS, joined by commas
        ("study_uid", pa.string()),  # in plain, to be named in messages: these three never leave `.building`
        ("series_uid", pa.string()),
        ("sop_uid", pa.string()),
    ]
)
COLUMNS = tuple(SCHEMA.names)
VERSION = 3  # of the rules by which a file is judged: a store that was begun by others is not gone on with

IMAGE, OTHER, REJECTED = "image", "other", "rejected"
UNSPECIFIED = "unspecified units"
FLAGS = (
    "anisotropic",
    "derived",
    "few bits",
    "lossy",
    "no orientation",
    "oblique",
    "odd spacing",
    "turned",
    UNSPECIFIED,
)

PATIENT_PATTERNS = {"ich": re.compile(r"ID_[0-9a-f]+"), "radcure": re.compile(r"RADCURE-\d{4}")}  # cspine's: any other
PHOTOMETRIC_GREY = ("MONOCHROME1", "MONOCHROME2")
SIDE_MIN, SIDE_MAX = 16, 4096  # pixels; the collections hold 334 to about 1024
BITS_STORED_MIN = 9  # below, decoders return bytes, and HU do not fit
SLOPE_MAX, INTERCEPT_MAX = 100.0, 65536.0
LARGEST_FILE = 1 << 28  # bytes; the largest picture takes an eighth of it
UID = re.compile(r"[0-9.]{1,64}")
NAMED_UID = re.compile(rf"{UID.pattern}|ID_[0-9a-f]{{1,32}}")  # ICH's are none
# SOPClassUID (0008,0016). Either stands for those with a further number as well: enhanced and multi-frame kinds.
CT_IMAGE, SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.5.1.4.1.1.7"

# Words of ImageType (0008,0008): overviews, and what was computed from slices.
OVERVIEWS = ("LOCALIZER", "SCOUT", "TOPOGRAM", "SURVIEW")
DERIVED_WORDS = {
    *("MPR", "MPVR", "CPR", "CURVED", "REFORMATTED", "REFORMAT", "MIP", "MINIP", "MNIP", "AIP", "PROJECTION"),
    *("VRT", "VOLREN", "SSD", "SUBTRACTION", "SCREEN", "SNAPSHOT", "CAPTURE", "DOSE", "REPORT"),
    *("PERFUSION", "CBF", "CBV", "MTT", "TTP", "TMAX", "IODINE", "ZEFF", "FUSION"),
}
MOST_TILT, MOST_OBLIQUE = 30, 45  # degrees of a slice's normal from the patient's axis: no gantry tilts further than 30
FIELD_OF_VIEW_MM = (10, 1000)


def pseudonym(source: str, kind: str, value: str) -> str:
    """`kind` is patient, study, series or sop. Whoever can list the identifiers of a collection can invert it."""
    return f"{source}-{hashlib.sha256(f'{source}:{kind}:{value}'.encode()).hexdigest()[:16]}"


def read_header(root: Path, entry: Entry) -> dict:
    """A row of SCHEMA. No content of a file makes it raise; an error that is not the file's does."""
    row: dict = dict.fromkeys(COLUMNS)
    row.update(source=entry.source, path=entry.path, member=entry.member, size=entry.size)
    row["status"], row["reason"] = _examine(root, entry, row)
    return row


def _examine(root: Path, entry: Entry, row: dict) -> tuple[str, str]:
    """Fill `row` as far as the file says; returns status and reason."""
    if entry.problem:
        return REJECTED, entry.problem
    if entry.size == 0:
        fate = _no_dicom(entry, b"")
        return (REJECTED, "empty file") if fate == (REJECTED, "not DICOM") else fate
    try:
        file = open_entry(root, entry)
    except Exception as error:  # zipfile raises six kinds
        if not is_of_the_file(error):
            raise
        return REJECTED, "damaged zip" if entry.member else "unreadable"
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the text of tags
        start = b""
        try:
            start = file.read(132)
            file.seek(0)
            dataset, pixels = read_dataset(file, with_pixels=False, size=entry.size)
            if _is_bare(start) and not _makes_sense(dataset, pixels):
                return _no_dicom(entry, start)
            cut = pixels is None and _is_cut(dataset)  # asked first: to look at a value is to lose its length
            _fill(row, dataset)
            return _judge(row, dataset, pixels, cut)
        except Exception as error:  # a damaged header makes pydicom raise nearly anything
            if not is_of_the_file(error):
                raise
            reason = reason_of(error)
    return _no_dicom(entry, start) if _is_bare(start) and reason != "unreadable" else (REJECTED, reason)


def _is_bare(start: bytes) -> bool:
    """Whether a file that begins so has no DICOM preamble."""
    return start[128:] != b"DICM"


def _no_dicom(entry: Entry, start: bytes) -> tuple[str, str]:
    reason = reasons.side_file(entry.member or entry.path, start)
    if reason == reasons.ZIP:
        return REJECTED, "zip inside a zip" if entry.member else "zip under another name"
    return (OTHER, reason) if reason else (REJECTED, "not DICOM")


def reason_of(error: Exception) -> str:
    """Why a file cannot be read whose reading has raised `error`."""
    if isinstance(error, Unusable):
        return error.reason
    if isinstance(error, OSError):  # pydicom raises it, without a number, at the end of a cut sequence
        return "truncated file" if error.errno is None else "unreadable"
    return "truncated file" if isinstance(error, EOFError) else "damaged header"


def _makes_sense(dataset: FileDataset, pixels: tuple[int, int] | None) -> bool:
    """Whether a file without the DICOM preamble was DICOM all the same."""
    modality = dataset.get("Modality")
    if modality in reasons.MODALITIES:
        return True
    return modality == "CT" and pixels is not None and bool(dataset.get("Rows")) and bool(dataset.get("Columns"))


def _fill(row: dict, dataset: FileDataset) -> None:
    source = row["source"]
    study = _text(dataset, "StudyInstanceUID")
    patient = _text(dataset, "PatientID") or (study if source == "cspine" else "")
    series, sop = _text(dataset, "SeriesInstanceUID"), _text(dataset, "SOPInstanceUID")
    for kind, value in (("patient", patient), ("study", study), ("series", series), ("sop", sop)):
        row[kind] = pseudonym(source, kind, value) if value else None
        if kind != "patient" and NAMED_UID.fullmatch(value):
            row[f"{kind}_uid"] = value
    modality, photometric = _text(dataset, "Modality").upper(), _text(dataset, "PhotometricInterpretation")
    row["modality"] = modality if modality == "CT" or modality in reasons.MODALITIES else None
    row["photometric"] = photometric if photometric in PHOTOMETRIC_GREY else None
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    row["transfer_syntax"] = syntax if UID.fullmatch(syntax) else None
    row["rows"], row["cols"] = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    row["bits_allocated"], row["bits_stored"] = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    row["pixel_representation"] = _integer(dataset, "PixelRepresentation")
    row["position"] = _numbers(dataset, "ImagePositionPatient", 3)
    row["orientation"] = _orientation(dataset)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    row["spacing_xy_mm"] = spacing[0] if spacing and spacing[0] > 0 else None
    row["flags"] = ",".join(sorted(_flags(row, dataset, spacing)))


def _words(dataset: FileDataset) -> list[str]:
    """The words of ImageType (0008,0008), whose values may hold several."""
    return re.findall(r"[A-Z0-9]+", str(dataset.get("ImageType") or "").upper())


def _orientation(dataset: FileDataset) -> list[float] | None:
    """The directions of a row and of a column; None where they are not two unit vectors at a right angle."""
    found = _numbers(dataset, "ImageOrientationPatient", 6)
    if found is None:
        return None
    row, column = found[:3], found[3:]
    unit = all(abs(math.hypot(*direction) - 1) < 0.05 for direction in (row, column))
    return found if unit and abs(sum(map(math.prod, zip(row, column, strict=True)))) < 0.05 else None


def _tilt(orientation: list[float]) -> float:
    """Degrees between a slice's normal and the patient's axis: 0 for an axial slice, 90 for coronal and sagittal."""
    (row_x, row_y, _), (column_x, column_y, _) = orientation[:3], orientation[3:]
    return math.degrees(math.acos(min(1.0, abs(row_x * column_y - row_y * column_x))))


def _flags(row: dict, dataset: FileDataset, spacing: list[float] | None) -> Iterator[str]:
    """What leaves it unsure whether the file is an axial slice in HU, and what geometry it has."""
    if {"DERIVED", "SECONDARY"} & set(_words(dataset)):
        yield "derived"
    if _text(dataset, "LossyImageCompression") == "01":
        yield "lossy"
    if _text(dataset, "RescaleType").upper() == "US":  # GDCM writes that whenever it compresses or decompresses
        yield UNSPECIFIED
    if (row["bits_stored"] or 16) < 12:
        yield "few bits"
    orientation = row["orientation"]
    if orientation is None:
        yield "no orientation"
    elif _tilt(orientation) > MOST_TILT:
        yield "oblique"
    elif orientation[0] < 0.7 or orientation[4] < 0.7:  # rows do not run to the patient's left, or columns not back
        yield "turned"
    if spacing is not None:
        sides_mm = [mm * (pixels or 0) for mm, pixels in zip(spacing, (row["rows"], row["cols"]), strict=True)]
        if not all(FIELD_OF_VIEW_MM[0] <= side <= FIELD_OF_VIEW_MM[1] for side in sides_mm):
            yield "odd spacing"
        elif abs(spacing[0] - spacing[1]) > 0.01 * spacing[0]:
            yield "anisotropic"


def _judge(row: dict, dataset: FileDataset, pixels: tuple[int, int] | None, cut: bool) -> tuple[str, str]:
    """Status and reason; `pixels` is the tag and the length of the pixel data, `cut` whether the file ends early."""
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return OTHER, "DICOMDIR"
    modality = _text(dataset, "Modality").upper()
    if modality in reasons.MODALITIES:
        return OTHER, modality
    if cut:
        return REJECTED, "truncated file"
    if not modality:
        return REJECTED, "no modality"
    if modality != "CT":
        return OTHER, "another modality"
    if reason := _no_axial_slice(row, dataset):
        return OTHER, reason
    reason = (
        _fault_of_patient(row["source"], _text(dataset, "PatientID"), row["patient"])
        or _fault_of_image(row, dataset, pixels)
        or _fault_of_rescale(row, dataset)
    )
    return (REJECTED, reason) if reason else (IMAGE, "")


def _no_axial_slice(row: dict, dataset: FileDataset) -> str:
    """Why a file of modality CT is by nature no axial slice; "" where nothing says so."""
    words, sop_class = _words(dataset), f"{_text(dataset, 'SOPClassUID')}."
    if any(overview in word for overview in OVERVIEWS for word in words):
        return "localizer"
    if sop_class.startswith(f"{SECONDARY_CAPTURE}."):
        return "secondary capture"
    if sop_class != "." and not sop_class.startswith(f"{CT_IMAGE}."):
        return "another kind of object"
    if DERIVED_WORDS & set(words):
        return reasons.DERIVED
    if row["orientation"] and _tilt(row["orientation"]) > MOST_OBLIQUE:
        return reasons.NOT_AXIAL
    return ""


def _fault_of_patient(source: str, patient_id: str, patient: str | None) -> str:
    if patient is None:
        return "no patient"
    of = next((name for name, pattern in PATIENT_PATTERNS.items() if pattern.fullmatch(patient_id)), "cspine")
    return "" if of == source else "patient of another collection"


def _fault_of_image(row: dict, dataset: FileDataset, pixels: tuple[int, int] | None) -> str:
    # Frames of an enhanced image have their slopes in these sequences.
    enhanced = "SharedFunctionalGroupsSequence" in dataset or "PerFrameFunctionalGroupsSequence" in dataset
    if enhanced or (_integer(dataset, "NumberOfFrames") or 1) != 1:
        return "multi-frame"
    if pixels is None:
        return "no pixel data"
    samples, photometric = _integer(dataset, "SamplesPerPixel"), _text(dataset, "PhotometricInterpretation")
    needed = ("rows", "cols", "bits_allocated", "bits_stored", "pixel_representation")
    if samples is None or not photometric or any(row[column] is None for column in needed):
        return "incomplete image header"
    if samples != 1 or photometric not in PHOTOMETRIC_GREY:
        return "colour"
    if not all(SIDE_MIN <= row[column] <= SIDE_MAX for column in ("rows", "cols")):
        return "implausible size"
    high_bit = _integer(dataset, "HighBit")
    if (
        pixels[0] != PIXEL_DATA
        or row["bits_allocated"] != 16
        or not BITS_STORED_MIN <= row["bits_stored"] <= 16
        or high_bit not in (None, row["bits_stored"] - 1)
        or row["pixel_representation"] not in (0, 1)
    ):
        return "unsupported bits"
    if row["transfer_syntax"] not in SYNTAXES:
        return "unsupported transfer syntax"
    if row["size"] > LARGEST_FILE:
        return "larger than any slice"
    if SYNTAXES[row["transfer_syntax"]].compressed != (pixels[1] == UNDEFINED_LENGTH):
        return "pixel data and transfer syntax disagree"
    return ""


def _fault_of_rescale(row: dict, dataset: FileDataset) -> str:
    if _text(dataset, "RescaleType").upper() not in ("", "HU", "US"):  # such as OD, optical density, and MGML, iodine
        return "not in HU"
    try:
        slope, intercept = _number(dataset, "RescaleSlope"), _number(dataset, "RescaleIntercept")
    except (ValueError, TypeError):
        return "implausible slope or intercept"
    if (slope is None or intercept is None) and "ModalityLUTSequence" in dataset:
        return "modality LUT"
    row["slope"], row["intercept"] = slope, intercept
    if slope is not None and not 0 < slope <= SLOPE_MAX:  # not a number is not in it either
        return "implausible slope or intercept"
    if intercept is not None and not abs(intercept) <= INTERCEPT_MAX:
        return "implausible slope or intercept"
    return ""


def _is_cut(dataset: FileDataset) -> bool:
    """Whether the file ends within the value of its last element."""
    if not len(dataset):
        return True
    last = dataset.get_item(max(dataset.keys()), keep_deferred=True)
    length = getattr(last, "length", UNDEFINED_LENGTH)
    return length <= LONGEST_VALUE and len(last.value or b"") < length


def _text(dataset: FileDataset, keyword: str) -> str:
    value = dataset.get(keyword)
    return "" if value is None else str(value).strip(" \0")


def _integer(dataset: FileDataset, keyword: str) -> int | None:
    value = dataset.get(keyword)
    if value is None or value == "":
        return None
    if not 0 <= int(value) < 1 << 31:
        raise ValueError(f"{keyword} out of range")
    return int(value)


def _number(dataset: FileDataset, keyword: str) -> float | None:
    value = dataset.get(keyword)
    return None if value is None or value == "" else float(value)


def _numbers(dataset: FileDataset, keyword: str, count: int) -> list[float] | None:
    """None where they are not `count` finite numbers: an image can do without a place."""
    try:
        values = [float(value) for value in dataset.get(keyword) or ()]
    except (ValueError, TypeError):
        return None
    return values if len(values) == count and all(map(math.isfinite, values)) else None
