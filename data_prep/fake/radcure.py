"""RADCURE in its three layouts: NBIA Data Retriever, the new TCIA Data Retriever, a zip a patient."""

import csv
import hashlib
import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydicom.uid import CTImageStorage, RTStructureSetStorage

from fake import coding
from fake.coding import Coding
from fake.counts import Counts
from fake.dicom_file import dataset_bytes, slice_bytes
from fake.names import generator, uid
from fake.phantom import Head

CODINGS = (coding.UNSIGNED_12, coding.SIGNED_16_PADDED)
LICENCE_TEXT = "Made pictures. No patient is behind them.\n"
MANIFEST = "manifest-1734566400000"


class Series(NamedTuple):
    patient: str
    study: str
    uid: str
    modality: str
    description: str
    files: tuple[bytes, ...]


def write_radcure(
    root: Path, patients: int, seed=0, size=512, slices=(40, 80), done: Callable[[], object] = lambda: None
) -> Counts:
    """Patients take the three layouts in turn. The real ones hold about 183 slices; for that, slices=(120, 250).

    Each has a CT and an RTSTRUCT, every fourth a localizer as well.
    """
    if patients > 9999:
        raise ValueError(f"`patients` must be at most 9999, as the ids have four digits; found {patients}")
    counts = Counts(patients=patients)
    layouts = (_write_nbia, _write_tcia, _write_zip)
    listed: dict[Path, list] = {}
    for p in range(patients):
        series = _patient(seed, p, size, slices, counts)
        layouts[p % 3](root, p, series, listed, counts)
        done()
    for path, rows in listed.items():
        path.write_text(_csv([["Series UID", "Collection", "Subject ID", "Modality", "Number of Images"], *rows]))
        counts.others["side file: table"] += 1
    return counts


def _patient(seed: int, p: int, size: int, slices: tuple[int, int], counts: Counts) -> list[Series]:
    rng = generator(seed, "radcure", p)
    kind = CODINGS[p // 3 % 2]
    head = Head(rng, (size, size), int(rng.integers(slices[0], slices[1] + 1)), share=0.55, couch=True)
    axial = {"ImageType": ["ORIGINAL", "PRIMARY", "AXIAL"], "PixelPaddingValue": kind.padding}
    images = [
        _slice(seed, p, "Helical Axial", z, kind, head.hu(z), ImagePositionPatient=[-250, -250, 2.0 * z], **axial)
        for z in range(head.slices)
    ]
    for _ in images:
        counts.note_image(head.shape)
    made = [_series(seed, p, "CT", "Helical Axial", images), _series(seed, p, "RTSTRUCT", "RTS", [_contours(seed, p)])]
    counts.others["RTSTRUCT"] += 1
    if p % 4 == 1:
        sideways = {"ImageType": ["ORIGINAL", "PRIMARY", "LOCALIZER"], "ImageOrientationPatient": [1, 0, 0, 0, 0, -1]}
        made.append(_series(seed, p, "CT", "Scout", [_slice(seed, p, "Scout", 0, kind, head.hu(0), **sideways)]))
        counts.others["localizer"] += 1
    return made


def _series(seed: int, p: int, modality: str, description: str, files: list[bytes]) -> Series:
    tags = _tags(seed, p, description)
    return Series(
        tags["PatientID"], tags["StudyInstanceUID"], tags["SeriesInstanceUID"], modality, description, tuple(files)
    )


def _slice(seed: int, p: int, description: str, z: int, kind: Coding, hu: np.ndarray, **tags) -> bytes:
    return slice_bytes(
        kind.stored(hu),
        SOPClassUID=CTImageStorage,
        SOPInstanceUID=uid(seed, "radcure", p, description, z),
        InstanceNumber=z + 1,
        SliceThickness=2.0,
        PixelSpacing=[round(500 / len(hu), 6)] * 2,
        Manufacturer="Made",
        **_tags(seed, p, description),
        **kind.tags(),
        **tags,
    )


def _contours(seed: int, p: int) -> bytes:
    header = {
        "SOPClassUID": RTStructureSetStorage,
        "SOPInstanceUID": uid(seed, "radcure", p, "contours"),
        "Modality": "RTSTRUCT",
        "StructureSetLabel": "RTstruct",
        **_tags(seed, p, "RTS"),
    }
    return dataset_bytes(header, sop_class=RTStructureSetStorage)


def _tags(seed: int, p: int, description: str) -> dict:
    """What the files of a series have in common. The name and the description are free text, not to be copied."""
    return {
        "PatientID": f"RADCURE-{p + 1:04d}",
        "PatientName": "Made^Up",
        "StudyInstanceUID": uid(seed, "radcure study", p),
        "SeriesInstanceUID": uid(seed, "radcure", p, description),
        "SeriesDescription": description,
        "StudyDate": "20100101",
        "FrameOfReferenceUID": uid(seed, "radcure frame", p),
    }


def _write_nbia(root: Path, p: int, series: list[Series], listed: dict[Path, list], counts: Counts) -> None:
    """manifest-*/RADCURE/<patient>/<date-study>/<number-description-uid5>/<acquisition>-<instance>.dcm"""
    for number, one in enumerate(series, 1):
        _note(listed, root / MANIFEST / "metadata.csv", one)
        folder = root / MANIFEST / "RADCURE" / _nbia_folder(number, one)
        folder.mkdir(parents=True)
        digits = max(len(str(len(one.files))), 3) if one.modality == "CT" else 1
        for instance, content in enumerate(one.files, 1):
            (folder / f"1-{instance:0{digits}d}.dcm").write_bytes(content)
        (folder / "LICENSE").write_text(LICENCE_TEXT)
        counts.others["side file: text"] += 1


def _write_tcia(root: Path, p: int, series: list[Series], listed: dict[Path, list], counts: Counts) -> None:
    """<patient>/<study>/<series>/… and, for every other patient, <series>/… ; the sums lie beside the files."""
    for one in series:
        _note(listed, root / "metadata.csv", one)
        folder = root / one.uid if p % 2 else root / one.patient / one.study / one.uid
        folder.mkdir(parents=True)
        sums = [["Filename", "MD5"]]
        for instance, content in enumerate(one.files, 1):
            name = f"{instance:08d}.dcm"
            (folder / name).write_bytes(content)
            sums.append([name, hashlib.md5(content).hexdigest()])
        (folder / "md5hashes.csv").write_text(_csv(sums))
        counts.others["side file: table"] += 1


def _write_zip(root: Path, p: int, series: list[Series], listed: dict[Path, list], counts: Counts) -> None:
    """<patient>.zip, with entries for its folders, as `zip -r` makes it."""
    root.mkdir(parents=True, exist_ok=True)
    counts.zips += 1
    with zipfile.ZipFile(root / f"{series[0].patient}.zip", "w") as archive:
        for number, one in enumerate(series, 1):
            folder = _nbia_folder(number, one)
            archive.writestr(_zip_entry(f"{folder}/"), b"")
            for instance, content in enumerate(one.files, 1):
                archive.writestr(_zip_entry(f"{folder}/1-{instance:03d}.dcm"), content, compresslevel=1)


def _zip_entry(name: str) -> zipfile.ZipInfo:
    """One date for all: the bytes depend on the seed alone."""
    entry = zipfile.ZipInfo(name, (2024, 12, 19, 0, 0, 0))
    entry.compress_type = zipfile.ZIP_STORED if entry.is_dir() else zipfile.ZIP_DEFLATED
    return entry


def _nbia_folder(number: int, one: Series) -> str:
    description = f"{number}.000000-{one.description}-{one.uid[-5:]}"
    return f"{one.patient}/01-01-2010-NA-RT SIMULATION-{one.study[-5:]}/{description}"


def _note(listed: dict[Path, list], path: Path, one: Series) -> None:
    row = [one.uid, "RADCURE", one.patient, one.modality, len(one.files)]
    listed.setdefault(path, []).append(row)


def _csv(rows: list[list]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
