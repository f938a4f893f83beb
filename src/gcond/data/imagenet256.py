"""Photographs from a local folder: Parquet as in benjamin-paine/imagenet-1k-256x256, of any size, or JPEG files."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gcond.data import folders
from gcond.data.checksums import of_listing, parquet_files, photo_folder
from gcond.data.images import IN_MEMORY_BYTES, Encoded, Photographs, check_size, held_or_kept
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.files import read_object, sha256

AGAIN = "remove the folder and make it again"
NUMBERED = re.compile(r"(.+-)(\d+)-of-(\d+)\.parquet")
WHOLE, FULL_TRAIN = "ImageNet-256", 1_000_000
"""The title of Parquet with so many training images (the whole has 1,281,167); any other folder's is its own name."""
_PARQUET = ("train", "validation")  # of the published splits those with labels
Rows = TypeVar("Rows", range, list[str | None])


class EncodedPhotos(Encoded):
    """The column `image` of Parquet files, row after row; opened when the first is asked for."""

    def __init__(self, files: list[Path]) -> None:
        super().__init__(files)
        self._ends = np.cumsum([_rows(file) for file in files])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, row: int) -> bytes:
        image = self._images[row]
        return (image if isinstance(image, dict) else image.as_py())["bytes"]

    def name(self, row: int) -> str:
        """Its file, and its row there."""
        file = int(np.searchsorted(self._ends, row, side="right"))
        return f"{self.files[file]} row {row - (int(self._ends[file - 1]) if file else 0)}"

    @cached_property
    def _images(self) -> Any:
        """Small files are read into memory; large ones are copied once into the Arrow cache (HF_DATASETS_CACHE)."""
        if sum(file.stat().st_size for file in self.files) <= IN_MEMORY_BYTES:
            _expect_checksums(self.files)
            return _read(self.files, "image").column("image")
        from datasets import Dataset  # takes a second, which small files can save
        from datasets import Image as ImageFeature

        dataset = Dataset.from_parquet([str(file) for file in self.files], columns=["image"])
        return dataset.cast_column("image", ImageFeature(decode=False))["image"]


def load(root: str | Path | None, image_size: int) -> Splits:
    """Train, val and test of the folder `root`, without labels.

    The published test split has no part in it (its labels are withheld, so nobody compares on it): val and test are the
    even and the odd rows (Parquet) or files in sorted order (JPEG) of the ImageNet validation split. A JPEG folder
    may bring its own test/. What is passed over is said on stderr.
    Raises ValueError where `root` is unset, absent, or holds neither layout (gcond.data.folders), and for a photograph
    that cannot be decoded.
    """
    check_size(image_size)
    root = photo_folder(root)
    if parquet := parquet_files(root):
        splits, listing, groups = _from_parquet(parquet, image_size), parquet, _labels(parquet)
        strange = sum(not file.name.startswith(("train-", "validation-", "test-")) for file in parquet)
        counts = {"Parquet files that are not there": _missing(parquet), "other Parquet files": strange}
        passed_over = {what: n for what, n in counts.items() if n}
    else:
        folder = folders.read(root)
        splits = {
            split: Photographs(Encoded(own), range(len(own)), image_size, enlarges=True)
            for split, own in folder.splits.items()
        }
        listing, groups, passed_over = folder.files, folder.classes, folder.passed_over
    held = {split: held_or_kept(images, f"{_name(root)} {split}", root) for split, images in splits.items()}
    _say(root, splits, groups, passed_over)
    whole = parquet and len(splits["train"]) >= FULL_TRAIN
    return Splits(
        **held,
        intensity=Intensity.of_photographs(),
        title=WHOLE if whole else f"{_name(root)} ({sum(map(len, splits.values()))} images)",
        checksum=of_listing(root, listing),
        groups=groups,
    )


def _name(root: Path) -> str:
    """The folder's, on one line, also of "." and "x/..": by its path, not by what a link points to."""
    name = os.fsencode(os.path.abspath(root)).decode(errors="replace")
    return " ".join(Path(name).name.split()) or "photographs"


def labels(root: str | Path | None) -> dict[str, list[str]] | None:
    """The class of every image, per split (train, val, test) in the order of `load`: the column `label` of Parquet, or
    what the folders say. None where not every image has one. Raises ValueError where there is no such folder."""
    root = photo_folder(root)
    if parquet := parquet_files(root):
        return _labels(parquet)
    return folders.read(root).classes


def _say(
    root: Path,
    splits: Mapping[str, Photographs],
    groups: Mapping[str, list[str]] | None,
    passed_over: Mapping[str, int],
) -> None:
    """On stderr, what of the folder is not as one would expect, and does not stop a run."""
    lines = [f"passed over {folders.counted(passed_over)}"] if passed_over else []
    if enlarged := sum(len(images.enlarged) for images in splits.values()):
        lines.append(f"{enlarged:,} photographs have fewer pixels than `image_size`, and are enlarged")
    for split in ("val", "test"):
        if groups and (strange := len(set(groups[split]) - set(groups["train"]))):
            lines.append(f"{strange:,} of the {len(set(groups[split])):,} classes of {split} have no training image")
    for line in lines:
        print(f"{root}: {line}", file=sys.stderr)


def _labels(parquet: list[Path]) -> dict[str, list[str]] | None:
    train, validation = published = _published(parquet)
    if any("label" not in _footer(file).schema_arrow.names for files in published for file in files):
        return None
    found = {"train": _label_column(train)} | _halves(_label_column(validation))
    return None if any(label is None for own in found.values() for label in own) else found


def _label_column(files: list[Path]) -> list[str | None]:
    """None where a label is absent or withheld, which is -1."""
    labels = _read(files, "label").column("label").to_pylist()
    return [None if label is None or label == -1 else str(label) for label in labels]


def _from_parquet(files: list[Path], size: int) -> dict[str, Photographs]:
    train, validation = (EncodedPhotos(found) for found in _published(files))
    halves = {split: Photographs(validation, rows, size) for split, rows in _halves(range(len(validation))).items()}
    return {"train": Photographs(train, range(len(train)), size)} | halves


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn what Arrow says of a damaged file into a ValueError that names it."""
    try:
        yield
    except (pa.ArrowException, OSError) as error:
        raise ValueError(f"`root`: {file} cannot be read: {error}; fetch it again") from error


def _footer(file: Path) -> pq.ParquetFile:
    with _reading(file):
        return pq.ParquetFile(file)


def _rows(file: Path) -> int:
    footer = _footer(file)
    schema = footer.schema_arrow
    image = schema.field("image").type if "image" in schema.names else None
    if not isinstance(image, pa.StructType) or image.get_field_index("bytes") < 0:
        raise ValueError(f"`root`: {file} has no column image = struct{{bytes, path}}, found {', '.join(schema.names)}")
    return footer.metadata.num_rows


def _read(files: list[Path], column: str) -> pa.Table:
    tables = []
    for file in files:
        with _reading(file):
            tables.append(pq.read_table(file, columns=[column]).replace_schema_metadata(None))
    return pa.concat_tables(tables)


def _stated(files: list[Path]) -> dict[Path, dict]:
    """What data_prep/imagenet256.py has noted of its files, `bytes` and `sha256`; empty for other folders."""
    folder = files[0].parent
    path = folder.parent / "facts.json"
    if not path.is_file():
        return {}
    stated = read_object(path).get("files")
    if not isinstance(stated, dict) or not all({"bytes", "sha256"} <= set(own) for own in stated.values()):
        raise ValueError(f"`root`: {path} is not what data_prep/imagenet256.py writes; {AGAIN}")
    return {folder / Path(name).name: own for name, own in stated.items()}


def _missing(files: list[Path]) -> int:
    """How many are not there of those that are numbered, as in train-00000-of-00040.parquet.

    Raises ValueError where one that data_prep has made is gone, or has another length than facts.json says.
    """
    if by_path := _stated(files):
        for path, stated in sorted(by_path.items()):
            if not path.is_file() or path.stat().st_size != stated["bytes"]:
                raise ValueError(f"`root`: expected {stated['bytes']} bytes in {path} by facts.json; {AGAIN}")
        return 0
    numbered = [match for file in files if (match := NUMBERED.fullmatch(file.name))]
    whole = {f"{m[1]}{i:0{len(m[2])}}-of-{m[3]}.parquet" for m in numbered for i in range(int(m[3]))}
    return len(whole - {file.name for file in files})


def _expect_checksums(files: list[Path]) -> None:
    """Raises ValueError where a file is not the one that data_prep made."""
    stated = _stated(files)
    for file in files:
        if file in stated and sha256(file) != stated[file]["sha256"]:
            raise ValueError(f"`root`: {file} does not match its checksum in facts.json; {AGAIN}")


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
