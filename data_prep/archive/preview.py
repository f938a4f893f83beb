"""A contact sheet of a CT store, to see with one's own eyes what training will see. It shows patients."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.data import store, windows
from gcond.data.ct import PAPER_MEAN, PAPER_STD
from gcond.data.store import HU_OFFSET
from gcond.files import write_atomically

BANNER = "Shows patients: local use only, do not publish"
WINDOW = "c600w2800"  # the one that training takes unless told otherwise
SLICES = 8
"""Pictures of each source."""
COUNTED = 2000
"""Slices of each source that its histogram counts at most: the curve of millions looks the same."""
BIN_HU = 16
SEED = 0


class Sample(NamedTuple):
    """What the sheet shows of one source; nothing in it says who is shown."""

    source: str
    slices: int
    patients: int
    pictures: list[np.ndarray]  # HU + 1024 [256, 256]
    counted: int
    histogram: np.ndarray  # [4096], of stored values


def preview(root: Path, out: Path | None = None) -> Path:
    """Draw the sheet of the store at `root` into a PNG, `root`/preview.png unless told otherwise; returns its path."""
    facts = store.read_facts(root)
    known = facts["train_statistics"][WINDOW]
    out = root / "preview.png" if out is None else out
    figure = draw(samples(root, facts), (known["mean"], known["std"]))
    write_atomically(out, lambda path: figure.savefig(path, dpi=100, format="png", metadata={"Software": None}))
    return out


def samples(root: Path, facts: dict) -> list[Sample]:
    """One for each source, in the order of their names; the same for the same store."""
    pixels = store.Pixels(root, facts, remember=True)
    index = store.read_index(root, facts, ["source", "patient", "shard", "row"])
    positions = np.empty(len(index), dtype=np.int64)
    splits = _codes(index, "split")
    for split in store.SPLITS:
        positions[splits[0] == splits[1].index(split)] = store.positions(facts, index, split)
    (source_of, sources), (patient_of, _) = _codes(index, "source"), _codes(index, "patient")
    return [
        _sample(source, pixels, positions[source_of == code], patient_of[source_of == code])
        for code, source in sorted(enumerate(sources), key=lambda pair: pair[1])
    ]


def _codes(index: pa.Table, column: str) -> tuple[np.ndarray, list[str]]:
    """A column of strings as numbers [n], and the string of each number."""
    encoded = pa.chunked_array(index.column(column)).combine_chunks().dictionary_encode()
    return encoded.indices.to_numpy(), encoded.dictionary.to_pylist()


def _sample(source: str, pixels: store.Pixels, positions: np.ndarray, patient_of: np.ndarray) -> Sample:
    """`positions` [n] and `patient_of` [n] are those of the source's slices."""
    random = np.random.default_rng([SEED, *source.encode()])
    counted = np.sort(random.choice(positions, min(COUNTED, len(positions)), replace=False))
    return Sample(
        source=source,
        slices=len(positions),
        patients=len(np.unique(patient_of)),
        pictures=[pixels[position] for position in positions[spread(patient_of, SLICES, random)]],
        counted=len(counted),
        histogram=store.histogram(pixels, counted),
    )


def spread(patient_of: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Up to `n` rows of `patient_of`: one of each of `n` patients, a second round where there are fewer patients."""
    shuffled = random.permutation(len(patient_of))
    patients = patient_of[shuffled]
    _, first, patient = np.unique(patients, return_index=True, return_inverse=True)
    by_patient = np.argsort(patient, kind="stable")
    rounds = np.empty(len(patients), dtype=np.int64)
    sizes = np.bincount(patient)
    rounds[by_patient] = np.arange(len(patients)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    # Sorted by round, then by when a patient first came up in the shuffled order.
    return shuffled[np.lexsort((first[patient], rounds))][:n]


def draw(shown: list[Sample], train_statistics: tuple[float, float]) -> Figure:
    """A row for each source: its pictures, windowed, and its histogram. `train_statistics`: of the whole store."""
    hu_min, hu_max = windows.PRESETS[WINDOW]
    heights_inch = [0.35, 0.4, *[2.4] * len(shown), 0.35]
    figure = Figure(figsize=(18, sum(heights_inch)), layout="constrained")
    above, head, *rows, below = figure.subfigures(len(heights_inch), 1, height_ratios=heights_inch)
    for band in (above, below):  # twice, so that half a sheet still says it
        band.set_facecolor("#B00020")
        band.text(0.5, 0.5, BANNER, ha="center", va="center", fontsize=15, weight="bold", color="white")
    head.text(
        0.5,
        0.5,
        f"Window {hu_min} to {hu_max} HU. Training split in it: mean {train_statistics[0]:.6f}, std "
        f"{train_statistics[1]:.6f}; the paper's, in a window that it does not name: {PAPER_MEAN}, {PAPER_STD}",
        ha="center",
        va="center",
        fontsize=11,
    )
    for row, sample in zip(rows, shown, strict=True):
        left, right = row.subfigures(1, 2, width_ratios=[4, 1])
        panels = left.subplots(1, SLICES)
        for axes in panels:
            axes.axis("off")
        for axes, picture in zip(panels, sample.pictures, strict=False):
            axes.imshow(picture, cmap="gray", vmin=hu_min + HU_OFFSET, vmax=hu_max + HU_OFFSET)
        title = f"{sample.source}: slices {sample.slices:,}, patients {sample.patients:,}"
        left.suptitle(title, x=0.005, ha="left", fontsize=11)
        _draw_histogram(right.subplots(), sample, hu_min, hu_max)
    return figure


def _draw_histogram(axes: Axes, sample: Sample, hu_min: float, hu_max: float) -> None:
    mean, std = windows.statistics(sample.histogram, hu_min, hu_max)
    binned = sample.histogram.reshape(-1, BIN_HU).sum(axis=1)
    axes.stairs(binned, np.arange(0, store.VALUES + 1, BIN_HU) - HU_OFFSET, fill=True, color="#56B4E9")
    axes.set_yscale("log")
    axes.set_xlim(windows.HU_MIN, windows.HU_MAX + 1)
    for limit in (hu_min, hu_max):
        axes.axvline(limit, color="#D55E00", linestyle="--", linewidth=1)
    axes.tick_params(labelsize=8)
    axes.set_xlabel(f"HU ({sample.counted:,} slices, pixels per {BIN_HU} HU; dashed: the window)", fontsize=8)
    axes.set_title(f"mean {mean:.6f}, std {std:.6f}\n(paper: {PAPER_MEAN}, {PAPER_STD})", fontsize=9)
