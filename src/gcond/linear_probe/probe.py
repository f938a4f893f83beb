"""A linear probe: what it is asked, the features of frozen weights, and a ridge regression on them.

rotation  By which of 0, 90, 180, 270 degrees an image was turned (Gidaris et al. 2018, arXiv 1803.07728). Needs no
          labels, so every data set has it; an image without an up (a retina, a microscope's field) cannot be told.
height    CT. How far above its volume's middle a slice lies, in mm; scored within a volume, by rank correlation, since
          volumes begin and end in different places of the body (slice order as a label: Yan et al. 2018, arXiv
          1707.03891). A volume has its own intercept in the fit.
class     Photographs with labels.

The body part is no task: with ten patients, whose part, scanner and field of view go together, it names the patient.
Train, val and test are the run's own: no patient and no scene is in two of them. One closed form serves numbers and
classes (one-hot targets, the largest answer counts), so that no optimizer has a part in the comparison.

B batch, C channels, S image size, D features, T = 4 turns, n images, k targets.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig
from scipy.stats import spearmanr
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gcond.data import ct, imagenet256
from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.batches import TURNS
from gcond.model import MaskedAutoencoder

Array = NDArray[np.float64]
Describe = Callable[[Tensor], Tensor]  # images [B, C, S, S] in z-space -> [B, D]
ACCURACY, RANKS = "accuracy", "rank correlation within a volume"
BATCH = 64
PIXELS = 8  # per side, of the control
STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 9))  # of features with variance 1


# Tasks.


@dataclass(frozen=True)
class Task:
    """`targets` [n, k] of the training images; `turned`: n counts every image four times, turn by turn.

    `score(answers, "val" or "test")`: larger is better. With `groups` [n] the fit has an intercept per group.
    """

    name: str
    measure: str
    turned: bool
    targets: Array
    score: Callable[[Array, str], float]
    chance: float
    groups: NDArray[np.str_] | None = None


def tasks(dataset: DictConfig, places: Mapping[str, Sequence[int]]) -> list[Task]:
    """The tasks that a run's data set allows; `places`: split -> which of its images are looked at."""
    turns = {split: np.repeat(np.arange(TURNS), len(own)) for split, own in places.items()}
    found = [classes("rotation", turns, turned=True)]
    shows_ct, labelled = dataset._target_ == "gcond.data.ct.load", bool(dataset.get("labelled"))
    if shows_ct and (slices := ct.heights(dataset.root, labelled)) is not None:
        found.append(
            height({split: [np.array(column)[own] for column in slices[split]] for split, own in places.items()})
        )
    if dataset._target_ == "gcond.data.imagenet256.load" and (labels := imagenet256.labels(dataset.root)) is not None:
        found.append(classes("class", {split: np.array(labels[split])[own] for split, own in places.items()}))
    return found


def classes(name: str, labels: Mapping[str, NDArray[np.generic]], turned: bool = False) -> Task:
    """A task with one-hot targets; chance is to answer the most frequent class of the training images."""
    names, numbers, counts = np.unique(labels["train"], return_inverse=True, return_counts=True)

    def score(answers: Array, split: str) -> float:
        return float((names[answers.argmax(1)] == labels[split]).mean())

    frequent = float((labels["test"] == names[counts.argmax()]).mean())
    return Task(name, ACCURACY, turned, np.eye(len(names))[numbers], score, frequent)


def height(slices: Mapping[str, Sequence[NDArray[np.generic]]]) -> Task:
    """A task of `slices`: the volume and the height in mm of every slice, by split."""

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


# Features.


def encoder(model: MaskedAutoencoder) -> Describe:
    """The encoder's mean map of whole images. In training three quarters of the patches were hidden, so it sees another
    distribution, as every masked autoencoder does when it is probed; BatchNorm keeps its running statistics."""
    model.eval()

    def describe(images: Tensor) -> Tensor:
        nothing = torch.zeros(len(images), model.patches, dtype=torch.bool, device=images.device)
        return model.encode(images, nothing).mean(dim=(2, 3))

    return describe


def pixels(images: Tensor) -> Tensor:
    """Mean colours of an 8 x 8 grid: [B, C, S, S] -> [B, C * 8 * 8]."""
    return adaptive_avg_pool2d(images, PIXELS).flatten(1)


@torch.no_grad()
def features(
    describe: Describe, images: ImageSet, places: Sequence[int], intensity: Intensity, device: torch.device
) -> Array:
    """Features [T, n, D] of the images at `places`, each turned four times."""
    batches = []
    for start in range(0, len(places), BATCH):
        raw = torch.stack([images[place] for place in places[start : start + BATCH]])
        seen = intensity.normalise(raw.to(device))
        turned = [describe(torch.rot90(seen, turn, (2, 3))) for turn in range(TURNS)]
        batches.append(torch.stack(turned).cpu().double().numpy())
    return np.concatenate(batches, axis=1)


# The fit.


@dataclass(frozen=True)
class Probed:
    """`val` and `test`: the score of the strength with the best `val`, the largest such strength on ties."""

    strength: float
    val: float
    test: float


def probe(turns: Mapping[str, Array], task: Task) -> Probed:
    """Fit the task on `turns["train"]` [T, n, D], choose the strength on "val".

    Raises ValueError for features that are not finite.
    """
    features = {split: np.concatenate(own) if task.turned else own[0] for split, own in turns.items()}
    for split, values in features.items():
        if wrong := (~np.isfinite(values)).sum():
            raise ValueError(f"features of {split}: expected finite numbers, found {wrong} others")
    train, targets = features["train"], task.targets
    if task.groups is not None:  # the same as an intercept per group
        train, targets = centred(train, task.groups), centred(targets, task.groups)
    mean, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 0, spread, 1.0)  # a dead channel tells nothing
    known = {split: (features[split] - mean) / spread for split in ("val", "test")}
    found = []
    for strength, weights, intercept in ridge((train - mean) / spread, targets, sorted(STRENGTHS, reverse=True)):
        val, test = (task.score(values @ weights + intercept, split) for split, values in known.items())
        found.append(Probed(strength, val, test))
    return max(found, key=lambda each: each.val)


def ridge(features: Array, targets: Array, strengths: Sequence[float]) -> list[tuple[float, Array, Array]]:
    """Strength, weights [D, k] and intercept [k] that minimise mean |Y - X W - b|^2 + strength |W|^2.

    `features` [n, D] have mean zero; one eigendecomposition serves every strength.
    """
    intercept = targets.mean(0)
    values, vectors = np.linalg.eigh(features.T @ features / len(features))
    turned = vectors.T @ (features.T @ (targets - intercept)) / len(features)
    return [(strength, vectors @ (turned / (values + strength)[:, None]), intercept) for strength in strengths]


def centred(values: Array, groups: NDArray[np.str_]) -> Array:
    """Subtract the mean of each group's rows."""
    result = values.astype(np.float64)
    for group in np.unique(groups):
        result[groups == group] -= result[groups == group].mean(0)
    return result
