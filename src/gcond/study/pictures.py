"""Figure 10: held-out photographs as original, masked, and as each method fills them in. Never of patients."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from gcond.study.figure_runs import Chosen, family, finish
from gcond.study.methods import facts, label

GREEN = "#00C000"
SAME = ("original", "masked", "hidden")  # of all runs


@dataclass(frozen=True)
class Pictures:
    """n images of C channels and S pixels a side; `hidden` [n, H]: places of patches, row-major."""

    original: np.ndarray  # uint8 [n, C, S, S]
    masked: np.ndarray
    pasted: np.ndarray
    hidden: np.ndarray
    patch_size: int

    def error(self, guess: np.ndarray) -> float:
        """Mean absolute error of `guess` [n, C, S, S] over the hidden pixels, in [0, 1]; it is right elsewhere."""
        share = self.hidden.shape[1] * self.patch_size**2 / self.original.shape[-1] ** 2
        return float(np.abs(guess.astype(float) - self.original).mean() / 255 / share)

    def flat(self) -> np.ndarray:
        """The originals, each hidden patch filled with the mean of the image's visible pixels, by channel."""
        guess = self.original.astype(float)
        for image, places in zip(guess, self.hidden, strict=True):
            mask = self._mask(places)
            image[:, mask] = image[:, ~mask].mean(axis=1, keepdims=True)
        return guess

    def _mask(self, places: np.ndarray) -> np.ndarray:
        across = self.original.shape[-1] // self.patch_size
        mask = np.isin(np.arange(across**2), places).reshape(across, across)
        return np.kron(mask, np.ones((self.patch_size, self.patch_size))).astype(bool)

    def seen(self, image: int) -> Iterable[tuple[float, float]]:
        """Lower corner (x, y) of each visible patch."""
        across = self.original.shape[-1] // self.patch_size
        for place in sorted(set(range(across**2)) - set(self.hidden[image].tolist())):
            yield (place % across) * self.patch_size - 0.5, (place // across) * self.patch_size - 0.5


def read_pictures(path: Path) -> Pictures:
    """Raises ValueError that names the file if it is not what a run leaves."""
    names = ("original", "masked", "pasted", "hidden", "patch_size")
    with np.load(path, allow_pickle=False) as file:
        if missing := set(names) - set(file.files):
            raise ValueError(f"{path}: expected the arrays {', '.join(names)}, found no {', '.join(sorted(missing))}")
        *arrays, size = (file[name] for name in names)
    return Pictures(*arrays, int(size))


def pictures(chosen: Chosen) -> Figure:
    """A row for each image; columns: original, masked, each method. Never of patients."""
    if patients := [dataset for dataset in chosen.datasets if family(dataset) == "ct"]:
        raise ValueError(f"`datasets`: expected photographs, found {', '.join(patients)}: patients are never drawn")
    place = chosen.local / chosen.folder.name
    paths = {
        (run.strategy, run.seed): place / run.name / "final_reconstructions.npz" for run in chosen.runs.itertuples()
    }
    paths = {key: path for key, path in paths.items() if path.exists()}
    if not paths:
        raise ValueError(f"nothing to draw: no run of {chosen.name} in {place} left its pictures")
    there = pd.Series([seed for _, seed in paths])
    order = [*facts("paper")["seeds"], *sorted(there.unique())]
    seed = max(there.unique(), key=lambda own: ((there == own).sum(), -order.index(own)))
    own = {arm: read_pictures(paths[arm, seed]) for arm in chosen.arms if (arm, seed) in paths}
    first = next(iter(own.values()))
    for arm, other in own.items():
        if any(not np.array_equal(getattr(first, part), getattr(other, part)) for part in SAME):
            raise ValueError(f"{paths[arm, seed]}: expected the images and masks of the other runs, found others; "
                             "remove the outdated runs")  # fmt: skip
    columns = {"original\n": first.original, f"masked\nflat guess {first.error(first.flat()):.3f}": first.masked}
    columns |= {f"{label(arm)}\n{each.error(each.pasted):.3f}": each.pasted for arm, each in own.items()}
    figure = Figure(figsize=(1.7 * len(columns), 1.75 * len(first.original) + 1.3), layout="constrained")
    panels = figure.subplots(len(first.original), len(columns), squeeze=False)
    for (image, column), axes in np.ndenumerate(panels):
        words = list(columns)[column]
        pixels = np.moveaxis(columns[words][image], 0, -1)
        axes.imshow(np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(words if image == 0 else "", fontsize=8.5)
        for corner in first.seen(image) if column else ():
            axes.add_patch(Rectangle(corner, *2 * [first.patch_size], fill=False, edgecolor=GREEN, linewidth=1.2))
    chosen.missing.extend(f"{label(arm)}: no pictures of seed {seed}" for arm in chosen.arms if arm not in own)
    finish(figure, chosen, f"Seed {seed}, after the last epoch.")
    return figure
