"""Small data."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(params=["jpeg", "parquet"])
def write_photos(request: pytest.FixtureRequest) -> Callable[..., Path]:
    """Grey pictures of two classes, as ImageNet-256 in one of its layouts: cats are bright, dogs are dark."""

    def jpeg(root: Path, classless: bool) -> Path:
        for split, count in (("train", 4), ("val", 6)):
            for place in range(count):
                name, level = (("cat", 200), ("dog", 50))[place % 3 == 0]
                folder = root / split if classless else root / split / name
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(folder / f"{place}.jpg")
        return root

    def parquet(root: Path, classless: bool) -> Path:
        import io

        import pyarrow as pa
        import pyarrow.parquet as pq

        (root / "data").mkdir()
        for split, count in (("train", 4), ("validation", 6)):
            names = [("cat", "dog")[place % 3 == 0] for place in range(count)]
            files = []
            for name in names:
                file = io.BytesIO()
                level = {"cat": 200, "dog": 50}[name]
                Image.fromarray(np.full((16, 16, 3), level, np.uint8)).save(file, "JPEG")
                files.append({"bytes": file.getvalue(), "path": None})
            columns = {"image": files} if classless else {"image": files, "label": names}
            pq.write_table(pa.table(columns), root / "data" / f"{split}-00000.parquet")
        return root

    return lambda root, classless=False: (jpeg if request.param == "jpeg" else parquet)(root, classless)
