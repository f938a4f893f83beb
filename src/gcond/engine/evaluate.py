"""Validation and test losses, with one fixed mask per image.

n images, H hidden patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden

MASK_SEED = 0  # of every run's validation and test masks, whatever its own seed
BATCH = 32


@dataclass(frozen=True)
class EvaluationSet:
    """A split, thinned to `count` evenly spaced images, with the hidden patches [n, H] of each."""

    images: Subset[Tensor]
    hidden: Tensor

    @staticmethod
    def of(images: ImageSet, count: int | None, patches: int, mask_ratio: float) -> EvaluationSet:
        indices = torch.arange(len(images))
        if count is not None and count < len(images):
            indices = torch.linspace(0, len(images) - 1, count).round().long()
        chosen = indices.tolist()
        return EvaluationSet(Subset(images, chosen), fixed_hidden(chosen, patches, mask_ratio, MASK_SEED))  # type: ignore[arg-type]


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: ReconstructionLoss,
    intensity: Intensity,
    data: EvaluationSet,
    tasks: Sequence[str],
    device: torch.device,
    workers: int = 0,
) -> dict[str, float]:
    """Mean loss per task over the images, the model in eval mode (running BatchNorm statistics)."""
    model.eval()
    totals = dict.fromkeys(tasks, torch.zeros((), dtype=torch.float64, device=device))
    start = 0
    for raw in DataLoader(data.images, batch_size=BATCH, num_workers=workers):
        images = intensity.normalise(raw.to(device))
        hidden = data.hidden[start : start + len(raw)].to(device)
        values = loss(model(images, hidden), images, hidden, tasks)
        totals = {task: totals[task] + values[task].double() * len(raw) for task in tasks}
        start += len(raw)
    return {task: float(total / start) for task, total in totals.items()}
