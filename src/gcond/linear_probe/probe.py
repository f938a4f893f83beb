"""A linear probe: features of frozen weights, and a ridge regression on them, its strength chosen on validation.

B batch, C channels, S image size, D features, N patches, T = 4 turns, n images, k targets. One closed form serves
numbers and classes (one-hot targets, the largest answer counts), so that no optimizer has a part in the comparison.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.batches import TURNS
from gcond.model import MaskedAutoencoder

Array = NDArray[np.float64]
BATCH = 64
PIXELS = 8  # per side, of the control

Describe = Callable[[Tensor], Tensor]  # images [B, C, S, S] in z-space -> [B, D]


def encoder(model: MaskedAutoencoder) -> Describe:
    """Of whole images: no patch is hidden. In training three quarters were, so the encoder sees another distribution,
    as every masked autoencoder does when it is probed; BatchNorm keeps its running statistics."""
    model.eval()

    def describe(images: Tensor) -> Tensor:
        nothing = torch.zeros(len(images), model.patches, dtype=torch.bool, device=images.device)
        return model.encode(images, nothing).mean(dim=(2, 3))

    return describe


def pixels(images: Tensor) -> Tensor:
    """[B, C, S, S] -> [B, C * 8 * 8]."""
    return adaptive_avg_pool2d(images, PIXELS).flatten(1)


@torch.no_grad()
def features(
    describe: Describe, images: ImageSet, places: Sequence[int], intensity: Intensity, device: torch.device
) -> Array:
    """[T, n, D] of the images at `places`, each turned four times."""
    batches = []
    for start in range(0, len(places), BATCH):
        raw = torch.stack([images[place] for place in places[start : start + BATCH]])
        seen = intensity.normalise(raw.to(device))
        turned = [describe(torch.rot90(seen, turn, (2, 3))) for turn in range(TURNS)]
        batches.append(torch.stack(turned).cpu().double().numpy())
    return np.concatenate(batches, axis=1)


STRENGTHS = tuple(10.0 ** (power / 2) for power in range(-8, 9))  # of features with variance 1


@dataclass(frozen=True)
class Probed:
    """`val` and `test`: the score of the strength with the best `val`, the largest such strength on ties."""

    strength: float
    val: float
    test: float


def probe(
    features: Mapping[str, Array],
    targets: Array,
    score: Callable[[Array, str], float],
    groups: NDArray[np.str_] | None = None,
) -> Probed:
    """Fit `targets` [n, k] on `features["train"]` [n, D]; `score(answers, "val" or "test")`, larger is better.

    With `groups` [n] both are centred within each group first: an intercept per group. Raises ValueError for features
    that are not finite.
    """
    for split, values in features.items():
        if not np.isfinite(values).all():
            raise ValueError(
                f"features of {split}: expected finite numbers, found {(~np.isfinite(values)).sum()} others"
            )
    train = features["train"] if groups is None else centred(features["train"], groups)
    wanted = targets if groups is None else centred(targets, groups)
    mean, spread = train.mean(0), train.std(0)
    spread = np.where(spread > 0, spread, 1.0)  # a dead channel tells nothing
    known = {split: (features[split] - mean) / spread for split in ("val", "test")}
    solve = ridge((train - mean) / spread, wanted)
    best = None
    for strength in reversed(STRENGTHS):
        weights, intercept = solve(strength)
        val = score(known["val"] @ weights + intercept, "val")
        if best is None or val > best.val:
            best = Probed(strength, val, score(known["test"] @ weights + intercept, "test"))
    assert best is not None
    return best


def ridge(features: Array, targets: Array) -> Callable[[float], tuple[Array, Array]]:
    """strength -> weights [D, k] and intercept [k] that minimise mean |Y - X W - b|^2 + strength |W|^2.

    `features` [n, D] have mean zero; one eigendecomposition serves every strength.
    """
    intercept = targets.mean(0)
    values, vectors = np.linalg.eigh(features.T @ features / len(features))
    turned = vectors.T @ (features.T @ (targets - intercept)) / len(features)

    def solve(strength: float) -> tuple[Array, Array]:
        return vectors @ (turned / (values + strength)[:, None]), intercept

    return solve


def centred(values: Array, groups: NDArray[np.str_]) -> Array:
    """Less the mean of each group's rows."""
    result = values.astype(np.float64)
    for group in np.unique(groups):
        result[groups == group] -= result[groups == group].mean(0)
    return result
