"""What a probe is asked. Train, val and test are the run's own: no patient and no scene is in two of them.

rotation  By which of 0, 90, 180, 270 degrees an image was turned (Gidaris et al. 2018, arXiv 1803.07728). Needs no
          labels, so every data set has it; an image without an up (a retina, a microscope's field) cannot be told.
height    CT. How far above its volume's middle a slice lies, in mm; scored within a volume, by rank correlation, since
          volumes begin and end in different places of the body (slice order as a label: Yan et al. 2018, arXiv
          1707.03891). A volume has its own intercept in the fit.
class     Photographs with labels.

The body part is no task: with ten patients, whose part, scanner and field of view go together, it names the patient.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from omegaconf import DictConfig
from scipy.stats import spearmanr

from gcond.data import ct, imagenet256
from gcond.engine.batches import TURNS
from gcond.linear_probe.probe import Array

SPLITS = ("train", "val", "test")
ACCURACY, RANKS = "accuracy", "rank correlation within a volume"
Places = Mapping[str, Sequence[int]]  # split -> which of its images are looked at


@dataclass(frozen=True)
class Task:
    """`targets` [n, k] of the training images; `turned`: n counts every image four times, turn by turn."""

    name: str
    measure: str
    turned: bool
    targets: Array
    score: Callable[[Array, str], float]
    chance: float
    groups: NDArray[np.str_] | None = None


def tasks(dataset: DictConfig, places: Places) -> list[Task]:
    """Those that the data set of a run's config has."""
    found = [rotation({split: len(own) for split, own in places.items()})]
    if dataset._target_ == "gcond.data.ct.load" and (slices := ct.heights(dataset.root)) is not None:
        found.append(
            height({split: [np.array(column)[own] for column in slices[split]] for split, own in places.items()})
        )
    if dataset._target_ == "gcond.data.imagenet256.load" and (labels := imagenet256.labels(dataset.root)) is not None:
        found.append(classes("class", {split: np.array(labels[split])[own] for split, own in places.items()}))
    return found


def rotation(counts: Mapping[str, int]) -> Task:
    turns = {split: np.repeat(np.arange(TURNS), count) for split, count in counts.items()}
    return classes("rotation", turns, turned=True)


def classes(name: str, labels: Mapping[str, NDArray[np.generic]], turned: bool = False) -> Task:
    """Chance: always the most frequent class of the training images."""
    names, numbers, counts = np.unique(labels["train"], return_inverse=True, return_counts=True)

    def score(answers: Array, split: str) -> float:
        return float((names[answers.argmax(1)] == labels[split]).mean())

    frequent = float((labels["test"] == names[counts.argmax()]).mean())
    return Task(name, ACCURACY, turned, np.eye(len(names))[numbers], score, frequent)


def height(slices: Mapping[str, Sequence[NDArray[np.generic]]]) -> Task:
    """`slices`: the volume and the height in mm of every slice, by split."""

    def score(answers: Array, split: str) -> float:
        """Mean over volumes; 0 for one whose slices all get the same answer."""
        volumes, heights_mm = slices[split]
        found = []
        for volume in np.unique(volumes):
            own = volumes == volume
            constant = np.ptp(answers[own]) == 0 or own.sum() < 2
            found.append(0.0 if constant else float(spearmanr(answers[own, 0], heights_mm[own]).statistic))
        return float(np.mean(found))

    volumes, heights_mm = slices["train"]
    return Task("height", RANKS, False, heights_mm[:, None].astype(np.float64), score, 0.0, volumes.astype(str))
