"""A third task beside the reconstruction: classification from the encoder's features.

B batch, H hidden patches, C channels, p patch size, S image size, k classes or findings, n images.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gcond.loss import ReconstructionLoss


class ClassifyingLoss(ReconstructionLoss):
    """The reconstruction losses, and "class", of the model's logits [B, k].

    Labels [B], integers, are one of k classes an image: cross-entropy, mean over images. Labels [B, k], 0 or 1 in
    floating point, are k findings, any number an image: binary cross-entropy, mean over images and findings. In float32
    (float64 stays float64), under autocast too.
    """

    classifies = True

    @property
    def tasks(self) -> tuple[str, ...]:
        return (*self.pixel_tasks, "class")

    def __call__(
        self,
        predictions: Tensor,
        images: Tensor,
        hidden: Tensor,
        tasks: Sequence[str],
        logits: Tensor | None = None,
        labels: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """As in `ReconstructionLoss`. ValueError where "class" is asked for without logits and labels."""
        losses = super().__call__(predictions, images, hidden, [task for task in tasks if task != "class"])
        if "class" in tasks:
            if logits is None or labels is None:
                raise ValueError("`tasks`: expected logits and labels for class, found none")
            with torch.autocast(images.device.type, enabled=False):
                logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
                findings = labels.is_floating_point()
                entropy = nn.functional.binary_cross_entropy_with_logits if findings else nn.functional.cross_entropy
                losses["class"] = entropy(logits, labels.to(logits.dtype) if findings else labels)
        return {task: losses[task] for task in tasks}


def hits(logits: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Of classes, labels [n]: "top1", whether the largest logit [n, k] is the label's, and with more than five classes
    "top5", whether it is among the five largest."""
    found = {"top1": logits.argmax(1) == labels}
    return found | ({"top5": (logits.topk(5).indices == labels[:, None]).any(1)} if logits.shape[1] > 5 else {})


def area_under_roc(scores: Tensor, positive: Tensor) -> float:
    """The probability that a positive scores above a negative, ties counting half: Mann-Whitney's U over its largest
    value. Scores [n], `positive` bool [n]; nan where one of the two kinds is absent."""
    positives = int(positive.sum())
    pairs = positives * (len(scores) - positives)
    if not pairs:
        return float("nan")
    _, place, counts = scores.unique(return_inverse=True, return_counts=True)
    ranks = counts.cumsum(0) - (counts - 1).double() / 2  # from 1 on; of equal scores their mean
    return (float(ranks[place][positive].sum()) - positives * (positives + 1) / 2) / pairs
