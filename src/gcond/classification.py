"""A third task beside the reconstruction: what is shown, told from the encoder's features.

B batch, H hidden patches, C channels, p patch size, S image size, k classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gcond.loss import ReconstructionLoss


class ClassifyingLoss(ReconstructionLoss):
    """The reconstruction losses, and "class": the cross-entropy of the model's logits [B, k] with the labels [B], mean
    over images, in float32 (float64 stays float64), under autocast too."""

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
                wide = torch.promote_types(logits.dtype, torch.float32)
                losses["class"] = nn.functional.cross_entropy(logits.to(wide), labels)
        return {task: losses[task] for task in tasks}
