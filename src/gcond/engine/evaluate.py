"""Validation and test losses, with one fixed mask per image.

n images, H hidden patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet
from gcond.engine.interrupt import leave_to_the_parent, signals_held_back
from gcond.engine.labels import Labelling
from gcond.engine.prefetch import Ahead, transfer_to
from gcond.engine.team import Team
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.strategy.processes import Alone

MASK_SEED = 0  # of every run's validation and test masks, whatever its own seed
BATCH = 32


@dataclass(frozen=True)
class EvaluationSet:
    """A split, thinned to `count` evenly spaced images, with the hidden patches [n, H] and the label [n] of each."""

    images: Subset[Tensor]
    hidden: Tensor
    labels: Tensor | None = None

    @staticmethod
    def of(
        images: ImageSet,
        count: int | None,
        patches: int,
        mask_ratio: float,
        labelling: Labelling | None = None,
        split: str = "val",
    ) -> EvaluationSet:
        indices = torch.arange(len(images))
        if count is not None and count < len(images):
            indices = torch.linspace(0, len(images) - 1, count).round().long()
        chosen = indices.tolist()
        images, labels = (images, None) if labelling is None else labelling.fixed(images, split, chosen)
        return EvaluationSet(Subset(images, chosen), fixed_hidden(chosen, patches, mask_ratio, MASK_SEED), labels)  # type: ignore[arg-type]

    def part(self, rank: int, size: int) -> EvaluationSet:
        """Every `size`-th image, from `rank` on."""
        places = range(rank, len(self.images), size)
        labels = None if self.labels is None else self.labels[rank::size]
        return EvaluationSet(Subset(self.images, places), self.hidden[rank::size], labels)


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: ReconstructionLoss,
    intensity: Intensity,
    data: EvaluationSet,
    tasks: Sequence[str],
    device: torch.device,
    workers: int = 0,
    team: Team | None = None,
) -> dict[str, float]:
    """Mean loss per task over the images, the model in eval mode (running BatchNorm statistics) and in float32.

    With a loss that classifies also "top1", the share of images whose largest logit is that of their label.

    Every process of the team takes its part of the images.
    """
    team = team or Team(Alone(), device)
    part = data.part(team.rank, team.size)
    model.eval()
    names = [*tasks, "top1"] if loss.classifies else list(tasks)
    totals = torch.zeros(len(names) + 1, dtype=torch.float64, device=device)  # per task, and of images
    with signals_held_back():
        loader = iter(
            DataLoader(
                part.images,
                batch_size=BATCH,
                num_workers=workers,
                pin_memory=device.type == "cuda",
                worker_init_fn=leave_to_the_parent,
            )
        )
    parts = [tensor.split(BATCH) for tensor in (part.hidden, part.labels) if tensor is not None]
    for raw, hidden, *rest in Ahead(zip(loader, *parts, strict=False), transfer_to(device)):
        images = intensity.normalise(raw)
        if loss.classifies:
            predictions, logits = model(images, hidden, classify=True)
            more: dict[str, Any] = {"logits": logits, "labels": rest[0]}
            values = loss(predictions, images, hidden, tasks, **more)
            values["top1"] = (logits.argmax(1) == rest[0]).double().mean()
        else:
            values = loss(model(images, hidden), images, hidden, tasks)
        totals[:-1] += torch.stack([values[name].double() for name in names]) * len(raw)
        totals[-1] += len(raw)
    *sums, images_seen = team.sum(totals).tolist()
    return {name: total / images_seen for name, total in zip(names, sums, strict=True)}
