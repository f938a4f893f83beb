"""Hand-made CT: DICOM slices written by pydicom, and a small store."""

from pathlib import Path

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian
from write_store import write

from gcond.data.store import SPLITS


def _write_slice(path: Path, stored: np.ndarray, slope=1, intercept=-1024, height_mm=0.0, **tags) -> Path:
    """`stored` [R, C] uint16 or int16; `tags` replace or, where None, remove what a header has."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID = CTImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID = "1.2.3.4.5"
    dataset.Modality = "CT"
    dataset.SeriesInstanceUID = "1.2.3.4"
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [0, 0, height_mm]
    dataset.PixelSpacing = [0.5, 0.5]
    dataset.Rows, dataset.Columns = stored.shape
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 16
    dataset.HighBit = 15
    dataset.PixelRepresentation = int(stored.dtype.kind == "i")
    dataset.RescaleSlope, dataset.RescaleIntercept = slope, intercept
    dataset.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    for tag, value in tags.items():
        if value is None:
            delattr(dataset, tag)
        else:
            setattr(dataset, tag, value)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture(scope="session")
def write_slice():
    return _write_slice


def small_rows(split_of_patient: dict[str, str]) -> dict[str, dict[str, list]]:
    """Two slices for each patient: constant pictures of HU + 1024 = 1000, 1001, 1002, ..."""
    rows = {split: {} for split in SPLITS}
    for p, (patient, split) in enumerate(split_of_patient.items()):
        for z in range(2):
            row = {
                "pixels": np.full((256, 256), 1000 + 2 * p + z, "<u2").tobytes(),
                "source": "made",
                "patient": patient,
                "z": z,
                "rows": 300,
                "cols": 400,
                "spacing_z_mm": 2.5,
                "spacing_xy_mm": 0.5,
            }
            for column, value in row.items():
                rows[split].setdefault(column, []).append(value)
    return rows


@pytest.fixture
def small_store(tmp_path: Path) -> Path:
    """Patients a, b (train: 1000..1003), c (validation: 1004, 1005) and d (test: 1006, 1007)."""
    split_of_patient = {"a": "train", "b": "train", "c": "validation", "d": "test"}
    about = {
        "title": "CT (made)",
        "patients": {patient: {"split": split} for patient, split in split_of_patient.items()},
        "missing_packages": ["absent"],
    }
    write(tmp_path / "ct", small_rows(split_of_patient), about)
    return tmp_path / "ct"
