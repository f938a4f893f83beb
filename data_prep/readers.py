"""CT volumes from DICOM folders, NIfTI files and tables of open-kbp, all in one orientation.

HU [slices, rows, columns]: slices from feet to head, rows from front to back, columns from the patient's right to left,
as a radiologist sees an axial slice.
"""

import zlib
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pydicom
from dicom_hu import Unusable, padding, read_dataset, stored_values, to_hu
from nibabel.filebasedimages import ImageFileError
from pyarrow import csv
from pydicom.errors import InvalidDicomError
from write_store import BODY_HU

AXIAL = (1, 0, 0, 0, 1, 0)

KBP_FILES = ("ct.csv", "voxel_dimensions.csv")
KBP_COLUMNS = csv.ConvertOptions(column_types={"": pa.int64(), "data": pa.float64()})
KBP_SIDE = 128
KBP_AIR = 1000  # HU are the tables' values less this
KBP_STEP = 2
KBP_BODY_SHARE = 0.03
KBP_CROP_MM = 300
KBP_COMMONNESS = 4  # how strongly the crop prefers what is body in many slices, head and neck, to shoulders


@dataclass(frozen=True)
class Volume:
    """`hu` [Z, R, C] float32, unclipped. `passed_over` counts the files of a folder that are no CT image, by kind,
    `flags` the slices that are unusual (dicom_hu.to_hu)."""

    hu: np.ndarray
    spacing_z_mm: float
    spacing_xy_mm: float
    passed_over: Counter = field(default_factory=Counter)
    flags: Counter = field(default_factory=Counter)


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
    slices = [read_dicom_slice(path) for path, _ in images]
    flags = Counter(flag for _, found in slices for flag in found)
    hu = np.stack([hu for hu, _ in slices])
    return Volume(hu, float(np.median(gaps_mm)), float(images[0][1].PixelSpacing[0]), passed_over, flags)


def read_dicom_slice(path: Path) -> tuple[np.ndarray, set[str]]:
    """HU [R, C] and flags as dicom_hu.to_hu gives them, for samples as for archives.

    Raises ValueError without slope and intercept, for colour or several frames, and for pixels that dicom_hu refuses.
    """
    with open(path, "rb") as file:
        dataset, _ = read_dataset(file, with_pixels=True)
    missing = [name for name in ("RescaleSlope", "RescaleIntercept") if name not in dataset]
    if missing:
        raise ValueError(f"{path}: no {' and no '.join(missing)}")
    if dataset.SamplesPerPixel != 1 or int(dataset.get("NumberOfFrames", 1)) != 1:
        raise ValueError(f"{path}: not one grey frame")
    try:
        return to_hu(stored_values(dataset), dataset.RescaleSlope, dataset.RescaleIntercept, padding(dataset))
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from error


def read_nifti(path: Path) -> Volume:
    """A NIfTI file in HU. Canonical axes run to the right, front and head; a picture's columns and rows run against.

    Raises ValueError for a damaged file.
    """
    try:
        image = nibabel.as_closest_canonical(nibabel.load(path))
        hu = image.get_fdata(dtype=np.float32)[::-1, ::-1, :].transpose(2, 1, 0)
    except (ImageFileError, EOFError, OSError, zlib.error) as error:
        raise ValueError(f"{path}: damaged NIfTI file: {error}") from error
    spacing_x_mm, _, spacing_z_mm = image.header.get_zooms()[:3]
    return Volume(hu, float(spacing_z_mm), float(spacing_x_mm))


def read_openkbp(folder: Path) -> Volume:
    """A patient's folder of open-kbp: a square of 300 mm around head and neck, and every second slice from the first to
    the last that shows a body (3 % above -500 HU).

    `ct.csv` lists index and value, HU + 1000, of the voxels above 0 of an array of 128 x 128 x 128, [rows from front to
    back, columns from right to left, slices from head to feet]; `voxel_dimensions.csv` holds mm along these axes.
    Raises ValueError that names the file where it is damaged or shows no body.
    """
    table, sizes = (folder / name for name in KBP_FILES)
    hu = _dense(table) - KBP_AIR
    try:
        _, column_mm, slice_mm = np.loadtxt(sizes)
    except ValueError as error:
        raise ValueError(f"{sizes}: expected three lengths in mm: {error}") from error
    body = hu > BODY_HU
    shown = np.flatnonzero(body.mean((0, 1)) >= KBP_BODY_SHARE)
    if not len(shown):
        raise ValueError(f"{table}: no slice is body to {KBP_BODY_SHARE:.0%}")
    taken = slice(shown[0], shown[-1] + 1, KBP_STEP)
    rows, columns = _common_square(body[:, :, taken], round(KBP_CROP_MM / column_mm))
    cropped = hu[rows, columns, taken].transpose(2, 0, 1)[::-1]
    return Volume(cropped.astype(np.float32), KBP_STEP * float(slice_mm), float(column_mm))


def _dense(path: Path) -> np.ndarray:
    """[128, 128, 128] int32 of a sparse table; 0 where it names no value."""
    try:
        index, values = (column.to_numpy() for column in csv.read_csv(path, convert_options=KBP_COLUMNS).columns)
        if (np.diff(index, prepend=-1) <= 0).any() or (values != np.rint(values)).any():
            raise ValueError("indices that do not rise from 0, or values that are not whole")
        dense = np.zeros(KBP_SIDE**3, np.int32)
        dense[index] = values
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: expected rows of index,value below {KBP_SIDE}^3: {error}") from error
    return dense.reshape(KBP_SIDE, KBP_SIDE, KBP_SIDE)


def _common_square(body: np.ndarray, side: int) -> tuple[slice, slice]:
    """Rows and columns of the square inside `body` [R, C, Z] around the pixels that are body in most slices."""
    commonness = body.mean(2) ** KBP_COMMONNESS
    places = []
    for axis, length in enumerate(commonness.shape):
        middle = round(np.average(np.arange(length), weights=commonness.sum(1 - axis)))
        first = min(max(middle - side // 2, 0), max(length - side, 0))
        places.append(slice(first, first + side))
    return places[0], places[1]


READERS = {"dicom": read_dicom_folder, "nifti": read_nifti, "openkbp": read_openkbp}
