"""A small CT store."""

from pathlib import Path

import numpy as np
import pytest
from write_store import write

from gcond.data.store import SPLITS


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
