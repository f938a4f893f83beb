"""Images -> features: the encoder's map, averaged over its positions; and, as a control, the pixels themselves.

B batch, C channels, S image size, D features, N patches, T = 4 turns, n images.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.batches import TURNS
from gcond.model import MaskedAutoencoder

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
) -> NDArray[np.float64]:
    """[T, n, D] of the images at `places`, each turned four times."""
    batches = []
    for start in range(0, len(places), BATCH):
        raw = torch.stack([images[place] for place in places[start : start + BATCH]])
        seen = intensity.normalise(raw.to(device))
        turned = [describe(torch.rot90(seen, turn, (2, 3))) for turn in range(TURNS)]
        batches.append(torch.stack(turned).cpu().double().numpy())
    return np.concatenate(batches, axis=1)
