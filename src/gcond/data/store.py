"""The CT store, format 2: shards of pixels, an index of slices, and `facts.json`.

    shards/00000.arrow ...  Arrow streams with one column, `pixels`: 256 x 256 little-endian uint16, HU + 1024 in
                            0..4095, row-major
    index.parquet           one row per slice, in the order in which they are read; INDEX says what it holds
    facts.json              format, counts, checksums, statistics; written last, so that a folder without it is no store

data_prep/write_store.py writes it. A slice is where it is whatever its split, so that shards are written once.

No byte of it is used before it has been compared with its checksum, and every error names the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError

from gcond.files import cache, read_object

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
DTYPE = "<u2"
HU_OFFSET = 1024  # CT is kept as HU + 1024
VALUES = 4096
STORED_SIZE = 256
STORED_BYTES = STORED_SIZE**2 * 2
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


class _Shard(BaseModel, strict=True):
    name: str = Field(pattern=r"^[^/]+$")
    slices: NonNegativeInt
    sha256: str


class _Statistics(BaseModel, strict=True):
    mean: float = Field(ge=0, le=1)
    std: float = Field(gt=0, le=1)


class _Facts(BaseModel, strict=True):
    """What every facts.json holds, whatever else it has."""

    title: str
    counts: dict[Literal[SPLITS], NonNegativeInt] = Field(min_length=len(SPLITS))
    missing_packages: list[str]
    train_statistics: dict[str, _Statistics]
    shards: list[_Shard]
    index_sha256: str
    checksum: str


def read_facts(root: Path) -> dict:
    """Raises ValueError where there is no store, one of another format, or one whose facts contradict themselves."""
    path = root / "facts.json"
    if not path.is_file():
        unfinished = "an unfinished" if (root / "shards").is_dir() else "no"
        raise ValueError(f"`root`: {unfinished} CT store at {root}; {HOW_TO_MAKE}")
    try:
        facts = read_object(path)
    except ValueError as error:
        raise damaged(path, "cannot be read") from error
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"`root`: the store at {root} has format version {facts.get('format_version')!r}, this code reads "
            f"{FORMAT_VERSION}; remove that folder and {HOW_TO_MAKE}"
        )
    try:
        _Facts.model_validate(facts)
    except ValidationError as error:
        first = error.errors()[0]
        raise damaged(path, f"states no valid {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    if facts["checksum"] != checksum(facts):
        raise damaged(path, "states a `checksum` that is not that of its shards and index")
    return facts


def damaged(path: Path, how: str) -> ValueError:
    """What is to be said of a file of a store that `how`, a verb with its object."""
    root = path.parent.parent if path.parent.name == "shards" else path.parent
    return ValueError(f"`root`: {path} {how}; remove {root} and {HOW_TO_MAKE}")


class Pixels:
    """All slices, shard after shard: HU + 1024 [256, 256], read-only.

    A shard is mapped into memory when a slice of it is first asked for, and compared with its checksum before that.

    Args:
        remember: which shards were compared is noted in gcond.files.cache, and the same file (of the same size and
            times) not read again for it, by whatever process. For what is too large to be read whole at each start.

    Raises:
        ValueError: naming the shard, for one that is absent, differs from its checksum, or has another number of
            slices than facts.json says, and for a slice with a value above 4095.
    """

    def __init__(self, root: Path, facts: Mapping, remember: bool = False) -> None:
        self._shards: list[dict] = facts["shards"]
        self._paths = [root / "shards" / shard["name"] for shard in self._shards]
        self._ends = np.cumsum([shard["slices"] for shard in self._shards])
        self._remember = remember
        self._mapped: dict[int, pa.ChunkedArray] = {}
        for path in self._paths:
            if not path.is_file():
                raise ValueError(f"`root`: {path} is missing; run the command that made the store again")

    def __len__(self) -> int:
        return int(self._ends[-1]) if len(self._ends) else 0

    def __getitem__(self, position: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, position, side="right"))
        row = int(position) - (int(self._ends[shard - 1]) if shard else 0)
        if shard not in self._mapped:
            self._mapped[shard] = self._map(shard)
        picture = np.frombuffer(self._mapped[shard][row].as_buffer(), DTYPE).reshape(STORED_SIZE, STORED_SIZE)
        if (largest := picture.max()) >= VALUES:
            raise damaged(self._paths[shard], f"holds {largest} in slice {row}, expected HU + 1024 in 0..{VALUES - 1}")
        return picture

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # another process maps the shards for itself

    def _map(self, shard: int) -> pa.ChunkedArray:
        path, stated = self._paths[shard], self._shards[shard]
        self._compare(path, stated["sha256"])  # before Arrow, which a damaged file can crash
        try:
            with pa.memory_map(str(path)) as source:
                table = pa.ipc.open_stream(source).read_all()
            table.validate(full=True)
        except (pa.ArrowException, OSError) as error:
            raise damaged(path, f"cannot be read: {error}") from error
        if table.schema != PIXELS or len(table) != stated["slices"]:
            raise damaged(path, f"holds {len(table)} slices where facts.json says {stated['slices']}")
        sizes = pc.unique(pc.binary_length(table.column("pixels"))).to_pylist()
        if sizes not in ([], [STORED_BYTES]):
            raise damaged(path, f"holds slices of {sizes} bytes, expected {STORED_BYTES}")
        return table.column("pixels")

    def _compare(self, path: Path, expected: str) -> None:
        state = path.stat()
        known = f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {expected}"
        note = cache("compared") / hashlib.sha256(known.encode(errors="surrogateescape")).hexdigest()
        if self._remember and note.exists():
            return
        if sha256(path) != expected:
            raise damaged(path, "does not match its checksum in facts.json")
        if self._remember:
            with suppress(OSError):  # a cache that cannot be written costs time only
                note.parent.mkdir(parents=True, exist_ok=True)
                note.touch()


def read_index(root: Path, facts: Mapping, columns: list[str] | None = None) -> pa.Table:
    """Raises ValueError where the index is not the one that the facts name, or does not fit the shards: each of its
    rows must be a slice of its own."""
    path = root / "index.parquet"
    wanted = None if columns is None else list(dict.fromkeys(["split", "patient", "shard", "row", *columns]))
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["index_sha256"]:
            raise damaged(path, "does not match its checksum in facts.json")
        index = pq.read_table(pa.BufferReader(content), columns=wanted)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    for name in ("split", "patient", "shard", "row"):
        if name not in index.schema.names or index.schema.field(name).type != INDEX.field(name).type:
            raise damaged(path, f"has no column {name} of {INDEX.field(name).type}")
        if index.column(name).null_count:
            raise damaged(path, f"does not say the {name} of every slice")
    if (found := counts(index)) != facts["counts"]:
        raise damaged(path, f"holds {found} slices where facts.json says {facts['counts']}")
    _expect_places(path, index, [shard["slices"] for shard in facts["shards"]])
    return index


def _expect_places(path: Path, index: pa.Table, slices: list[int]) -> None:
    shard, row = (index.column(name).to_numpy().astype(np.int64) for name in ("shard", "row"))
    inside = (shard >= 0) & (shard < len(slices)) & (row >= 0)
    inside[inside] = row[inside] < np.array(slices)[shard[inside]]
    if not inside.all():
        raise damaged(path, f"names a slice that is in no shard, in row {int(np.argmin(inside))}")
    places = np.cumsum([0, *slices])[shard] + row
    if len(np.unique(places)) != len(places):
        raise damaged(path, "names a slice twice")


def counts(index: pa.Table) -> dict[str, int]:
    """The number of slices of each split."""
    found = index.column("split").value_counts().to_pylist()
    return dict.fromkeys(SPLITS, 0) | {row["values"]: row["counts"] for row in found}


def positions(facts: Mapping, index: pa.Table, split: str) -> np.ndarray:
    """Where the slices of a split stand in Pixels [n], in their order."""
    starts = np.cumsum([0, *(shard["slices"] for shard in facts["shards"])])[:-1]
    own = pc.equal(index.column("split"), split).to_numpy()
    shard, row = (index.column(name).to_numpy()[own] for name in ("shard", "row"))
    return (starts[shard] + row).astype(np.int64)


def verify(root: Path, progress: Callable[[int], object] = lambda n: None) -> dict:
    """The facts of a store every byte of which has been checked; ValueError, naming the file, otherwise.

    Checked: format version, SHA-256 of every shard and of the index, counts, that every slice is where the index says,
    once, that no patient is in two splits, that every value is one of HU + 1024, and mean and standard deviation of the
    training split. `progress` gets the number of bytes read for the checksums.
    """
    facts = read_facts(root)
    for shard in facts["shards"]:
        path = root / "shards" / shard["name"]
        if not path.is_file() or sha256(path, progress) != shard["sha256"]:
            raise damaged(path, "does not match its checksum in facts.json")
    index = read_index(root, facts)
    progress((root / "index.parquet").stat().st_size)
    check_disjoint(patients(index))
    pixels = Pixels(root, facts)
    histograms = {split: histogram(pixels, positions(facts, index, split)) for split in SPLITS}
    expect_statistics(root, facts, histograms["train"])
    return facts


def expect_statistics(root: Path, facts: Mapping, train: np.ndarray) -> None:
    """Raises ValueError where a mean or standard deviation of the facts is not that of `train`, a histogram [4096]."""
    from gcond.data import windows  # which imports this module

    path = root / "facts.json"
    for window, stated in facts["train_statistics"].items():
        if window not in windows.PRESETS:
            raise damaged(path, f"states mean and std in a window that is not known here, {window}")
        mean, std = windows.statistics(train, *windows.PRESETS[window])
        if not (math.isclose(mean, stated["mean"], abs_tol=1e-9) and math.isclose(std, stated["std"], abs_tol=1e-9)):
            raise damaged(path, f"states {stated} in {window}, the pixels have mean {mean} and std {std}")


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


def histogram(pixels: Pixels, positions: np.ndarray) -> np.ndarray:
    """[4096] counts of the stored values of some slices."""
    total = np.zeros(VALUES, dtype=np.int64)
    for position in positions:
        total += np.bincount(pixels[position].ravel(), minlength=VALUES)
    return total
