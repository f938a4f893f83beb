"""The CT store: one Arrow dataset per split (Hugging Face `datasets`) and `facts.json` beside them.

A row's `pixels` are 256 x 256 (`size`) of little-endian uint16, HU + 1024 in 0..4095, row-major.
data_prep/write_store.py writes it.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value, load_from_disk

FORMAT_VERSION = 1
SPLITS = ("train", "validation", "test")
DTYPE = "<u2"
VALUES = 4096
HOW_TO_MAKE = "make one with `make data` or `python data_prep/samples.py --out data/ct`"

FEATURES = Features(
    {
        "pixels": Value("binary"),
        "source": Value("string"),
        "patient": Value("string"),
        "z": Value("int32"),
        "rows": Value("int32"),
        "cols": Value("int32"),
        "spacing_z_mm": Value("float32"),
        "spacing_xy_mm": Value("float32"),
    }
)
"""`z` counts a volume's slices from the feet; `rows`, `cols` and the spacing are those before cropping and resizing."""


def read_facts(root: Path) -> dict:
    """Raises ValueError where there is no store or one of another format."""
    path = root / "facts.json"
    if not path.is_file():
        raise ValueError(f"`root`: no CT store at {root}; {HOW_TO_MAKE}")
    facts = json.loads(path.read_text())
    if facts.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"`root`: the store at {root} has format version {facts.get('format_version')!r}, this code reads "
            f"{FORMAT_VERSION}; remove that folder and {HOW_TO_MAKE}"
        )
    return facts


def open_split(root: Path, split: str, facts: Mapping) -> Dataset:
    """Memory-mapped. Raises ValueError where the number of slices is not the one that the facts name."""
    dataset = load_from_disk(root / split)
    expected = facts["counts"][split]
    if len(dataset) != expected:
        raise ValueError(f"`root`: {root / split} holds {len(dataset)} slices where facts.json says {expected}")
    return dataset


def verify(root: Path) -> dict:
    """The facts of a store whose every pixel has been checked against its checksums; ValueError otherwise."""
    facts = read_facts(root)
    for split in SPLITS:
        found = checksum(open_split(root, split, facts))
        if found != facts["checksum"][split]:
            raise ValueError(
                f"`root`: the pixels of {root / split} do not match the checksum in facts.json; remove {root} and "
                f"{HOW_TO_MAKE}"
            )
    return facts


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


def checksum(dataset: Dataset) -> str:
    """SHA-256 over the pixels of all rows, in their order."""
    digest = hashlib.sha256()
    for pixels in _buffers(dataset):
        digest.update(pixels)
    return digest.hexdigest()


def histogram(dataset: Dataset) -> np.ndarray:
    """[4096] counts of the stored values over all rows."""
    counts = np.zeros(VALUES, dtype=np.int64)
    for pixels in _buffers(dataset):
        counts += np.bincount(np.frombuffer(pixels, DTYPE), minlength=VALUES)
    return counts


def _buffers(dataset: Dataset) -> Iterator[memoryview]:
    for chunk in dataset.data.column("pixels").chunks:
        for pixels in chunk:
            yield memoryview(pixels.as_buffer())
