"""Losses of single images and their means: what a model and the trivial predictors are measured by.

B batch, n images, C channels, S image size, H hidden patches, p patch size.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gcond.loss import ReconstructionLoss
from gcond.model.patches import patchify, select

BODY = "body_l1"
"""Mean absolute error in z-space over the pixels of hidden patches that show the body: air is easily guessed.

An image without such a pixel has none; "body_images" counts those that have one.
"""

Scores = dict[str, Tensor]  # measure -> its value for each image, float64 [n]


def per_image(
    loss: ReconstructionLoss,
    predictions: Tensor,
    images: Tensor,
    hidden: Tensor,
    tasks: Sequence[str],
    body: Tensor | None = None,
    **more: Tensor,
) -> Scores:
    """The losses of each image by itself, [B]; arguments as those of `loss`.

    With `logits` and `labels` also "top1": 1 where the largest logit is that of the label. With `body`, bool
    [B, C, S, S], also "body_l1" (0 where it is undefined) and "body_images" (1 where it is defined).
    """

    def alone(parts: dict[str, Tensor]) -> dict[str, Tensor]:
        return loss(**{name: part.unsqueeze(0) for name, part in parts.items()}, tasks=tasks)

    values: dict[str, Tensor] = torch.vmap(alone)(
        {"predictions": predictions, "images": images, "hidden": hidden, **more}
    )
    if more:
        values["top1"] = more["logits"].argmax(1) == more["labels"]
    if body is not None:
        targets, inside = (select(patchify(pixels, loss.patch_size), hidden) for pixels in (images, body))
        errors = torch.where(inside, (predictions - targets).abs(), 0).flatten(1).sum(1)
        pixels = inside.flatten(1).sum(1)
        values |= {BODY: errors / pixels.clamp(min=1), "body_images": pixels > 0}
    return {name: value.double() for name, value in values.items()}


def means(scores: Scores) -> dict[str, float]:
    """Of all images, each counting alike; "body_l1" is that of the images which have one, nan where none has.

    "body_images" is their number.
    """
    found = {name: float(values.mean()) for name, values in scores.items()}
    if BODY in scores:
        count = float(scores["body_images"].sum())
        found |= {BODY: float(scores[BODY].sum()) / count if count else float("nan"), "body_images": int(count)}
    return found


def by_group(scores: Scores, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Group (a patient, a class) -> its number of "images" and their means; `groups` [n] names that of each image."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    return {
        group: {"images": len(own)} | means({name: values[own] for name, values in scores.items()})
        for group, own in places.items()
    }
