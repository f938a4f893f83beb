"""What a copy of ImageNet-256 holds, how that differs from the published one, and which of it a subset keeps."""

import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

IMAGES = {"train": 1_281_167, "validation": 50_000, "test": 100_000}
"""What the published copy holds; its test split may be absent here."""
CLASSES = 1000
VALIDATION_PER_CLASS = 50
BATCH = 250  # images looked at at a time
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


class Damaged(Exception):
    """A source file that Parquet cannot read."""


def image_fault(encoded: bytes | None, size: int = 256) -> str:
    """What is wrong with an image, or ""."""
    if not encoded:
        return "no bytes"
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            if image.format != "JPEG":
                return "not JPEG"
            if image.size != (size, size):  # before decoding: a bomb is only a wrong size
                return f"not {size} x {size}"
            if image.mode != "RGB":
                return "not RGB"
            image.load()
    except Exception:  # Pillow raises whatever its plugins raise; MemoryError is one of them for a damaged header
        return "unreadable"
    return ""


def batches(path: Path) -> Iterator[pa.RecordBatch]:
    """Raises Damaged where the file cannot be read, so that a full disk elsewhere is not taken for that."""
    try:
        with pq.ParquetFile(path) as file:
            yield from file.iter_batches(BATCH, use_threads=False)
    except (pa.ArrowException, OSError) as error:
        raise Damaged from error


def choose(labels: np.ndarray, per_class: int, seed: int) -> np.ndarray:
    """Rows of the `per_class` smallest SHA-256(seed, class, row) of each class, ascending.

    `labels` [rows] are those of a whole split, so a row is its place in it. A larger `per_class` only adds rows.
    """
    drawn = np.array(
        [
            int.from_bytes(hashlib.sha256(f"{seed}:{label}:{row}".encode()).digest()[:8])
            for row, label in enumerate(labels.tolist())
        ],
        dtype=np.uint64,
    )
    order = np.lexsort((drawn, labels))
    grouped = labels[order]
    rank = np.arange(len(order)) - np.searchsorted(grouped, grouped)
    return np.sort(order[rank < per_class])


def kept_rows(
    files: list[SourceFile], subset: int | None, subset_validation: int | None, seed: int
) -> list[np.ndarray | None]:
    """For each file the rows to keep, or None for all of them."""
    per_class = {"train": subset, "validation": None if subset is None else subset_validation}
    keep: dict[Path, np.ndarray] = {}
    for split, count in per_class.items():
        if count is not None:
            own = [file for file in files if file.split == split]
            chosen = choose(np.concatenate([file.labels for file in own]), count, seed)
            ends = np.cumsum([len(file.labels) for file in own])
            for file, end in zip(own, ends, strict=True):
                inside = (end - len(file.labels) <= chosen) & (chosen < end)
                keep[file.path] = chosen[inside] - (end - len(file.labels))
    return [keep.get(file.path) for file in files]
