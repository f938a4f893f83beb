"""Stored pictures of CT slices -> the store that gcond.data.store reads."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm import tqdm

from gcond.data import store, windows
from gcond.data.store import DTYPE, STORED_SIZE
from gcond.data.windows import HU_OFFSET
from gcond.files import folder_atomically, sha256, write_atomically, write_json

BATCH_ROWS = 100  # 12.5 MiB: what a reader that takes whole batches holds
BODY_HU = -500
BODY_SHARE = 0.05
BODY_RULE = f"a slice is kept where at least {BODY_SHARE:.0%} of its stored picture lies above {BODY_HU} HU"


def has_body(stored: np.ndarray) -> bool:
    """BODY_RULE, on a stored picture."""
    return bool((stored > BODY_HU + HU_OFFSET).mean() >= BODY_SHARE)


def write_shard(path: Path, pixels: Iterable[bytes]) -> dict[str, object]:
    """Write pictures to a shard; returns its line in the facts: name, slices, SHA-256."""
    slices = 0

    def write(temporary: Path) -> None:
        nonlocal slices
        with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_stream(sink, store.PIXELS) as writer:
            pictures = iter(pixels)
            while batch := list(islice(pictures, BATCH_ROWS)):
                slices += len(batch)
                writer.write_batch(pa.record_batch([pa.array(batch, pa.binary())], schema=store.PIXELS))

    write_atomically(path, write)
    return {"name": path.name, "slices": slices, "sha256": sha256(path)}


def finish(
    root: Path,
    index: pa.Table,
    shards: list[dict[str, object]],
    statistics: Mapping[str, tuple[float, float]],
    about: Mapping[str, object],
) -> dict[str, object]:
    """Write the index and, last, the facts of a store whose shards are there; returns the facts.

    `about` is what the facts hold beyond format, counts and statistics: title, patients, missing_packages, ...; and the
    `size` of its slices, where that is not 256.
    Raises ValueError where a split is empty or a patient is in two of them.
    """
    slices = index.select(["split", "patient"]).to_pandas()
    store.check_disjoint(slices)
    write_atomically(root / "index.parquet", lambda path: pq.write_table(index, path, compression="zstd"))
    facts = {
        "format_version": store.FORMAT_VERSION,
        "unit": "HU + 1024",
        "clip_hu": [windows.HU_MIN, windows.HU_MAX],
        "size": STORED_SIZE,
        "dtype": store.DTYPE,
        "counts": store.counts(slices),
        "train_statistics": {name: {"mean": mean, "std": std} for name, (mean, std) in statistics.items()},
        **about,
        "shards": shards,
        "index_sha256": sha256(root / "index.parquet"),
    }
    facts["checksum"] = store.checksum(facts)
    write_json(root / "facts.json", facts)
    return facts


def write(out: Path, slices: Iterable[Mapping[str, object]], about: Mapping[str, object]) -> dict[str, object]:
    """Write a store that fits in memory; returns its facts.

    A slice has `pixels` (bytes) and the columns of store.INDEX, less shard and row; one that is not there is null.
    Raises ValueError where a split is empty, a patient is in two of them, or `out` exists.
    """
    if out.exists():
        raise ValueError(f"`out`: {out} exists")
    slices = sorted(slices, key=lambda one: store.SPLITS.index(one["split"]))
    rows = [{**one, "shard": 0, "row": row} for row, one in enumerate(slices)]
    train = np.zeros(store.VALUES, np.int64)

    def pictures() -> Iterator[bytes]:
        for one in tqdm(slices, desc="writing", unit="slice", disable=None):
            if one["split"] == "train":
                np.add(train, store.counted(np.frombuffer(one["pixels"], DTYPE)), out=train)
            yield one["pixels"]

    with folder_atomically(out) as building:
        shard = write_shard(building / "shards" / "00000.arrow", pictures())
        statistics = {name: windows.statistics(train, *window) for name, window in windows.PRESETS.items()}
        return finish(building, pa.Table.from_pylist(rows, store.INDEX), [shard], statistics, about)
