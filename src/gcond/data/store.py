"""The CT store, format 2: shards of pixels, an index of slices, and `facts.json`.

    shards/00000.arrow ...  Arrow streams with one column, `pixels`: S x S little-endian uint16 (S is 256, or what
                            facts.json says), HU + 1024 in 0..4095, row-major
    index.parquet           one row per slice, in the order in which they are read; INDEX says what it holds
    facts.json              format, counts, checksums, statistics; written last, so that a folder without it is no store

data_prep/write_store.py writes it. A slice is where it is whatever its split, so that shards are written once.

No byte of it is used before it has been compared with its checksum, and every error names the file.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from PIL import Image
from pydantic import BaseModel, Field, NonNegativeInt, ValidationError
from tqdm import tqdm

from gcond.data import windows
from gcond.data.windows import HU_MAX, HU_MIN, HU_OFFSET
from gcond.files import cache, read_object, sha256

if TYPE_CHECKING:
    import pandas as pd

FORMAT_VERSION = 2
SPLITS = ("train", "validation", "test")
DTYPE = "<u2"
VALUES = 4096
STORED_SIZE = 256
HOW_TO_MAKE = "make one, in a clone, with `make data` (samples), `make data-headneck` or `make data-ct` (docs/data.md)"

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
    size: int = Field(ge=1)
    counts: dict[Literal[SPLITS], NonNegativeInt] = Field(min_length=len(SPLITS))
    missing_packages: list[str]
    train_statistics: dict[str, _Statistics]
    shards: list[_Shard]
    index_sha256: str
    checksum: str


def folder(root: str | Path | None) -> Path:
    """Raises ValueError where none is named."""
    if root is None:
        raise ValueError(f"`root`: expected the folder of a CT store, found none; {HOW_TO_MAKE}")
    return Path(root)


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


def stored_bytes(size: int) -> int:
    """Of a slice of `size` x `size` pixels."""
    return size**2 * np.dtype(DTYPE).itemsize


def to_stored(hu: np.ndarray, size: int = STORED_SIZE) -> np.ndarray:
    """HU [R, C] float32 -> HU + 1024 [size, size] uint16.

    Clip to [-1024, 3071] HU first, so that padding (-2000 and the like) does not bleed into the body; then crop the
    centre to the short side, resize antialiased in float32, round. Raises ValueError where a value is not finite.
    """
    if not np.isfinite(hu).all():
        raise ValueError("a slice holds values that are not finite")
    clipped = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    side = min(clipped.shape)
    top, left = (clipped.shape[0] - side) // 2, (clipped.shape[1] - side) // 2
    square = np.ascontiguousarray(clipped[top : top + side, left : left + side])
    resized = Image.fromarray(square).resize((size, size), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(resized) + HU_OFFSET).astype(DTYPE)


class Pixels:
    """All slices, shard after shard: HU + 1024 [S, S], read-only.

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
        self._size: int = facts["size"]
        self._paths = [root / "shards" / shard["name"] for shard in self._shards]
        self._ends = np.cumsum([shard["slices"] for shard in self._shards])
        self._remember = remember
        self._mapped: dict[int, pa.ChunkedArray] = {}
        for path in self._paths:
            if not path.is_file():
                raise ValueError(f"`root`: {path} is missing; run the command that made the store again")

    def __getitem__(self, position: int) -> np.ndarray:
        shard = int(np.searchsorted(self._ends, position, side="right"))
        row = int(position - self._ends[shard] + self._shards[shard]["slices"])
        picture = np.frombuffer(self.shard(shard)[row].as_buffer(), DTYPE).reshape(self._size, self._size)
        if (largest := picture.max()) >= VALUES:
            raise damaged(self._paths[shard], f"holds {largest} in slice {row}, expected HU + 1024 in 0..{VALUES - 1}")
        return picture

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mapped": {}}  # another process maps the shards for itself

    def shard(self, number: int) -> pa.ChunkedArray:
        """The slices of a shard, as bytes."""
        if number not in self._mapped:
            self._mapped[number] = self._map(self._paths[number], self._shards[number])
        return self._mapped[number]

    def _map(self, path: Path, stated: Mapping) -> pa.ChunkedArray:
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
        if sizes not in ([], [expected := stored_bytes(self._size)]):
            raise damaged(path, f"holds slices of {sizes} bytes, expected {expected}")
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


def read_index(root: Path, facts: Mapping, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Split, patient, `columns`, and the `place` in Pixels of every slice.

    Raises ValueError where the index is not the one that the facts name or does not fit the shards (each of its rows
    must be a slice of its own), and for a patient in two splits.
    """
    path = root / "index.parquet"
    needed = ("split", "patient", "shard", "row")
    try:
        content = path.read_bytes()
        if hashlib.sha256(content).hexdigest() != facts["index_sha256"]:
            raise damaged(path, "does not match its checksum in facts.json")
        table = pq.read_table(pa.BufferReader(content), columns=list(dict.fromkeys([*needed, *columns])))
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, f"cannot be read: {error}") from error
    for name in needed:
        if INDEX.field(name) not in list(table.schema) or table.column(name).null_count:
            raise damaged(path, f"does not say the {name} of every slice")
    index = table.to_pandas()
    if (found := counts(index)) != facts["counts"]:
        raise damaged(path, f"holds {found} slices where facts.json says {facts['counts']}")
    slices = np.array([shard["slices"] for shard in facts["shards"]])
    shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
    if (shard < 0).any() or (shard >= len(slices)).any() or (row < 0).any() or (row >= slices[shard]).any():
        raise damaged(path, "names a slice that is in no shard")
    index["place"] = (np.cumsum(slices) - slices)[shard] + row
    if not index.place.is_unique:
        raise damaged(path, "names a slice twice")
    check_disjoint(index)
    return index


def counts(index: pd.DataFrame) -> dict[str, int]:
    """The number of slices of each split."""
    return dict.fromkeys(SPLITS, 0) | index.split.value_counts().to_dict()


def check_disjoint(index: pd.DataFrame) -> None:
    """Raises ValueError for a patient whose slices are in two splits, and where a split has none."""
    if empty := [split for split, slices in counts(index).items() if not slices]:
        raise ValueError(f"the split {empty[0]} of the CT store holds no patient")
    splits = index.groupby("patient").split.unique()
    for patient, found in splits[splits.str.len() > 1].items():
        raise ValueError(f"patient {patient} is in {' and in '.join(found)}: splits must be disjoint")


def verify(root: Path) -> dict:
    """The facts of a store every byte of which has been checked; ValueError, naming the file, otherwise.

    Checked: format version, SHA-256 of every shard and of the index, counts, that every slice is where the index says,
    once, that no patient is in two splits, that every value is one of HU + 1024, and mean and standard deviation of the
    training split.
    """
    facts = read_facts(root)
    index = read_index(root, facts, INDEX.names)
    pixels = Pixels(root, facts)
    for number in tqdm(range(len(facts["shards"])), desc=f"checking {root}", unit="shard", disable=None):
        pixels.shard(number)
    histograms = {split: histogram(pixels, own.place) for split, own in index.groupby("split")}
    expect_statistics(root, facts, histograms["train"])
    return facts


def expect_statistics(root: Path, facts: Mapping, train: np.ndarray) -> None:
    """Raises ValueError where a mean or standard deviation of the facts is not that of `train`, a histogram [4096]."""
    path = root / "facts.json"
    for window, stated in facts["train_statistics"].items():
        if window not in windows.PRESETS:
            raise damaged(path, f"states mean and std in a window that is not known here, {window}")
        mean, std = windows.statistics(train, *windows.PRESETS[window])
        if not (math.isclose(mean, stated["mean"], abs_tol=1e-9) and math.isclose(std, stated["std"], abs_tol=1e-9)):
            raise damaged(path, f"states {stated} in {window}, the pixels have mean {mean} and std {std}")


def checksum(facts: Mapping) -> str:
    """Of the whole store: SHA-256 over those of its shards and of its index."""
    parts = [shard["sha256"] for shard in facts["shards"]] + [facts["index_sha256"]]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def histogram(pixels: Pixels, positions: Iterable[int]) -> np.ndarray:
    """[4096] counts of the stored values of some slices."""
    return sum((counted(pixels[position]) for position in positions), start=np.zeros(VALUES, dtype=np.int64))


def counted(stored: np.ndarray) -> np.ndarray:
    """[4096] counts of the values HU + 1024."""
    return np.bincount(stored.ravel(), minlength=VALUES)
