"""ImageNet at 256 pixels from a local folder: Parquet as in benjamin-paine/imagenet-1k-256x256, or JPEG files."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pyarrow.parquet as pq
from PIL import Image
from torch import Tensor

from gcond.data.images import IN_MEMORY_BYTES, PhotoFiles, check_size, hold_in_memory, square_rgb
from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet, Splits
from gcond.data.store import STORED_SIZE

if TYPE_CHECKING:
    from datasets import Dataset

FULL_TRAIN = 1_000_000
"""Only with so many training images (the whole has 1,281,167) is the title "ImageNet-256"."""
SUFFIXES = (".jpg", ".jpeg")
VAL_SHARE, TEST_SHARE = 0.08, 0.08
_PARQUET = ("train", "validation")  # of the published splits those with labels
Rows = TypeVar("Rows", range, list[str], list[Path])


class ParquetPhotos:
    """Rows of a table with `image` = struct{bytes, path}, decoded when asked for."""

    def __init__(self, dataset: Dataset, rows: range, size: int) -> None:
        self.dataset = dataset
        self.rows = rows
        self.size = size

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Tensor:
        encoded = self.dataset[self.rows[index]]["image"]["bytes"]
        with Image.open(BytesIO(encoded)) as photo:
            return square_rgb(photo, self.size)


def load(root: str | Path | None, image_size: int) -> Splits:
    """Train, val and test of the folder `root`, without labels.

    The published test split has no part in it (its labels are withheld, so nobody compares on it): val and test are the
    even and the odd rows (Parquet) or files in sorted order (JPEG) of the ImageNet validation split. A JPEG folder
    may bring its own `test/`; without sub-folders each file's split follows from a hash of its relative path, 84/8/8.
    Raises ValueError where `root` is unset, absent, or holds neither layout.
    """
    check_size(image_size)
    if root is None or not Path(root).is_dir():
        raise ValueError(
            f"`root`: no folder of ImageNet-256 at {root}; name one with `IMAGENET=DIR` (make) or `dataset.root=DIR`"
        )
    root = Path(root)
    if parquet := sorted(root.glob("data/*.parquet")):
        splits, listing = _from_parquet(parquet, image_size), parquet
    else:
        splits, listing = _from_jpeg(root, image_size)
    counts = {split: len(images) for split, images in splits.items()}
    total = sum(counts.values())
    intensity = Intensity.of_photographs()
    return Splits(
        **{split: hold_in_memory(images, f"ImageNet {split}") for split, images in splits.items()},
        intensity=intensity,
        title="ImageNet-256" if counts["train"] >= FULL_TRAIN else f"ImageNet-256 ({total} images)",
        facts={
            "version": "parquet" if parquet else "jpeg",
            "counts": counts,
            "checksum": _listing_checksum(root, listing),
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
    if parquet := sorted(root.glob("data/*.parquet")):
        train, validation = published = _published(parquet)
        if any("label" not in pq.read_schema(file).names for files in published for file in files):
            return None
        return {"train": _label_column(train)} | _halves(_label_column(validation))
    splits, _ = _from_jpeg(root, STORED_SIZE)
    inside = {split: [path.relative_to(root).parts for path in images.paths] for split, images in splits.items()}
    if any(len(parts) != 3 for found in inside.values() for parts in found):
        return None
    return {split: [parts[1] for parts in found] for split, found in inside.items()}


def _label_column(files: list[Path]) -> list[str]:
    return [str(label) for label in pq.read_table(files, columns=["label"]).column("label").to_pylist()]


def _from_parquet(files: list[Path], size: int) -> dict[str, ImageSet]:
    train, validation = (_open_parquet(found) for found in _published(files))
    halves = {split: ParquetPhotos(validation, rows, size) for split, rows in _halves(range(len(validation))).items()}
    return {"train": ParquetPhotos(train, range(len(train)), size)} | halves


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


def _open_parquet(files: list[Path]) -> Dataset:
    """Small files are read into memory; large ones are copied once into the Arrow cache (HF_DATASETS_CACHE)."""
    from datasets import Dataset  # takes a second, which a folder of JPEG files can save
    from datasets import Image as ImageFeature
    from datasets.table import InMemoryTable

    if sum(file.stat().st_size for file in files) <= IN_MEMORY_BYTES:
        table = pq.read_table(files, columns=["image"])
        return Dataset(InMemoryTable(table.replace_schema_metadata(None)))
    dataset = Dataset.from_parquet([str(file) for file in files], columns=["image"])
    return dataset.cast_column("image", ImageFeature(decode=False))


def _from_jpeg(root: Path, size: int) -> tuple[dict[str, PhotoFiles], list[Path]]:
    files = sorted(path for path in root.rglob("*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise ValueError(f"`root`: {root} holds neither data/*.parquet nor a JPEG file")
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


def _listing_checksum(root: Path, files: Iterable[Path]) -> str:
    """SHA-256 over names and sizes: 19 GB of content are not read for a fingerprint."""
    listing = sorted(f"{file.relative_to(root).as_posix()} {file.stat().st_size}" for file in files)
    return hashlib.sha256("\n".join(listing).encode()).hexdigest()
