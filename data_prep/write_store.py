"""One CT slice in HU -> the stored picture, and pictures -> the store that gcond.data.store reads."""

from collections.abc import Iterable, Mapping
from itertools import islice
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from tqdm import tqdm

from gcond.data import store, windows
from gcond.data.store import DTYPE, HU_OFFSET, STORED_SIZE
from gcond.data.windows import HU_MAX, HU_MIN
from gcond.files import folder_atomically, write_atomically, write_json

BATCH_ROWS = 100  # 12.5 MiB: what a reader that takes whole batches holds
BODY_HU = -500
BODY_SHARE = 0.05
BODY_RULE = f"a slice is kept where at least {BODY_SHARE:.0%} of its stored picture lies above {BODY_HU} HU"


def to_stored(hu: np.ndarray) -> np.ndarray:
    """HU [R, C] float32 -> HU + 1024 [256, 256] uint16.

    Clip to [-1024, 3071] HU first, so that padding (-2000 and the like) does not bleed into the body; then crop the
    centre to the short side, resize antialiased in float32, round. Raises ValueError where a value is not finite.
    """
    if not np.isfinite(hu).all():
        raise ValueError("a slice holds values that are not finite")
    clipped = np.clip(hu, HU_MIN, HU_MAX).astype(np.float32)
    side = min(clipped.shape)
    top, left = (clipped.shape[0] - side) // 2, (clipped.shape[1] - side) // 2
    square = np.ascontiguousarray(clipped[top : top + side, left : left + side])
    resized = Image.fromarray(square).resize((STORED_SIZE, STORED_SIZE), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(resized) + HU_OFFSET).astype(DTYPE)


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
    return {"name": path.name, "slices": slices, "sha256": store.sha256(path)}


def finish(
    root: Path,
    index: pa.Table,
    shards: list[dict[str, object]],
    statistics: Mapping[str, tuple[float, float]],
    about: Mapping[str, object],
) -> dict[str, object]:
    """Write the index and, last, the facts of a store whose shards are there; returns the facts.

    `about` is what the facts hold beyond format, counts and statistics: title, patients, missing_packages, ...
    Raises ValueError where a split is empty or a patient is in two of them.
    """
    patients = store.patients(index)
    store.check_disjoint(patients)
    write_atomically(root / "index.parquet", lambda path: pq.write_table(index, path, compression="zstd"))
    facts = {
        "format_version": store.FORMAT_VERSION,
        "unit": "HU + 1024",
        "clip_hu": [windows.HU_MIN, windows.HU_MAX],
        "size": STORED_SIZE,
        "dtype": store.DTYPE,
        "counts": store.counts(index),
        "train_statistics": {name: {"mean": mean, "std": std} for name, (mean, std) in statistics.items()},
        **about,
        "shards": shards,
        "index_sha256": store.sha256(root / "index.parquet"),
    }
    facts["checksum"] = store.checksum(facts)
    write_json(root / "facts.json", facts)
    return facts


def write(out: Path, rows: Mapping[str, Mapping[str, list]], about: Mapping[str, object]) -> dict[str, object]:
    """Write a store that fits in memory; returns its facts.

    `rows` maps each split to `pixels` (bytes) and the columns of store.INDEX, less split, shard and row; a column that
    is not there is null. Raises ValueError where a split is empty, a patient is in two of them, columns are of unequal
    length, or `out` exists.
    """
    store.check_disjoint({split: set(rows[split]["patient"]) for split in store.SPLITS})
    if out.exists():
        raise ValueError(f"`out`: {out} exists")
    index = _index(rows)
    pixels = [picture for split in store.SPLITS for picture in rows[split]["pixels"]]
    with folder_atomically(out) as building:
        shard = write_shard(
            building / "shards" / "00000.arrow", tqdm(pixels, desc="writing", unit="slice", disable=None)
        )
        return finish(building, index, [shard], _statistics(rows["train"]["pixels"]), about)


def _index(rows: Mapping[str, Mapping[str, list]]) -> pa.Table:
    parts, written = [], 0
    for split in store.SPLITS:
        lengths = {column: len(values) for column, values in rows[split].items()}
        slices = len(rows[split]["pixels"])
        if set(lengths.values()) != {slices}:
            raise ValueError(f"`rows`: expected columns of one length in {split}, found {lengths}")
        own = {"split": [split] * slices, "shard": [0] * slices, "row": list(range(written, written + slices))}
        columns = {name: own.get(name, rows[split].get(name, [None] * slices)) for name in store.INDEX.names}
        parts.append(pa.table(columns, schema=store.INDEX))
        written += slices
    return pa.concat_tables(parts)


def _statistics(pictures: list[bytes]) -> dict[str, tuple[float, float]]:
    totals = dict.fromkeys(windows.PRESETS, (0, 0))
    for picture in tqdm(pictures, desc="mean and deviation", unit="slice", disable=None):
        for name, (total, squares) in windows.sums(np.frombuffer(picture, store.DTYPE)).items():
            totals[name] = (totals[name][0] + total, totals[name][1] + squares)
    pixels = len(pictures) * STORED_SIZE**2
    return {name: windows.statistics_of_sums(name, pixels, *total) for name, total in totals.items()}
