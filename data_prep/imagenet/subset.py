"""Which images a subset keeps."""

import hashlib
from pathlib import Path

import numpy as np

from imagenet.source import SourceFile


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


def keep_of_each_file(
    files: list[SourceFile], subset: int | None, subset_validation: int | None, seed: int
) -> list[np.ndarray | None]:
    """For each file the rows to keep, or None for all of them."""
    if subset is None:
        return [None] * len(files)
    keep: dict[Path, np.ndarray] = {}
    for split, per_class in (("train", subset), ("validation", subset_validation)):
        own = [file for file in files if file.split == split]
        if per_class is not None:
            chosen = choose(np.concatenate([file.labels for file in own]), per_class, seed)
            starts = np.cumsum([0, *(len(file.labels) for file in own)])
            for file, start, end in zip(own, starts, starts[1:], strict=False):
                keep[file.path] = chosen[(start <= chosen) & (chosen < end)] - start
    return [keep.get(file.path) for file in files]
