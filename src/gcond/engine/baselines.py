"""Constant predictors: what a model must beat before its numbers mean much. Scored once per data set and scale.

B batch, C channels, S image size, N patches, H hidden patches, n images.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from omegaconf import DictConfig, OmegaConf
from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import Tensor

from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet, Splits
from gcond.engine.batches import Labelling
from gcond.engine.evaluate import EvaluationSet, Scores, means, per_image
from gcond.files import write_json
from gcond.loss import ReconstructionLoss
from gcond.model.patches import hidden_mask, patchify, select

BATCH = 64


def score_constants(
    train: ImageSet,
    evaluate: ImageSet,
    hidden: Tensor,
    loss: ReconstructionLoss,
    intensity: Intensity,
    max_train_images: int = 4096,
    body_above: int | None = None,
) -> dict[str, dict[str, float]]:
    """`{"dataset_mean": {"l1": ..., "ssim": ...}, "global_median": ..., "pixel_median": ..., "visible_mean": ...}`.

    All four are per channel: the mean of the data set (0 in z-space), the median of all pixels of the training set,
    its median at each position, and the mean of the image's own visible pixels. Medians come from
    min(len(train), max_train_images) evenly spaced images of `train`.

    `hidden` [n, H] are the hidden patches of the n images of `evaluate`, the same for a model to be compared; the
    scores are computed on its device, for tasks that need predictions alone. "ssim" is 1 - SSIM. With `body_above`, the
    raw value above which a pixel shows the body, also "body_l1" and
    "body_images". ValueError when n or the training set does not fit.
    """
    if len(hidden) != len(evaluate):
        raise ValueError(f"`hidden` must have one row per image, found {len(hidden)} rows and {len(evaluate)} images")
    global_median, pixel_median = _training_medians(train, intensity, max_train_images)
    constants = {"dataset_mean": torch.zeros_like(global_median), "global_median": global_median}
    constants = {name: image.to(hidden.device) for name, image in (constants | {"pixel_median": pixel_median}).items()}
    scores: dict[str, list[Scores]] = {}
    for start in range(0, len(evaluate), BATCH):
        rows = hidden[start : start + BATCH]
        raw = _stack(evaluate, range(start, start + len(rows))).to(hidden.device)
        images = intensity.normalise(raw)
        body = None if body_above is None else raw > body_above
        predicted = constants | {"visible_mean": _visible_mean(images, rows, loss.patch_size)}
        for name, image in predicted.items():
            patches = select(patchify(image.expand_as(images), loss.patch_size), rows)
            scores.setdefault(name, []).append(per_image(loss, patches, images, rows, loss.pixel_tasks, body))
    return {
        name: means({task: torch.cat([part[task] for part in parts]) for task in parts[0]})
        for name, parts in scores.items()
    }


def _training_medians(train: ImageSet, intensity: Intensity, max_images: int) -> tuple[Tensor, Tensor]:
    """Median per channel, spread over an image, and median per pixel: both [1, C, S, S] in z-space.

    Taken on the raw integers, which hold a quarter of the memory; normalising is monotone, so it makes no difference.
    """
    raw = _stack(train, _evenly_spaced(len(train), max_images))
    per_pixel = raw.median(dim=0).values
    per_channel = torch.stack([raw[:, c].median() for c in range(raw.shape[1])])
    spread = per_channel[:, None, None].expand_as(per_pixel)
    return intensity.normalise(spread[None]), intensity.normalise(per_pixel[None])


def _visible_mean(images: Tensor, hidden: Tensor, patch_size: int) -> Tensor:
    """Mean over the visible patches of images [B, C, S, S] -> [B, C, 1, 1]."""
    patches = patchify(images, patch_size)
    visible = ~hidden_mask(hidden, patches.shape[1])
    patch_means = patches.mean(dim=(-2, -1))
    sums = (patch_means * visible[..., None]).sum(dim=1)
    return (sums / visible.sum(dim=1, keepdim=True))[..., None, None]


def _evenly_spaced(length: int, at_most: int) -> list[int]:
    if length == 0 or at_most < 1:
        raise ValueError(f"medians need a training image, found {length} images and `max_train_images` = {at_most}")
    count = min(length, at_most)
    return [i * length // count for i in range(count)]


def _stack(images: ImageSet, indices: Sequence[int]) -> Tensor:
    return torch.stack([images[i] for i in indices])


Baselines = dict[str, dict[str, float]]
TABLES = TypeAdapter(Baselines, config=ConfigDict(strict=True, allow_inf_nan=False))
VERSION = 2  # of what is measured


def baseline_scores(
    cfg: DictConfig,
    data: Splits,
    sets: Mapping[str, EvaluationSet],
    loss: ReconstructionLoss,
    labelling: Labelling | None = None,
) -> Baselines:
    """predictor -> {"val_l1", …, "test_l1", …}, for all tasks of `loss`; classes are guessed, each equally likely.

    Of CT also "val_body_l1" and "test_body_l1".
    """
    key = [VERSION, *(OmegaConf.to_container(cfg[part], resolve=True) for part in ("dataset", "loss", "scale"))]
    digest = hashlib.sha256(json.dumps([*key, data.facts["checksum"]], sort_keys=True).encode()).hexdigest()[:10]
    path = Path(cfg.runs) / cfg.scale.name / f"trivial-{cfg.dataset.name}-{digest}.json"
    tasks = [*loss.pixel_tasks, *(("class", "top1") if labelling else ())]
    if path.exists():
        if kept := _kept(path, {f"{split}_{task}" for split in sets for task in tasks}):
            return kept
        print(f"{path}: damaged, so it is computed again", file=sys.stderr)
    scores: Baselines = {}
    for split, evaluation in sets.items():
        for name, values in score_constants(
            data.train,
            evaluation.images,  # type: ignore[arg-type]
            evaluation.hidden,
            loss,
            data.intensity,
            body_above=evaluation.body_above,
        ).items():
            values.pop("body_images", None)
            scores.setdefault(name, {}).update({f"{split}_{task}": value for task, value in values.items()})
    if labelling is not None:  # by chance
        for own in scores.values():
            for split in sets:
                own |= {f"{split}_class": math.log(labelling.classes), f"{split}_top1": 1 / labelling.classes}
    write_json(path, scores)
    return scores


def _kept(path: Path, needed: set[str]) -> Baselines | None:
    """The scores in `path`; None unless every predictor has finite numbers, those that are `needed` among them."""
    try:
        scores = TABLES.validate_json(path.read_bytes())
    except ValidationError:
        return None
    return scores if scores and all(needed <= own.keys() for own in scores.values()) else None
