"""Validation and test losses, with one fixed mask per image.

n images, H hidden patches.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gcond.data.intensity import Intensity
from gcond.data.splits import Splits
from gcond.engine.interrupt import leave_to_the_parent, signals_held_back
from gcond.engine.labels import Labelling
from gcond.engine.prefetch import Ahead, transfer_to
from gcond.engine.team import Team
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.scores import BODY, Scores, per_image
from gcond.strategy.processes import SingleProcess

MASK_SEED = 0  # of every run's validation and test masks, whatever its own seed
BATCH = 32


@dataclass(frozen=True)
class EvaluationSet:
    """Images of a split, with the hidden patches [n, H], the label [n] and the group of each.

    `groups` are patients or classes, `body_above` is as in `Splits`.
    """

    images: Subset[Tensor]
    hidden: Tensor
    labels: Tensor | None = None
    groups: Sequence[str] | None = None
    body_above: int | None = None

    @staticmethod
    def of(
        data: Splits,
        split: str,
        count: int | None,
        patches: int,
        mask_ratio: float,
        labelling: Labelling | None = None,
    ) -> EvaluationSet:
        """`split` is val or test; thinned to `count` evenly spaced images, None for all."""
        images = getattr(data, split)
        chosen = _evenly_spaced(len(images), count)
        images, labels = (images, None) if labelling is None else labelling.fixed(images, split, chosen)
        groups = None if data.groups is None else [data.groups[split][place] for place in chosen]
        hidden = fixed_hidden(chosen, patches, mask_ratio, MASK_SEED)
        return EvaluationSet(Subset(images, chosen), hidden, labels, groups, data.body_above)

    def thinned(self, count: int | None) -> EvaluationSet:
        """`count` evenly spaced images, with the masks that they have here; None for all."""
        return self._at(_evenly_spaced(len(self.images), count))

    def part(self, rank: int, size: int) -> EvaluationSet:
        """Every `size`-th image, from `rank` on."""
        return self._at(range(rank, len(self.images), size))

    def _at(self, places: Sequence[int]) -> EvaluationSet:
        own = list(places)
        return replace(
            self,
            images=Subset(self.images, own),
            hidden=self.hidden[own],
            labels=None if self.labels is None else self.labels[own],
            groups=None if self.groups is None else [self.groups[place] for place in own],
        )


def _evenly_spaced(length: int, count: int | None) -> list[int]:
    if count is None or count >= length:
        return list(range(length))
    return torch.linspace(0, length - 1, count).round().long().tolist()


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
) -> Scores:
    """The losses of each image, the model in eval mode (running BatchNorm statistics) and in float32.

    With a loss that classifies also "top1", for CT also "body_l1" (`gcond.scores`). Every process of the team takes its
    part of the images, and gets the scores of all.
    """
    team = team or Team(SingleProcess(), device)
    part = data.part(team.rank, team.size)
    model.eval()
    names = [
        *tasks,
        *(["top1"] if loss.classifies else []),
        *([] if data.body_above is None else [BODY, "body_images"]),
    ]
    table = torch.zeros(len(data.images), len(names), dtype=torch.float64, device=device)
    own = table[team.rank :: team.size]
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
    start = 0
    for raw, hidden, *rest in Ahead(zip(loader, *parts, strict=False), transfer_to(device)):
        images = intensity.normalise(raw)
        more: dict[str, Tensor] = {}
        if loss.classifies:
            predictions, logits = model(images, hidden, classify=True)
            more = {"logits": logits, "labels": rest[0]}
        else:
            predictions = model(images, hidden)
        body = None if data.body_above is None else raw > data.body_above
        values = per_image(loss, predictions, images, hidden, tasks, body, **more)
        own[start : start + len(raw)] = torch.stack([values[name] for name in names], dim=1)
        start += len(raw)
    return dict(zip(names, team.sum(table).cpu().unbind(1), strict=True))
