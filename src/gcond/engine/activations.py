"""How widely the encoder's activations spread: the last layer's map on fixed images.

n images, N patches, D width of the map.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gcond.data.intensity import Intensity
from gcond.engine.evaluate import BATCH, EvaluationSet
from gcond.model import MaskedAutoencoder
from gcond.model.patches import hidden_mask

IMAGES = 64
QUANTILES = ("0", "0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999", "1")


class Activations:
    """Measures on the first images of a split, at most `IMAGES`, under their fixed masks; patients' too: no picture."""

    def __init__(self, split: EvaluationSet, intensity: Intensity, device: torch.device) -> None:
        self._split, self._intensity, self._device = split, intensity, device

    @torch.no_grad()
    def measure(self, model: MaskedAutoencoder) -> dict[str, Any]:
        """Of all values of the map together; the model is left in eval mode."""
        model.eval()
        maps = []
        count = min(IMAGES, len(self._split.images))
        for start in range(0, count, BATCH):
            places = range(start, min(start + BATCH, count))
            raw = torch.stack([self._split.images[place] for place in places])
            images = self._intensity.normalise(raw.to(self._device))
            hidden = self._split.hidden[start : start + len(raw)].to(self._device)
            maps.append(model.encode(images, hidden_mask(hidden, model.patches)).flatten().cpu())
        return describe(torch.cat(maps))


def describe(values: Tensor) -> dict[str, Any]:
    """Mean, standard deviation, share of exact zeros and quantiles (interpolated); nan where one is not finite."""
    numbers = values.double().numpy()
    with np.errstate(invalid="ignore"):
        quantiles = np.quantile(numbers, [float(share) for share in QUANTILES])
        mean, std = float(numbers.mean()), float(numbers.std())
    return {
        "mean": _finite(mean),
        "std": _finite(std),
        "zero_share": float((numbers == 0).mean()),
        "quantiles": {share: _finite(value) for share, value in zip(QUANTILES, quantiles.tolist(), strict=True)},
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
