"""What a copy of ImageNet-256 holds, by its footers and labels alone, and how that differs from the published one."""

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

IMAGES = {"train": 1_281_167, "validation": 50_000, "test": 100_000}
"""What the published copy holds; its test split may be absent here."""
CLASSES = 1000
VALIDATION_PER_CLASS = 50
NAME = re.compile(r"(train|validation|test)-(?:(\d+)-of-(\d+)|.+)\.parquet")


class SourceFile(NamedTuple):
    """`labels` [rows] int64, in the order of the file; -1 where there is none."""

    path: Path
    split: str
    labels: np.ndarray


class Finding(NamedTuple):
    """Something wrong: `place` is a file's name or a row of one."""

    split: str
    what: str
    place: str


def read_listing(root: Path) -> tuple[list[SourceFile], list[Finding]]:
    """Footers and labels of the files of `root`, in the order of their names, and the files that cannot be read.

    Raises ValueError where the layout is another one.
    """
    paths = sorted((root / "data").glob("*.parquet"))
    names = {path: NAME.fullmatch(path.name) for path in paths}
    if strangers := [path.name for path, match in names.items() if match is None]:
        raise ValueError(
            f"`--from`: expected train-*, validation-* and test-*.parquet in {root / 'data'}, found {strangers[0]}"
        )
    for split in ("train", "validation"):
        if not any(match[1] == split for match in names.values()):
            raise ValueError(f"`--from`: no data/{split}-*.parquet in {root}; see docs/data.md for the layout")
    found, findings = [], []
    for path, match in names.items():
        try:
            with pq.ParquetFile(path) as file:
                _check_schema(path, file.schema_arrow)
                labels = labels_of(file.read(columns=["label"]))
        except (pa.ArrowException, OSError):
            findings.append(Finding(match[1], "file unreadable", path.name))
        else:
            found.append(SourceFile(path, match[1], labels))
    for split in ("train", "validation"):
        if not findings and not any(len(file.labels) for file in found if file.split == split):
            raise ValueError(f"`--from`: the {split} files of {root} hold no image")
    return found, findings


def labels_of(table: pa.Table) -> np.ndarray:
    return table.column("label").cast(pa.int64()).fill_null(-1).to_numpy()


def _check_schema(path: Path, schema: pa.Schema) -> None:
    image = schema.field("image").type if "image" in schema.names else None
    fields = {field.name: field.type for field in image} if image is not None and pa.types.is_struct(image) else {}
    if fields.get("bytes") not in (pa.binary(), pa.large_binary()):
        raise ValueError(f"`--from`: {path} has no column image = struct{{bytes: binary, path}}, found {image}")
    if "label" not in schema.names or not pa.types.is_integer(schema.field("label").type):
        raise ValueError(f"`--from`: {path} has no integer column label")


def missing_parts(files: list[SourceFile]) -> list[str]:
    """Of `train-00000-of-00040.parquet` and its like: which numbers are not there."""
    missing = []
    numbered = [NAME.fullmatch(file.path.name) for file in files]
    for split, total in sorted({(match[1], match[3]) for match in numbered if match[2]}):
        there = {int(match[2]) for match in numbered if (match[1], match[3]) == (split, total)}
        width = len(total)
        missing += [f"{split}-{i:0{width}}-of-{total}.parquet" for i in range(int(total)) if i not in there]
    return missing


def deviations(files: list[SourceFile], published: bool = True) -> list[str]:
    """Which files are missing and, of the `published` copy, how the counts differ from its own, in sentences."""
    lines = [f"missing: data/{name}" for name in missing_parts(files)]
    if not published:
        return lines
    for split, expected in IMAGES.items():
        labels = [file.labels for file in files if file.split == split]
        rows = sum(map(len, labels))
        if rows != expected and (labels or split != "test"):
            lines.append(f"{split}: {rows:,} images, expected {expected:,}")
        if split == "validation":
            counts = np.bincount(valid(np.concatenate(labels)), minlength=CLASSES) if labels else np.zeros(CLASSES)
            if wrong := int((counts != VALIDATION_PER_CLASS).sum()):
                lines.append(f"validation: {wrong} classes do not have {VALIDATION_PER_CLASS} images")
    return lines


def valid(labels: np.ndarray) -> np.ndarray:
    return labels[(labels >= 0) & (labels < CLASSES)]


def bad_labels(files: list[SourceFile]) -> list[Finding]:
    """The published test labels are withheld (-1), so those are not looked at."""
    return [
        Finding(file.split, f"label outside 0..{CLASSES - 1}", f"{file.path.name} row {row}")
        for file in files
        if file.split != "test"
        for row in np.flatnonzero((file.labels < 0) | (file.labels >= CLASSES))
    ]


def count_by_split(files: list[SourceFile]) -> dict[str, int]:
    return {split: sum(len(file.labels) for file in files if file.split == split) for split in IMAGES}


def listing_checksum(files: list[SourceFile]) -> str:
    """SHA-256 over the source's names and sizes: the checksum that a run on the source itself records."""
    lines = sorted(f"data/{file.path.name} {file.path.stat().st_size}" for file in files)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
