"""CT volumes from DICOM folders, NIfTI files and InVesalius projects, all in one orientation.

HU [slices, rows, columns]: slices from feet to head, rows from front to back, columns from the patient's right to left,
as a radiologist sees an axial slice.
"""

import plistlib
import tarfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pydicom
from dicom_hu import hounsfield, read_dataset, stored_values
from pydicom.errors import InvalidDicomError

AXIAL = (1, 0, 0, 0, 1, 0)


@dataclass(frozen=True)
class Volume:
    """`hu` [Z, R, C] float32, unclipped. `passed_over` counts the files of a folder that are no CT image, by kind."""

    hu: np.ndarray
    spacing_z_mm: float
    spacing_xy_mm: float
    passed_over: Counter = field(default_factory=Counter)


def read_dicom_folder(folder: Path) -> Volume:
    """One axial CT series; whatever else lies in the folder is known by its header and counted, not read.

    Slices are ordered by position (0020,0032) along the normal, never by file name. Raises ValueError where there is
    no CT image, more than one series, another orientation, or two slices in one place.
    """
    images, passed_over = [], Counter()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True)
        except InvalidDicomError:
            passed_over["not DICOM"] += 1
            continue
        if header.get("Modality") == "CT":
            images.append((path, header))
        else:
            passed_over[str(header.get("Modality"))] += 1
    if not images:
        raise ValueError(f"{folder}: no CT image among {sum(passed_over.values())} files")
    if len({header.SeriesInstanceUID for _, header in images}) != 1:
        raise ValueError(f"{folder}: more than one series")
    for path, header in images:
        if not np.allclose(header.ImageOrientationPatient, AXIAL, atol=1e-3):
            raise ValueError(f"{path}: not axial, ImageOrientationPatient is {header.ImageOrientationPatient}")
    images.sort(key=lambda image: float(image[1].ImagePositionPatient[2]))
    heights_mm = np.array([float(header.ImagePositionPatient[2]) for _, header in images])
    gaps_mm = np.diff(heights_mm)
    if (gaps_mm <= 0).any():
        raise ValueError(f"{folder}: two slices in one place")
    hu = np.stack([read_dicom_slice(path) for path, _ in images])
    return Volume(hu, float(np.median(gaps_mm)), float(images[0][1].PixelSpacing[0]), passed_over)


def read_dicom_slice(path: Path) -> np.ndarray:
    """HU [R, C] = stored value * slope (0028,1053) + intercept (0028,1052), in float32, unclipped.

    Compressed pixels are decoded by GDCM only: the other plugins return a damaged stream without an error. Raises
    ValueError without slope and intercept, for colour or several frames, and for pixels that dicom_hu refuses.
    """
    with open(path, "rb") as file:
        dataset, _ = read_dataset(file, with_pixels=True)
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if name not in dataset]
    if missing:
        raise ValueError(f"{path}: no {' and no '.join(missing)}")
    if dataset.SamplesPerPixel != 1 or int(dataset.get("NumberOfFrames", 1)) != 1:
        raise ValueError(f"{path}: not one grey frame")
    return hounsfield(stored_values(dataset), dataset.RescaleSlope, dataset.RescaleIntercept)


def read_nifti(path: Path) -> Volume:
    """A NIfTI file in HU. Canonical axes run to the right, front and head; a picture's columns and rows run against."""
    image = nibabel.as_closest_canonical(nibabel.load(path))
    hu = image.get_fdata(dtype=np.float32)[::-1, ::-1, :].transpose(2, 1, 0)
    spacing_x_mm, _, spacing_z_mm = image.header.get_zooms()[:3]
    return Volume(hu, float(spacing_z_mm), float(spacing_x_mm))


def read_inv3(path: Path) -> Volume:
    """An InVesalius project: a tar with `main.plist` and the matrix of HU that it names, rows from back to front."""
    with tarfile.open(path) as project:
        member = {Path(name).name: name for name in project.getnames()}
        facts = plistlib.load(project.extractfile(member["main.plist"]))
        matrix = facts["matrix"]
        raw = project.extractfile(member[matrix["filename"]]).read()
    hu = np.frombuffer(raw, np.dtype(matrix["dtype"]).newbyteorder("<")).reshape(matrix["shape"])
    spacing_x_mm, _, spacing_z_mm = facts["spacing"]
    return Volume(hu[:, ::-1].astype(np.float32), spacing_z_mm, spacing_x_mm)


READERS = {"dicom": read_dicom_folder, "nifti": read_nifti, "inv3": read_inv3}
