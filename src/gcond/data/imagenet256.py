"""Photographs from a local folder: Parquet as in benjamin-paine/imagenet-1k-256x256, of any size, or JPEG files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from gcond.data import decoded
from gcond.data.checksums import jpeg_files, of_listing, parquet_files, photo_folder
from gcond.data.images import IN_MEMORY_BYTES, PhotoFiles, check_size, naming, opened, square_rgb
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.data.store import STORED_SIZE

FULL_TRAIN = 1_000_000
"""Only with so many training images (the whole has 1,281,167) is the title "ImageNet-256"."""
VAL_SHARE, TEST_SHARE = 0.08, 0.08
_PARQUET = ("train", "validation")  # of the published splits those with labels
Rows = TypeVar("Rows", range, list[str], list[Path])


class EncodedPhotos:
    """The column `image` of Parquet files, row after row, as encoded bytes; opened when the first is asked for."""

    def __init__(self, files: list[Path]) -> None:
        self.files = files
        self._ends = np.cumsum([_rows(file) for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> bytes:
        return self._images[row]["bytes"]

    def name(self, row: int) -> str:
        """Its file, and its row there."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self.files[file]} row {row - (int(self._ends[file - 1]) if file else 0)}"

    @cached_property
    def _images(self) -> Sequence[dict]:
        return _open_parquet(self.files)


class ParquetPhotos:
    """Some of the rows of `encoded`, decoded when asked for; none is enlarged, since all are stored at one size."""

    def __init__(self, encoded: EncodedPhotos, rows: range, size: int) -> None:
        self.encoded = encoded
        self.rows = rows
        self.size = size

    @property
    def files(self) -> list[Path]:
        return self.encoded.files

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        row = self.rows[index]
        with naming(self.encoded.name(row)), opened(BytesIO(self.encoded[row])) as photo:
            if min(photo.size) < self.size:
                raise ValueError(f"`image_size` {self.size} is more than its {photo.width} x {photo.height} pixels")
            return square_rgb(photo, self.size)


def load(root: str | Path | None, image_size: int) -> Splits:
    """Train, val and test of the folder `root`, without labels.

    The published test split has no part in it (its labels are withheld, so nobody compares on it): val and test are the
    even and the odd rows (Parquet) or files in sorted order (JPEG) of the ImageNet validation split. A JPEG folder
    may bring its own `test/`; without sub-folders each file's split follows from a hash of its relative path, 84/8/8.
    Raises ValueError where `root` is unset, absent, or holds neither layout.
    """
    check_size(image_size)
    root = photo_folder(root)
    if parquet := parquet_files(root):
        splits, listing = _from_parquet(parquet, image_size), parquet
    else:
        splits, listing = _from_jpeg(root, image_size)
    counts = {split: len(images) for split, images in splits.items()}
    total = sum(counts.values())
    intensity = Intensity.of_photographs()
    return Splits(
        **{split: decoded.held(images, f"ImageNet {split}", root) for split, images in splits.items()},
        intensity=intensity,
        title="ImageNet-256" if counts["train"] >= FULL_TRAIN else f"ImageNet-256 ({total} images)",
        facts={
            "version": "parquet" if parquet else "jpeg",
            "counts": counts,
            "checksum": of_listing(root, listing),
            "missing_packages": [],
            "mean": list(intensity.mean),
            "std": list(intensity.std),
        },
        shows_patients=False,
        groups=labels(root),
    )


def labels(root: str | Path) -> dict[str, list[str]] | None:
    """The class of every image, per split (train, val, test) in the order of `load`: the column `label` of Parquet, or
    the folder between split and file (train/CLASS/x.jpeg). None where there is neither."""
    root = Path(root)
    if parquet := parquet_files(root):
        train, validation = published = _published(parquet)
        if any("label" not in pq.read_schema(file).names for files in published for file in files):
            return None
        return {"train": _label_column(train)} | _halves(_label_column(validation))
    splits, _ = _from_jpeg(root, STORED_SIZE)
    inside = {split: [path.relative_to(root).parts for path in images.files] for split, images in splits.items()}
    if any(len(parts) != 3 for found in inside.values() for parts in found):
        return None
    return {split: [parts[1] for parts in found] for split, found in inside.items()}


def _label_column(files: list[Path]) -> list[str]:
    return [str(label) for label in _read(files, "label").column("label").to_pylist()]


def _from_parquet(files: list[Path], size: int) -> dict[str, ParquetPhotos]:
    train, validation = (EncodedPhotos(found) for found in _published(files))
    halves = {split: ParquetPhotos(validation, rows, size) for split, rows in _halves(range(len(validation))).items()}
    return {"train": ParquetPhotos(train, range(len(train)), size)} | halves


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into a ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`root`: {file} cannot be read: {error}; fetch it again") from error


def _rows(file: Path) -> int:
    with _reading(file):
        return pq.read_metadata(file).num_rows


def _read(files: list[Path], column: str) -> pa.Table:
    tables = []
    for file in files:
        with _reading(file):
            tables.append(pq.read_table(file, columns=[column]).replace_schema_metadata(None))
    return pa.concat_tables(tables)


def _published(files: list[Path]) -> list[list[Path]]:
    """Those of the published training and validation split."""
    by_split = {split: [file for file in files if file.name.startswith(f"{split}-")] for split in _PARQUET}
    for split, found in by_split.items():
        if not found:
            raise ValueError(f"`root`: no {split}-*.parquet in {files[0].parent}")
    return list(by_split.values())


def _halves(validation: Rows) -> dict[str, Rows]:
    """Val and test: the even and the odd ones of the validation split."""
    return {"val": validation[0::2], "test": validation[1::2]}


def _open_parquet(files: list[Path]) -> Sequence[dict]:
    """Small files are read into memory; large ones are copied once into the Arrow cache (HF_DATASETS_CACHE)."""
    from datasets import Dataset  # takes a second, which those that are read back decoded can save
    from datasets import Image as ImageFeature
    from datasets.table import InMemoryTable

    if sum(file.stat().st_size for file in files) <= IN_MEMORY_BYTES:
        return Dataset(InMemoryTable(_read(files, "image")))["image"]
    dataset = Dataset.from_parquet([str(file) for file in files], columns=["image"])
    return dataset.cast_column("image", ImageFeature(decode=False))["image"]


def _from_jpeg(root: Path, size: int) -> tuple[dict[str, PhotoFiles], list[Path]]:
    files = jpeg_files(root)
    if any((root / folder).is_dir() for folder in ("train", "val", "test")):
        split_of = {path: path.relative_to(root).parts[0] for path in files}
    else:
        split_of = {path: _hash_split(path.relative_to(root)) for path in files}
    splits = {split: [path for path in files if split_of[path] == split] for split in ("train", "val", "test")}
    if not splits["test"]:
        splits |= _halves(splits["val"])
    for split, found in splits.items():
        if not found:
            raise ValueError(f"`root`: {root} gives no image for {split}; expected train/ and val/, or neither")
    if outside := len(files) - sum(map(len, splits.values())):
        raise ValueError(f"`root`: {outside} JPEG files of {root} lie outside train/, val/ and test/")
    return {split: PhotoFiles(found, size) for split, found in splits.items()}, files


def _hash_split(relative: Path) -> str:
    """A file keeps its split whatever other files come or go."""
    drawn = int.from_bytes(hashlib.sha256(relative.as_posix().encode()).digest()[:8]) / 2**64
    if drawn < TEST_SHARE:
        return "test"
    return "val" if drawn < TEST_SHARE + VAL_SHARE else "train"
