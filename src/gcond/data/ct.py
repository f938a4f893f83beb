"""Axial CT slices from a store (gcond.data.store), windowed by an Intensity."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from gcond.data import images as sets
from gcond.data import store, windows
from gcond.data.images import check_size, hold_in_memory
from gcond.data.intensity import Intensity
from gcond.data.splits import Splits

if TYPE_CHECKING:
    import pandas as pd

PAPER_MEAN, PAPER_STD = 0.107961, 0.173622
BODY_HU = -500  # between air and lung below, fat and everything denser above


SPLITS = {"train": "train", "val": "validation", "test": "test"}  # of Splits -> of the store


class StoreSlices:
    """Slices of one split as int16 [1, S, S], HU + 1024; `positions` [n] says where they stand in `pixels`."""

    def __init__(self, pixels: store.Pixels, positions: np.ndarray, size: int) -> None:
        self.pixels = pixels
        self.positions = positions
        self.size = size

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Tensor:
        return torch.from_numpy(resize(self.pixels[self.positions[index]], self.size)).unsqueeze(0)


def resize(stored: np.ndarray, size: int) -> np.ndarray:
    """HU + 1024 [S, S] -> int16 [size, size]: antialiased in float32, rounded back. Before any window."""
    if size == len(stored):
        return stored.astype(np.int16)
    picture = Image.fromarray(stored.astype(np.float32)).resize((size, size), Image.Resampling.BILINEAR)
    return np.rint(np.asarray(picture)).astype(np.int16)


def read_dicom(path: Path, size: int) -> Tensor:
    """An axial CT slice in a DICOM file -> int16 [1, size, size], HU + 1024, as a store would give it.

    Raises ValueError for what is no such slice. Unlike the command that makes stores it trusts the file's values.
    """
    import pydicom
    from pydicom.pixels import apply_rescale

    try:
        dataset = pydicom.dcmread(path)
        pixels = dataset.pixel_array
    except Exception as error:  # pydicom and its decoders raise anything
        raise ValueError(f"{path}: expected a CT slice in a DICOM file: {error}") from error
    if dataset.get("Modality") != "CT" or pixels.ndim != 2 or "RescaleSlope" not in dataset:
        found = f"{dataset.get('Modality')} of {' x '.join(map(str, pixels.shape))} pixels"
        raise ValueError(f"{path}: expected one slice of modality CT with a rescale slope, found {found}")
    hu = apply_rescale(pixels, dataset).astype(np.float32)
    return torch.from_numpy(resize(store.to_stored(hu, max(store.STORED_SIZE, size)), size)).unsqueeze(0)


def load(
    root: str | Path | None,
    image_size: int,
    window: windows.Window = "c600w2800",
    statistics: Literal["store", "paper"] = "store",
    labelled: bool = False,
) -> Splits:
    """The three splits of the store at `root`.

    `window` is a name in windows.PRESETS or [hu_min, hu_max]. `statistics`: "store" takes mean and standard deviation
    of the training split in that window, at the stored size; "paper" takes the paper's constants, whose window is
    unknown. `labelled` leaves out the slices without RSNA ICH's labels, says how many, and keeps the statistics of the
    whole split.

    Raises ValueError for an unknown window or statistics and for a store that is absent, of another format, incomplete,
    without labels where they are asked for, or with a patient in two splits. What is held in memory is compared with
    the store's checksums and statistics at each call; what is not, shard by shard when first used, and once as long as
    a shard stays the same.
    """
    hu_min, hu_max = windows.resolve(window)
    if statistics not in ("store", "paper"):
        raise ValueError(f"`statistics` must be store or paper, found {statistics!r}")
    root = store.folder(root)
    facts = store.read_facts(root)
    check_size(image_size, facts["size"])
    large = max(facts["counts"].values()) * 2 * image_size**2 > sets.IN_MEMORY_BYTES
    pixels = store.Pixels(root, facts, remember=large)
    index = store.read_index(root, facts, store.LABELS if labelled else ())
    own = _by_split(root, index, labelled)
    if left_out := len(index) - sum(map(len, own.values())):
        print(f"{root}: {left_out:,} of {len(index):,} slices have no labels, and are left out", file=sys.stderr)

    stated = facts["train_statistics"].get(window) if isinstance(window, str) else None
    if stated is None or not large:
        histogram = store.histogram(pixels, index.place[index.split == "train"])
        store.expect_statistics(root, facts, histogram)
    measured = (stated["mean"], stated["std"]) if stated else windows.statistics(histogram, hu_min, hu_max)
    mean, std = measured if statistics == "store" else (PAPER_MEAN, PAPER_STD)
    images = {
        name: hold_in_memory(StoreSlices(pixels, own[name].place.to_numpy(), image_size), f"CT {split}")
        for name, split in SPLITS.items()
    }
    return Splits(
        **images,
        intensity=Intensity.of_hu_window(hu_min, hu_max, mean, std),
        title=facts["title"] + (", labelled slices" if labelled else ""),
        checksum=facts["checksum"],
        missing_packages=facts["missing_packages"],
        shows_patients=True,
        groups={name: rows.patient.to_list() for name, rows in own.items()},
        body_above=BODY_HU + windows.HU_OFFSET,
    )


def labels(root: str | Path | None) -> dict[str, Tensor]:
    """RSNA ICH's labels of the slices that `load` gives with `labelled`: per split (train, val, test) float [n, 6] of 0
    and 1, in the order of store.LABELS. Raises ValueError where a split has none."""
    root = store.folder(root)
    own = _by_split(root, store.read_index(root, store.read_facts(root), store.LABELS), labelled=True)
    return {name: torch.tensor(rows[list(store.LABELS)].to_numpy(np.float32)) for name, rows in own.items()}


def heights(root: str | Path | None, labelled: bool = False) -> dict[str, tuple[np.ndarray, np.ndarray]] | None:
    """Per split (train, val, test), in the order of its images (`load`): the volume of each slice, and its height in mm
    above the volume's lowest slice. None where the store does not know the spacing of a slice."""
    root = store.folder(root)
    index = store.read_index(root, store.read_facts(root), ["study", "series", "z", "spacing_z_mm", *store.LABELS])
    own = _by_split(root, index, labelled)
    if any(rows.spacing_z_mm.isna().any() for rows in own.values()):
        return None

    def along(rows: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        volume = rows.patient + "/" + rows.study.fillna("") + "/" + rows.series.fillna("")
        return volume.to_numpy(dtype=str), (rows.z * rows.spacing_z_mm.astype(float)).to_numpy()

    return {name: along(rows) for name, rows in own.items()}


def _by_split(root: Path, index: pd.DataFrame, labelled: bool) -> dict[str, pd.DataFrame]:
    """The slices of train, val and test; with `labelled` those with all six labels. Raises ValueError where a split has
    none of these."""
    if labelled:
        index = index[index[list(store.LABELS)].notna().all(axis="columns")]
    if not all((counts := store.counts(index)).values()):
        raise ValueError(
            f"`root`: expected labelled slices in every split of the CT store at {root}, found {counts}; labels are "
            "read from RSNA ICH's stage_2_train.csv (columns ID and Label): put it below the folder that --ich names, "
            "and make the store again (docs/data.md)"
        )
    return {name: index[index.split == split] for name, split in SPLITS.items()}
