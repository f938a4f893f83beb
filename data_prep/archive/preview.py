"""A contact sheet of a CT store, to see what training will see. It shows patients."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from matplotlib.figure import Figure

from gcond.data import store, windows
from gcond.data.ct import PAPER_MEAN, PAPER_STD
from gcond.data.windows import HU_OFFSET
from gcond.files import write_atomically

BANNER = "Shows patients: local use only, do not publish"
WINDOW = "c600w2800"  # the one that training takes unless told otherwise
SLICES = 8  # pictures of each source
COUNTED = 2000  # slices of each source that its histogram counts at most
BIN_HU = 16


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
    out = root / "preview.png" if out is None else out
    figure = draw(samples(root, facts), facts["train_statistics"][WINDOW])
    write_atomically(out, lambda path: figure.savefig(path, dpi=100, format="png", metadata={"Software": None}))
    return out


def samples(root: Path, facts: dict) -> list[Sample]:
    """One for each source, in the order of their names; the same for the same store."""
    pixels = store.Pixels(root, facts, remember=True)
    index = store.read_index(root, facts, ["source"]).astype({"patient": "category"})
    found = []
    for source, own in index.groupby("source"):
        random = np.random.default_rng([*source.encode()])
        positions = own.place.to_numpy()
        counted = np.sort(random.choice(positions, min(COUNTED, len(own)), replace=False))
        shown = positions[spread(own.patient.cat.codes.to_numpy(), SLICES, random)]
        pictures, histogram = [pixels[place] for place in shown], store.histogram(pixels, counted)
        found.append(Sample(source, len(own), own.patient.nunique(), pictures, len(counted), histogram))
    return found


def spread(patient_of: np.ndarray, n: int, random: np.random.Generator) -> np.ndarray:
    """Up to `n` rows of `patient_of`: one of each of `n` patients, a second round where there are fewer patients."""
    shuffled = random.permutation(len(patient_of))
    _, first, patient = np.unique(patient_of[shuffled], return_index=True, return_inverse=True)
    by_patient = np.argsort(patient, kind="stable")
    sizes = np.bincount(patient)
    rounds = np.empty(len(patient), dtype=np.int64)
    rounds[by_patient] = np.arange(len(patient)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return shuffled[np.lexsort((first[patient], rounds))][:n]  # by round, then by when a patient first came up


def draw(shown: list[Sample], train: dict[str, float]) -> Figure:
    """A row for each source: its pictures, windowed, and its histogram. `train`: the store's mean and std."""
    hu_min, hu_max = windows.PRESETS[WINDOW]
    heights_inch = [0.35, 0.4, *[2.4] * len(shown), 0.35]
    figure = Figure(figsize=(18, sum(heights_inch)), layout="constrained")
    above, head, *rows, below = figure.subfigures(len(heights_inch), 1, height_ratios=heights_inch)
    middle = {"x": 0.5, "y": 0.5, "ha": "center", "va": "center"}
    for band in (above, below):  # twice, so that half a sheet still says it
        band.set_facecolor("#B00020")
        band.text(s=BANNER, fontsize=15, weight="bold", color="white", **middle)
    statistics = (
        f"mean {train['mean']:.6f}, std {train['std']:.6f}; the paper's, window unknown: {PAPER_MEAN}, {PAPER_STD}"
    )
    head.text(s=f"Window {hu_min} to {hu_max} HU. Training split in it: {statistics}", fontsize=11, **middle)
    for row, sample in zip(rows, shown, strict=True):
        left, right = row.subfigures(1, 2, width_ratios=[4, 1])
        left.suptitle(f"{sample.source}: slices {sample.slices:,}, patients {sample.patients:,}", x=0.005, ha="left")
        panels = left.subplots(1, SLICES)
        for axes in panels:
            axes.axis("off")
        for axes, picture in zip(panels, sample.pictures, strict=False):
            axes.imshow(picture, cmap="gray", vmin=hu_min + HU_OFFSET, vmax=hu_max + HU_OFFSET)
        mean, std = windows.statistics(sample.histogram, hu_min, hu_max)
        binned = sample.histogram.reshape(-1, BIN_HU).sum(axis=1)
        axes = right.subplots()
        axes.stairs(binned, np.arange(0, store.VALUES + 1, BIN_HU) - HU_OFFSET, fill=True, color="#56B4E9")
        axes.set(yscale="log", xlim=(windows.HU_MIN, windows.HU_MAX + 1))
        for limit in (hu_min, hu_max):
            axes.axvline(limit, color="#D55E00", linestyle="--", linewidth=1)
        axes.set_xlabel(f"HU ({sample.counted:,} slices, pixels per {BIN_HU} HU; dashed: the window)", fontsize=8)
        axes.set_title(f"mean {mean:.6f}, std {std:.6f}\n(paper: {PAPER_MEAN}, {PAPER_STD})", fontsize=9)
    return figure
