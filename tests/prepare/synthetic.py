"""Synthetic CT archives in the layouts of RSNA ICH, RSNA cervical spine and RADCURE; no patient is in them.

    python tests/prepare/synthetic.py OUT     12 patients of each collection, to rehearse data_prep/ct.py

A head is a few ellipses in noise. Everything follows from names and seeds, so that an archive is the same bytes again.
"""

import io
import math
import sys
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

import gdcm
import nibabel
import numpy as np
import pydicom
from pydicom import config, uid
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.encaps import encapsulate

SOURCES = ("ich", "cspine", "radcure")
SYNTAXES = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "jpeg lossless 57": uid.JPEGLossless,
    "jpeg lossless 70": uid.JPEGLosslessSV1,
    "jpeg-ls": uid.JPEGLSLossless,
    "jpeg 2000": uid.JPEG2000Lossless,
    "rle": uid.RLELossless,
}
DEFAULTS = {
    "Modality": "CT",
    "PatientID": "ID_00000001",
    "StudyInstanceUID": "1.2.3",
    "SeriesInstanceUID": "1.2.3.4",
    "SOPInstanceUID": "1.2.3.4.5",
    "ImagePositionPatient": [0, 0, 0],
    "ImageOrientationPatient": [1, 0, 0, 0, 1, 0],
    "PixelSpacing": [0.5, 0.5],
    "SamplesPerPixel": 1,
    "PhotometricInterpretation": "MONOCHROME2",
    "BitsAllocated": 16,
    "RescaleSlope": 1,
    "RescaleIntercept": -1024,
}
PADDING = ("PixelPaddingValue", "PixelPaddingRangeLimit")  # of the sign that the number has
LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")

# One slice


def head(patient: int, z: int = 0, slices: int = 10, shape: tuple[int, int] = (64, 64)) -> np.ndarray:
    """HU [R, C] int16 of slice `z` of `slices`, the skull's base first: scalp, skull, brain and air, with noise."""
    of_patient, of_slice = np.random.default_rng([patient]), np.random.default_rng([patient, z])
    y, x = np.ogrid[: shape[0], : shape[1]]
    radii = of_patient.uniform((0.38, 0.30), (0.43, 0.35)) * min(shape) * math.sqrt(1 - (0.97 * z / slices) ** 2)
    away = np.hypot((y - shape[0] / 2) / radii[0], (x - shape[1] / 2) / radii[1])
    skull, brain = of_patient.integers(900, 1450), of_patient.integers(20, 41)
    hu = np.select([away < 0.87, away < 1, away < 1.05], [brain, skull, -20], -1000)
    return (hu + np.rint(of_slice.normal(0, 7, shape))).astype(np.int16)


def coded(
    hu: np.ndarray, bits=12, signed=False, intercept=-1024, padding=None, wrapped=False
) -> tuple[np.ndarray, dict]:
    """Stored values and their tags; `padding` stands outside the circle of the scan. `wrapped`: modulo 4096, as in the
    group of RSNA ICH whose intercept is wrong."""
    tags = {"BitsStored": bits, "RescaleIntercept": intercept}
    if wrapped:
        return (hu & 4095).astype(np.uint16), tags
    low = -(1 << bits - 1) if signed else 0
    stored = np.clip(hu.astype(int) - intercept, low, low + (1 << bits) - 1)
    if padding is not None:
        y, x = (np.arange(side) - (side - 1) / 2 for side in hu.shape)
        stored[np.hypot(y[:, None], x) > max(hu.shape) / 2] = padding
    return stored.astype(np.int16 if signed else np.uint16), tags


CODINGS = (  # of ICH, dealt in turn
    {},
    {"bits": 16, "signed": True, "padding": -2000},
    {"wrapped": True, "intercept": 0},
    {"signed": True, "intercept": 0},
    {"wrapped": True, "intercept": 1},
    {"intercept": -1000},
)
SIGNED = {"bits": 16, "signed": True}


def slice_bytes(stored: np.ndarray, syntax: str = "explicit", **tags) -> bytes:
    """A DICOM file of `stored` [R, C] uint16 or int16. A tag replaces that of DEFAULTS; None removes it."""
    bits = tags.get("BitsStored") or 16
    header = DEFAULTS | {"Rows": stored.shape[0], "Columns": stored.shape[1], "BitsStored": bits, "HighBit": bits - 1}
    header |= {"PixelRepresentation": int(stored.dtype.kind == "i")} | tags
    if "PixelData" not in tags:
        if SYNTAXES[syntax].is_encapsulated:
            header["PixelData"] = encapsulate([encode(stored, bits, SYNTAXES[syntax])])
        else:
            order = "<" if SYNTAXES[syntax].is_little_endian else ">"
            header["PixelData"] = stored.astype(stored.dtype.newbyteorder(order)).tobytes()
    return dataset_bytes(header, syntax)


def dataset_bytes(header: dict, syntax: str = "explicit", sop_class: str = uid.CTImageStorage) -> bytes:
    """A DICOM file of the tags that are not None. Nothing is validated: real archives hold UIDs that are none."""
    file, meta = io.BytesIO(), FileMetaDataset()
    with config.disable_value_validation():
        meta.TransferSyntaxUID, meta.MediaStorageSOPClassUID = SYNTAXES[syntax], sop_class
        meta.MediaStorageSOPInstanceUID = "1.2.3"
        dataset = FileDataset("", {}, preamble=bytes(128), file_meta=meta)
        for keyword, value in header.items():
            if keyword == "PixelData" and value is not None:
                dataset.add_new(keyword, "OW", value)
                dataset[keyword].is_undefined_length = SYNTAXES[syntax].is_encapsulated
            elif keyword in PADDING and value is not None:
                dataset.add_new(keyword, "SS" if value < 0 else "US", value)
            elif value is not None:
                setattr(dataset, keyword, value)
        pydicom.dcmwrite(file, dataset, enforce_file_format=True)
    return file.getvalue()


def encode(stored: np.ndarray, bits: int, syntax: uid.UID) -> bytes:
    """The compressed stream of one frame, by GDCM."""
    writer = gdcm.ImageWriter()  # owns the image
    image = writer.GetImage()
    image.SetNumberOfDimensions(2)
    image.SetDimensions((stored.shape[1], stored.shape[0], 1))
    image.SetPhotometricInterpretation(gdcm.PhotometricInterpretation(gdcm.PhotometricInterpretation.MONOCHROME2))
    image.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.ImplicitVRLittleEndian))
    image.SetPixelFormat(gdcm.PixelFormat(1, 16, bits, bits - 1, int(stored.dtype.kind == "i")))
    element = gdcm.DataElement(gdcm.Tag(0x7FE0, 0x0010))
    element.SetByteStringValue(stored.astype(stored.dtype.newbyteorder("<")).tobytes())
    image.SetDataElement(element)
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(str(syntax))))
    change.SetInput(image)
    assert change.Change()
    fragments = change.GetOutput().GetDataElement().GetSequenceOfFragments()
    return fragments.GetFragment(0).GetByteValue().GetBuffer().encode("utf-8", "surrogateescape")


# Whole archives

Files = Iterator[tuple[str, bytes]]  # name, content; `a.zip!b` is the entry b of a.zip


def write_archives(out: Path, patients: int = 5, slices: int = 4, size: int = 64, twins: int = 0) -> None:
    """The folders `ich`, `cspine` and `radcure` of `out`; `twins` slices of ICH are two patients' alike."""
    for source, files in (("ich", partial(_ich, twins)), ("cspine", _cspine), ("radcure", _radcure)):
        _write(out / source, files(patients, slices, size))


def _write(root: Path, files: Iterable[tuple[str, bytes]]) -> None:
    for name, content in files:
        path, _, member = name.partition("!")
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        if member:
            with zipfile.ZipFile(root / path, "a", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr(zipfile.ZipInfo(member), content)
        else:
            (root / path).write_bytes(content)


def _csv(*rows: tuple) -> bytes:
    return "".join(",".join(map(str, row)) + "\n" for row in rows).encode()


def _slice(hu: np.ndarray, coding: dict, z_mm: float, syntax: str = "explicit", **tags) -> bytes:
    """A slice of a field of view of 250 mm."""
    stored, own = coded(hu, **coding)
    own |= {"ImagePositionPatient": [0, 0, z_mm], "PixelSpacing": [250 / len(hu)] * 2}
    return slice_bytes(stored, syntax, **own | tags)


def _ich(twins: int, patients: int, slices: int, size: int) -> Files:
    """Flat folders, the patient in the header alone, and each way to store HU; every third gantry is tilted."""
    folder, rows = "rsna-intracranial-hemorrhage-detection/" * 2, []
    for p, z in np.ndindex(patients, slices):
        name, of = f"ID_{zlib.crc32(repr((p, z)).encode()):09x}", 0 if p == 1 and z < twins else p
        tilt = 0.3 * (p % 3 == 0)
        tags = {"PatientID": f"ID_{zlib.crc32(repr((p,)).encode()):08x}", "SOPInstanceUID": name}
        tags |= {"StudyInstanceUID": f"ID_s{p}", "SeriesInstanceUID": f"ID_r{p}"}
        tags |= {"ImageOrientationPatient": [1, 0, 0, 0, math.cos(tilt), -math.sin(tilt)]}
        content = _slice(head(of, z, slices, (size, size)), CODINGS[of % len(CODINGS)], 5 * z, **tags)
        part = "test" if p % 7 == 1 else "train"
        yield f"{folder}stage_2_{part}/{name}.dcm", content
        if part == "train":
            found = [(p + z) % 7 == place for place in range(5)]
            rows += [(f"{name}_{label}", int(v)) for label, v in zip(LABELS, [*found, any(found)], strict=True)]
    yield f"{folder}stage_2_train.csv", _csv(("ID", "Label"), *rows, *rows[:24])  # Kaggle's repeats four slices
    yield f"{folder}stage_2_sample_submission.csv", _csv(("ID", "Label"), ("ID_1_any", 0.5))


def _cspine(patients: int, slices: int, size: int) -> Files:
    """A folder per study, files named by number from the head down, every other study JPEG lossless."""
    studies = [f"1.2.826.0.1.3680043.{10001 + 13 * p}" for p in range(patients)]
    for p, z in np.ndindex(patients, slices):
        study = studies[p]
        tags = {"PatientID": None if p % 4 == 2 else study[-5:], "SOPInstanceUID": f"{study}.1.{z + 1}"}
        tags |= {"StudyInstanceUID": study, "SeriesInstanceUID": f"{study}.1"}
        hu, syntax = head(1000 + p, z, slices, (size, size)), "jpeg lossless 70" if p % 2 else "explicit"
        yield f"train_images/{study}/{z + 1}.dcm", _slice(hu, SIGNED if p // 2 % 2 else {}, -z, syntax, **tags)
    yield f"segmentations/{studies[0]}.nii", nibabel.Nifti1Image(np.zeros((4, 4, 4), np.uint8), np.eye(4)).to_bytes()
    yield "train.csv", _csv(("StudyInstanceUID", "patient_overall"), *((study, 0) for study in studies))


def _radcure(patients: int, slices: int, size: int) -> Files:
    """The layouts of NBIA's and of TCIA's retriever, and a zip per patient, in turn; a CT and an RTSTRUCT each, every
    fourth a localizer."""
    for p in range(patients):
        patient = f"RADCURE-{p + 1:04}"
        layout = ("manifest/RADCURE/{0}/{1}", "{1}", "{0}.zip!{1}")[p % 3]
        known = {"PatientID": patient, "StudyInstanceUID": f"1.3.6.{p}", "PatientName": "Made^Up"}
        coding = SIGNED | {"padding": -2000} if p // 3 % 2 else {}
        for z in range(slices):
            tags = known | {"SeriesInstanceUID": f"1.3.6.{p}.1", "SOPInstanceUID": f"1.3.6.{p}.1.{z}"}
            tags |= {"PixelPaddingValue": coding.get("padding")}
            hu = head(2000 + p, z, slices, (size, size))
            yield layout.format(patient, f"ct/1-{p}-{z:03}.dcm"), _slice(hu, coding, 2 * z, **tags)
        if p % 4 == 1:
            tags |= {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "SOPInstanceUID": f"1.3.6.{p}.3"}
            yield layout.format(patient, f"scout/{p}.dcm"), _slice(hu, coding, 0, **tags)
        plan = known | {"Modality": "RTSTRUCT", "SeriesInstanceUID": f"1.3.6.{p}.2", "SOPInstanceUID": f"1.3.6.{p}.2.1"}
        yield layout.format(patient, f"plan/1-{p}.dcm"), dataset_bytes(plan, sop_class=uid.RTStructureSetStorage)
    yield "metadata.csv", _csv(("Series UID", "Collection"))
    yield "LICENSE", b"Synthetic pictures. No patient is behind them.\n"


# Files that are unlike the rest


def write_defects(root: Path, source: str) -> dict[str, str]:
    """A file of each status, flat in `root`; returns {path, or zip!entry: "stored", "other: ..." or "rejected: ..."}.

    Every single fault of a header or a picture is made in test_header.py and test_pixels.py.
    """
    patients = {"ich": ("ID_0badf11e", "ID_0badf11f"), "cspine": ("99999", "99998")}
    patients = patients.get(source, ("RADCURE-9999", "RADCURE-9998"))

    def make(place: int, p: int = 0, **tags) -> bytes:
        own = {"PatientID": patients[p], "StudyInstanceUID": f"1.9.{p}", "SeriesInstanceUID": f"1.9.{p}.1"}
        own |= {"SOPInstanceUID": f"1.9.{p}.1.{place}"}
        return _slice(head(3000 + SOURCES.index(source), place, 64), {}, place, **own | tags)

    files = {
        "duplicate_a.dcm": (make(0), "stored"),
        "duplicate_b.dcm": (make(0), "stored"),
        "twin_a.dcm": (make(1), "stored"),
        "twin_b.dcm": (make(1, 1), "stored"),
        "no_slope": (make(2, RescaleSlope=None), "stored"),
        "short.dcm": (make(3, PixelData=bytes(100)), "rejected: short pixel data"),
        "nobody.dcm": (make(4, PatientID="", StudyInstanceUID=""), "rejected: no patient"),
        "mip.dcm": (make(5, ImageType=["DERIVED", "SECONDARY", "AXIAL", "MIP"]), "other: derived picture"),
        "more.tar": (bytes(10240), "other: side file: archive"),
        "escape.zip!inside.dcm": (make(6), "stored"),
        "escape.zip!../evil.dcm": (make(7), "rejected: zip entry leaves its folder"),
    }
    _write(root, ((name, content) for name, (content, _) in files.items()))
    (root / "loop").symlink_to(".", target_is_directory=True)
    return {name: fate for name, (_, fate) in files.items()} | {"loop": "rejected: symlink loop"}


if __name__ == "__main__":
    if len(sys.argv) != 2 or Path(sys.argv[1]).exists():
        sys.exit(f"{__doc__}\nexpected one folder that does not exist yet, found {sys.argv[1:]}")
    write_archives(Path(sys.argv[1]), patients=12, slices=5)
    roots = " ".join(f"--{source} {sys.argv[1]}/{source}" for source in SOURCES)
    print(f"python data_prep/ct.py {roots} --out data/ct-synthetic")
