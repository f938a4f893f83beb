"""The CT store, format 2: shards of pixels, an index of slices, and `facts.json`.

    shards/00000.arrow ...  Arrow streams with one column, `pixels`: 256 x 256 little-endian uint16, HU + 1024 in
                            0..4095, row-major
    index.parquet           one row per slice, in the order in which they are read; INDEX says what it holds
    facts.json              format, counts, checksums, statistics; written last, so that a folder without it is no store

data_prep/write_store.py writes it. A slice is where it is whatever its split, so that shards are written once.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

if TYPE_CHECKING:
    from datasets import Dataset

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
DTYPE = "<u2"
HU_OFFSET = 1024  # CT is kept as HU + 1024
VALUES = 4096
STORED_SIZE = 256
HOW_TO_MAKE = "make one with `make data` (samples), `make data-headneck` or `make data-ct` (archives); docs/data.md"

PIXELS = pa.schema([("pixels", pa.binary())])
LABELS = ("epidural", "intraparenchymal", "intraventricular", "subarachnoid", "subdural", "any")
INDEX = pa.schema(
    [
        ("split", pa.string()),
        ("source", pa.string()),
        ("patient", pa.string()),
        ("study", pa.string()),
        ("series", pa.string()),
        ("sop", pa.string()),
        ("z", pa.int32()),
        ("rows", pa.int32()),
        ("cols", pa.int32()),
        ("spacing_z_mm", pa.float32()),
        ("spacing_xy_mm", pa.float32()),
        ("flags", pa.string()),
        *((label, pa.int8()) for label in LABELS),
        ("shard", pa.int32()),
        ("row", pa.int32()),
    ]
)
"""`z` counts a series' slices along its normal (the feet first where that points to the head); `rows`, `cols` and the
spacing are those before cropping and resizing; `flags` are joined by commas; labels are those of RSNA ICH, null
elsewhere; `shard` and `row` say where the pixels are."""


def read_facts(root: Path) -> dict:
    """Raises ValueError where there is no store or one of another format."""
    path = root / "facts.json"
    if not path.is_file():
        unfinished = "an unfinished" if (root / "shards").is_dir() else "no"
        raise ValueError(f"`root`: {unfinished} CT store at {root}; {HOW_TO_MAKE}")
    facts = json.loads(path.read_text())
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"`root`: the store at {root} has format version {facts.get('format_version')!r}, this code reads "
            f"{FORMAT_VERSION}; remove that folder and {HOW_TO_MAKE}"
        )
    return facts


def open_pixels(root: Path, facts: Mapping) -> Dataset:
    """All slices, memory-mapped, shard after shard. Raises ValueError where a shard is absent or of another length."""
    from datasets import Dataset, concatenate_datasets  # takes a second, which those who write shards can save

    shards = []
    for shard in facts["shards"]:
        path = root / "shards" / shard["name"]
        if not path.is_file():
            raise ValueError(f"`root`: {path} is missing; run the command that made the store again")
        pixels = Dataset.from_file(str(path))
        if len(pixels) != shard["slices"]:
            raise ValueError(f"`root`: {path} holds {len(pixels)} slices where facts.json says {shard['slices']}")
        shards.append(pixels)
    return concatenate_datasets(shards)


def read_index(root: Path, facts: Mapping, columns: list[str] | None = None) -> pa.Table:
    """Raises ValueError where the number of slices of a split is not the one that the facts name."""
    wanted = None if columns is None else list(dict.fromkeys(["split", *columns]))
    index = pq.read_table(root / "index.parquet", columns=wanted)
    found = counts(index)
    if found != facts["counts"]:
        raise ValueError(f"`root`: the index of {root} holds {found} slices where facts.json says {facts['counts']}")
    return index


def counts(index: pa.Table) -> dict[str, int]:
    """The number of slices of each split."""
    found = index.column("split").value_counts().to_pylist()
    return dict.fromkeys(SPLITS, 0) | {row["values"]: row["counts"] for row in found}


def positions(facts: Mapping, index: pa.Table, split: str) -> np.ndarray:
    """Where the slices of a split stand in `open_pixels` [n], in their order."""
    starts = np.cumsum([0, *(shard["slices"] for shard in facts["shards"])])[:-1]
    own = pc.equal(index.column("split"), split).to_numpy()
    shard, row = (index.column(name).to_numpy()[own] for name in ("shard", "row"))
    return (starts[shard] + row).astype(np.int64)


def verify(root: Path, progress: Callable[[int], object] = lambda n: None) -> dict:
    """The facts of a store every byte of which has been checked; ValueError, naming the file, otherwise.

    Checked: format version, SHA-256 of every shard and of the index, counts, that every slice is where the index says,
    once, and that no patient is in two splits. `progress` gets the number of bytes read.
    """
    facts = read_facts(root)
    files = [("shards/" + shard["name"], shard["sha256"]) for shard in facts["shards"]]
    for name, expected in [*files, ("index.parquet", facts["index_sha256"])]:
        if not (root / name).is_file() or sha256(root / name, progress) != expected:
            raise ValueError(
                f"`root`: {root / name} does not match its checksum in facts.json; remove {root} and {HOW_TO_MAKE}"
            )
    pixels = open_pixels(root, facts)
    index = read_index(root, facts)
    check_disjoint(patients(index))
    used = np.concatenate([positions(facts, index, split) for split in SPLITS])
    if len(np.unique(used)) != len(used) or (len(used) and not 0 <= used.min() <= used.max() < len(pixels)):
        raise ValueError(f"`root`: the index of {root} names a slice twice, or one that is in no shard")
    if facts["checksum"] != checksum(facts):
        raise ValueError(f"`root`: `checksum` in {root / 'facts.json'} is not that of its shards and index")
    return facts


def patients(index: pa.Table) -> dict[str, set[str]]:
    """The patients of each split."""
    pairs = index.select(["split", "patient"]).group_by(["split", "patient"]).aggregate([]).to_pylist()
    return {split: {pair["patient"] for pair in pairs if pair["split"] == split} for split in SPLITS}


def check_disjoint(patients: Mapping[str, set[str]]) -> None:
    """Raises ValueError, naming the patients, where two splits share one, or where a split has none."""
    for split in SPLITS:
        if not patients[split]:
            raise ValueError(f"the split {split} of the CT store holds no patient")
    seen: dict[str, str] = {}
    for split in SPLITS:
        for patient in sorted(patients[split]):
            if patient in seen:
                raise ValueError(f"patient {patient} is in {seen[patient]} and in {split}: splits must be disjoint")
            seen[patient] = split


def checksum(facts: Mapping) -> str:
    """Of the whole store: SHA-256 over those of its shards and of its index."""
    parts = [shard["sha256"] for shard in facts["shards"]] + [facts["index_sha256"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def sha256(path: Path, progress: Callable[[int], object] = lambda n: None) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 22):
            digest.update(block)
            progress(len(block))
    return digest.hexdigest()


def picture(pixels: Dataset, position: int) -> np.ndarray:
    """The slice at `position` of `open_pixels`: HU + 1024 [256, 256], read-only."""
    return np.frombuffer(pixels[int(position)]["pixels"], DTYPE).reshape(STORED_SIZE, STORED_SIZE)


def histogram(pixels: Dataset, positions: np.ndarray) -> np.ndarray:
    """[4096] counts of the stored values of some slices."""
    total = np.zeros(VALUES, dtype=np.int64)
    for position in positions:
        total += np.bincount(picture(pixels, position).ravel(), minlength=VALUES)
    return total
