"""A small CT store."""

from pathlib import Path

import numpy as np
import pytest
from write_store import write

from gcond.data.store import SPLITS


@pytest.fixture
def small_store(tmp_path: Path) -> Path:
    """Patients a, b (train), c (validation) and d (test), constant slices: 1000, 1001, ... 1007."""
    slices = [
        {
            **{"split": SPLITS[max(0, p - 1)], "patient": "abcd"[p], "source": "made", "z": z},
            **{"pixels": np.full((256, 256), 1000 + 2 * p + z, "<u2").tobytes(), "spacing_z_mm": 2.5},
        }
        for p in range(4)
        for z in range(2)
    ]
    write(tmp_path / "ct", slices, {"title": "CT (made)", "missing_packages": ["absent"]})
    return tmp_path / "ct"
