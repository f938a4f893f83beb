"""The header pass: one file -> one row of the manifest. A file is what its header says, never what its name says.

Free text is never copied: identifiers are hashed, and modality and photometric interpretation are kept only where
they are of a fixed list.
"""

import hashlib
import math
import re
import warnings
import zlib
from pathlib import Path

import pyarrow as pa
from dicom_hu import PIXEL_DATA, SYNTAXES, UNDEFINED_LENGTH, Unusable, read_dataset
from pydicom.dataset import FileDataset
from pydicom.uid import MediaStorageDirectoryStorage

from archive.listing import Entry, open_entry

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
    ]
)
COLUMNS = tuple(SCHEMA.names)

IMAGE, OTHER, REJECTED = "image", "other", "rejected"

# Modality (0008,0060) of what lies beside CT images and is none. Any other modality becomes "another modality".
OTHER_MODALITIES = ("RTSTRUCT", "RTPLAN", "RTDOSE", "RTRECORD", "RTIMAGE", "SEG", "REG", "SR", "PR", "KO", "MR", "PT")

OTHER_REASONS = (*OTHER_MODALITIES, "another modality", "DICOMDIR", "localizer", "secondary capture", "side file")
REJECTED_REASONS = (
    "empty file",
    "unreadable",
    "damaged zip",
    "not DICOM",
    "truncated file",
    "damaged header",
    "no modality",
    "no patient",
    "patient of another collection",
    "multi-frame",
    "colour",
    "no pixel data",
    "incomplete image header",
    "implausible size",
    "unsupported bits",
    "unsupported transfer syntax",
    "pixel data and transfer syntax disagree",
    "implausible slope or intercept",
    "modality LUT",
)
"""What this pass gives as `reason`, beside the `problem` of the listing."""

# Names of files that come with the collections and are no DICOM. Only asked of a file that is not DICOM.
SIDE_SUFFIXES = (
    *(".csv", ".tsv", ".xls", ".xlsx", ".nii", ".nii.gz", ".txt", ".json", ".xml", ".md", ".pdf", ".html", ".log"),
    *(".tcia", ".md5", ".sha256"),
)
SIDE_NAMES = ("license", "readme", ".ds_store", "thumbs.db")

PATIENT_PATTERNS = {"ich": re.compile(r"ID_[0-9a-f]+"), "radcure": re.compile(r"RADCURE-\d{4}")}
PHOTOMETRIC_GREY = ("MONOCHROME1", "MONOCHROME2")
SIDE_MIN, SIDE_MAX = 16, 4096  # pixels; the collections hold 334 to about 1024
BITS_STORED_MIN = 9  # below, decoders return bytes, and HU do not fit
SLOPE_MAX, INTERCEPT_MAX = 100.0, 65536.0
UID = re.compile(r"[0-9.]{1,64}")
SECONDARY_CAPTURE = "1.2.840.10008.5.1.4.1.1.7"  # and, with a further number, its multi-frame kinds


def pseudonym(source: str, kind: str, value: str) -> str:
    """`kind` is patient, study, series or sop. Whoever can list the identifiers of a collection can invert it."""
    return f"{source}-{hashlib.sha256(f'{source}:{kind}:{value}'.encode()).hexdigest()[:16]}"


def read_header(root: Path, entry: Entry) -> dict:
    """A row of SCHEMA. No content of a file makes it raise; MemoryError does."""
    row = dict.fromkeys(COLUMNS)
    row.update(source=entry.source, path=entry.path, member=entry.member, size=entry.size)
    row["status"], row["reason"] = _examine(root, entry, row)
    return row


def _examine(root: Path, entry: Entry, row: dict) -> tuple[str, str]:
    """Fill `row` as far as the file says; returns status and reason."""
    if entry.problem:
        return REJECTED, entry.problem
    no_dicom = (OTHER, "side file") if _is_side_file(entry.member or entry.path) else (REJECTED, "not DICOM")
    if entry.size == 0:
        return (REJECTED, "empty file") if no_dicom[0] == REJECTED else no_dicom
    try:
        file = open_entry(root, entry)
    except MemoryError:
        raise
    except Exception:  # zipfile raises six kinds
        return REJECTED, "damaged zip" if entry.member else "unreadable"
    with file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # they quote the text of tags
        bare = True
        try:
            bare = file.read(132)[128:] != b"DICM"
            file.seek(0)
            dataset, pixels = read_dataset(file, with_pixels=False)
            if bare and not _makes_sense(dataset, pixels):
                return no_dicom
            cut = pixels is None and _is_cut(dataset)  # asked first: to look at a value is to lose its length
            _fill(row, dataset)
            return _judge(row, dataset, pixels, cut)
        except MemoryError:
            raise
        except Exception as error:  # a damaged header makes pydicom raise nearly anything
            reason = _reason(error)
    return no_dicom if bare and reason != "unreadable" else (REJECTED, reason)


def _reason(error: Exception) -> str:
    if isinstance(error, Unusable):
        return error.reason
    if isinstance(error, OSError):  # pydicom raises it, without a number, at the end of a cut sequence
        return "truncated file" if error.errno is None else "unreadable"
    # zlib: the deflated transfer syntax
    return "truncated file" if isinstance(error, EOFError | zlib.error) else "damaged header"


def _is_side_file(path: str) -> bool:
    name = path.rsplit("/", 1)[-1].lower()
    return name.endswith(SIDE_SUFFIXES) or name in SIDE_NAMES


def _makes_sense(dataset: FileDataset, pixels: tuple[int, int] | None) -> bool:
    """Whether a file without the DICOM preamble was DICOM all the same."""
    modality = dataset.get("Modality")
    if modality in OTHER_MODALITIES:
        return True
    return modality == "CT" and pixels is not None and bool(dataset.get("Rows")) and bool(dataset.get("Columns"))


def _fill(row: dict, dataset: FileDataset) -> None:
    source = row["source"]
    study = _text(dataset, "StudyInstanceUID")
    patient = _text(dataset, "PatientID") or (study if source == "cspine" else "")
    series, sop = _text(dataset, "SeriesInstanceUID"), _text(dataset, "SOPInstanceUID")
    for kind, value in (("patient", patient), ("study", study), ("series", series), ("sop", sop)):
        row[kind] = pseudonym(source, kind, value) if value else None
    modality, photometric = _text(dataset, "Modality"), _text(dataset, "PhotometricInterpretation")
    row["modality"] = modality if modality == "CT" or modality in OTHER_MODALITIES else None
    row["photometric"] = photometric if photometric in PHOTOMETRIC_GREY else None
    syntax = str(dataset.file_meta.TransferSyntaxUID)
    row["transfer_syntax"] = syntax if UID.fullmatch(syntax) else None
    row["rows"], row["cols"] = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    row["bits_allocated"], row["bits_stored"] = _integer(dataset, "BitsAllocated"), _integer(dataset, "BitsStored")
    row["pixel_representation"] = _integer(dataset, "PixelRepresentation")
    row["position"] = _numbers(dataset, "ImagePositionPatient", 3)
    row["orientation"] = _numbers(dataset, "ImageOrientationPatient", 6)
    spacing = _numbers(dataset, "PixelSpacing", 2)
    row["spacing_xy_mm"] = spacing[0] if spacing and spacing[0] > 0 else None


def _judge(row: dict, dataset: FileDataset, pixels: tuple[int, int] | None, cut: bool) -> tuple[str, str]:
    """Status and reason; `pixels` is the tag and the length of the pixel data, `cut` whether the file ends early."""
    if dataset.file_meta.get("MediaStorageSOPClassUID") == MediaStorageDirectoryStorage:
        return OTHER, "DICOMDIR"
    modality = _text(dataset, "Modality")
    if modality in OTHER_MODALITIES:
        return OTHER, modality
    if cut:
        return REJECTED, "truncated file"
    if not modality:
        return REJECTED, "no modality"
    if modality != "CT":
        return OTHER, "another modality"
    if "LOCALIZER" in _text(dataset, "ImageType").upper():
        return OTHER, "localizer"
    if f"{_text(dataset, 'SOPClassUID')}.".startswith(f"{SECONDARY_CAPTURE}."):
        return OTHER, "secondary capture"
    reason = (
        _fault_of_patient(row["source"], _text(dataset, "PatientID"), row["patient"])
        or _fault_of_image(row, dataset, pixels)
        or _fault_of_rescale(row, dataset)
    )
    return (REJECTED, reason) if reason else (IMAGE, "")


def _fault_of_patient(source: str, patient_id: str, patient: str | None) -> str:
    if patient is None:
        return "no patient"
    pattern = PATIENT_PATTERNS.get(source)
    return "patient of another collection" if pattern and not pattern.fullmatch(patient_id) else ""


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
    if SYNTAXES[row["transfer_syntax"]].compressed != (pixels[1] == UNDEFINED_LENGTH):
        return "pixel data and transfer syntax disagree"
    return ""


def _fault_of_rescale(row: dict, dataset: FileDataset) -> str:
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
    last = dataset.get_item(max(dataset.keys()))
    length = getattr(last, "length", UNDEFINED_LENGTH)
    return length != UNDEFINED_LENGTH and len(last.value or b"") < length


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
