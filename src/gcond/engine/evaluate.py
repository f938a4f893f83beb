"""Validation and test losses of single images under one fixed mask each: of a model, at its best epoch, of constants.

B batch, n images, C channels, S image size, H hidden patches, p patch size.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.utils.data import Subset

from gcond.classification import area_under_roc, hits
from gcond.data.intensity import Intensity
from gcond.data.splits import ImageSet, Splits
from gcond.engine.batches import LOGIT, TRUTH, Labelling, ahead, read, transfer_to
from gcond.engine.distributed import World
from gcond.engine.run_state import weighted_loss
from gcond.files import read_object, write_json
from gcond.loss import ReconstructionLoss
from gcond.model.masking import fixed_hidden
from gcond.model.patches import hidden_mask, patchify, select
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
    measures: Sequence[str] = ()  # that the labels bring
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
        places = range(len(images))
        images, labels = (images, None) if labelling is None else labelling.fixed(images, split)
        groups = None if data.groups is None else data.groups[split]
        hidden = fixed_hidden(places, patches, mask_ratio, MASK_SEED)
        measures = () if labelling is None else labelling.measures
        return EvaluationSet(Subset(images, places), hidden, labels, measures, groups, data.body_above).thinned(count)

    def thinned(self, count: int | None) -> EvaluationSet:
        """`count` evenly spaced images, with the masks that they have here; None for all."""
        length = len(self.images)
        if count is None or count >= length:
            return self
        return self._at(torch.linspace(0, length - 1, count).round().long().tolist())

    def part(self, rank: int, size: int) -> EvaluationSet:
        """Every `size`-th image, from `rank` on."""
        return self._at(range(rank, len(self.images), size))

    def first(self, count: int) -> EvaluationSet:
        """At most `count` images."""
        return self._at(range(min(count, len(self.images))))

    def batches(self, device: torch.device, workers: int = 0) -> Iterator[tuple[Tensor, ...]]:
        """Raw images, hidden patches and, where there are, labels, on the device."""
        loader = read(self.images, workers, batch_size=BATCH, pin_memory=device.type == "cuda")
        parts = [tensor.split(BATCH) for tensor in (self.hidden, self.labels) if tensor is not None]
        return ahead(zip(loader, *parts, strict=False), transfer_to(device))

    def _at(self, places: Sequence[int]) -> EvaluationSet:
        own = list(places)
        return replace(
            self,
            images=Subset(self.images, own),
            hidden=self.hidden[own],
            labels=None if self.labels is None else self.labels[own],
            groups=None if self.groups is None else [self.groups[place] for place in own],
        )


@torch.no_grad()
def evaluate(
    model: nn.Module,
    loss: ReconstructionLoss,
    data: EvaluationSet,
    tasks: Sequence[str],
    device: torch.device,
    workers: int = 0,
    team: World | None = None,
) -> Scores:
    """The losses of each image, the model in eval mode (running BatchNorm statistics) and in float32.

    With the task "class" also the measures of the labels, for CT also "body_l1". Every process of the team takes its
    part of the images, and gets the scores of all.
    """
    team = team or World(SingleProcess(), device)
    part = data.part(team.rank, team.size)
    model.eval()
    classify = loss.classifies and "class" in tasks
    names = [*tasks, *(data.measures if classify else ())]
    names += [] if data.body_above is None else [BODY, "body_images"]
    table = torch.zeros(len(data.images), len(names), dtype=torch.float64, device=device)
    own = table[team.rank :: team.size]
    start = 0
    for raw, hidden, *labels in part.batches(device, workers):
        images = loss.intensity.normalise(raw)
        more: dict[str, Tensor] = {}
        if classify:
            predictions, logits = model(images, hidden, classify=True)
            more = {"logits": logits, "labels": labels[0]}
        else:
            predictions = model(images, hidden)
        body = None if data.body_above is None else raw > data.body_above
        values = per_image(loss, predictions, images, hidden, tasks, body, **more)
        if classify and labels[0].is_floating_point():
            values |= zip(data.measures, torch.cat([logits, labels[0]], 1).double().unbind(1), strict=True)
        own[start : start + len(raw)] = torch.stack([values[name] for name in names], dim=1)
        start += len(raw)
    return dict(zip(names, team.sum(table).cpu().unbind(1), strict=True))


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

    With `logits` and `labels` of classes also `hits`. With `body`, bool [B, C, S, S], also "body_l1" (0 where it is
    undefined) and "body_images" (1 where it is defined).
    """

    def alone(parts: dict[str, Tensor]) -> dict[str, Tensor]:
        return loss(**{name: part.unsqueeze(0) for name, part in parts.items()}, tasks=tasks)

    values: dict[str, Tensor] = torch.vmap(alone)(
        {"predictions": predictions, "images": images, "hidden": hidden, **more}
    )
    if more and not more["labels"].is_floating_point():
        values |= hits(**more)
    if body is not None:
        targets, inside = (select(patchify(pixels, loss.patch_size), hidden) for pixels in (images, body))
        errors = torch.where(inside, (predictions - targets).abs(), 0).flatten(1).sum(1)
        pixels = inside.flatten(1).sum(1)
        values |= {BODY: errors / pixels.clamp(min=1), "body_images": pixels > 0}
    return {name: value.double() for name, value in values.items()}


def means(scores: Scores) -> dict[str, float]:
    """Of all images, each counting alike; "body_l1" is that of the images which have one, nan where none has.

    "body_images" is their number. Of findings "auc/any" …, the area under each one's ROC curve, nan where all images
    have it or none; "auc", their mean over the "auc_findings" that have one.
    """
    found = {name: float(values.mean()) for name, values in scores.items() if "/" not in name}
    if BODY in scores:
        count = float(scores["body_images"].sum())
        found |= {BODY: float(scores[BODY].sum()) / count if count else float("nan"), "body_images": int(count)}
    if findings := [name.partition("/")[2] for name in scores if name.startswith(f"{LOGIT}/")]:
        areas = [area_under_roc(scores[f"{LOGIT}/{name}"], scores[f"{TRUTH}/{name}"] == 1) for name in findings]
        known = [area for area in areas if not math.isnan(area)]
        found |= {"auc": sum(known) / len(known) if known else math.nan, "auc_findings": len(known)}
        found |= {f"auc/{name}": area for name, area in zip(findings, areas, strict=True)}
    return found


def by_group(scores: Scores, groups: Sequence[str]) -> dict[str, dict[str, float]]:
    """Group (a patient, a class) -> its number of "images" and their means, but no area under a curve; `groups` [n]
    names that of each image."""
    places: dict[str, list[int]] = {}
    for place, group in enumerate(groups):
        places.setdefault(group, []).append(place)
    return {
        group: {"images": len(own)} | means({name: each[own] for name, each in scores.items() if "/" not in name})
        for group, own in places.items()
    }


class Best:
    """The weights after the best epoch so far, kept on the CPU; part of a checkpoint.

    Args:
        weights: of the validation losses that choose it (`gcond.engine.run_state`).
    """

    def __init__(self, model: nn.Module, weights: Mapping[str, float]) -> None:
        self._model, self._weights = model, weights
        self.epoch, self.step = 0, 0
        self._loss = math.inf
        self._kept: dict[str, Any] = {}

    def consider(self, epoch: int, step: int, scores: Mapping[str, float]) -> None:
        """Keep the model's weights if it is better than all before; a loss that is not a number is the worst."""
        loss = weighted_loss(scores, self._weights)
        if not self._kept or loss < self._loss:
            self.epoch, self.step = epoch, step
            self._loss = math.inf if math.isnan(loss) else loss
            self._kept = _copied(self._model)

    @contextmanager
    def in_the_model(self) -> Iterator[None]:
        """Inside, the model has the best weights; afterwards its own again."""
        own = _copied(self._model)
        self._model.load_state_dict(self._kept)
        try:
            yield
        finally:
            self._model.load_state_dict(own)

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "step": self.step, "loss": self._loss, "model": self._kept}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch, self.step, self._loss, self._kept = (state[key] for key in ("epoch", "step", "loss", "model"))


def final_records(
    best: Best, epoch: int, step: int, sets: Mapping[str, EvaluationSet], measure: Callable[[EvaluationSet], Scores]
) -> Iterator[dict[str, Any]]:
    """Records of kind "final", one for `at` = "best" and "last" each, and of kind "groups" for each of the `sets`.

    `epoch` and `step` are those of the last epoch, whose weights the model has. A "final" record has the means over all
    images ("val_l1", "test_l1", …, "val_images"), a "groups" record those of each patient or class; there is none
    where a set does not know them.
    """
    last = {split: measure(images) for split, images in sets.items()}
    chosen = last
    if best.step != step:
        with best.in_the_model():
            chosen = {split: measure(images) for split, images in sets.items()}
    for at, when, found in (
        ("best", {"epoch": best.epoch, "step": best.step}, chosen),
        ("last", {"epoch": epoch, "step": step}, last),
    ):
        record: dict[str, Any] = {"kind": "final", "at": at, **when}
        for split, scores in found.items():
            record[f"{split}_images"] = len(sets[split].images)
            record |= {f"{split}_{name}": value for name, value in means(scores).items()}
        yield record
        for split, scores in found.items():
            groups = sets[split].groups
            if groups is not None:
                yield {"kind": "groups", "at": at, **when, "split": split, "groups": by_group(scores, groups)}


def _copied(model: nn.Module) -> dict[str, Any]:
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


class Constant(nn.Module):
    """A predictor that does not learn: the hidden patches [B, H] of what `image` gives for images [B, C, S, S]."""

    def __init__(self, image: Callable[[Tensor, Tensor], Tensor], patch_size: int) -> None:
        super().__init__()
        self._image, self._patch_size = image, patch_size

    def forward(self, images: Tensor, hidden: Tensor) -> Tensor:
        return select(patchify(self._image(images, hidden).expand_as(images), self._patch_size), hidden)


def constant_predictors(
    train: ImageSet, intensity: Intensity, patch_size: int, at_most: int = 4096
) -> dict[str, nn.Module]:
    """What a model must beat before its numbers mean much: "dataset_mean", "global_median", "pixel_median" and
    "visible_mean".

    All four are per channel: the mean of the data set (0 in z-space), the median of all pixels of the training set,
    its median at each position, and the mean of the image's own visible pixels. Medians come from `at_most` evenly
    spaced images of `train`, and of the raw integers: a quarter of the memory, and normalising is monotone.
    """
    count = min(len(train), at_most)
    raw = torch.stack([train[place * len(train) // count] for place in range(count)])
    per_pixel = raw.median(dim=0).values
    per_channel = torch.stack([raw[:, channel].median() for channel in range(raw.shape[1])])[:, None, None]
    medians = {"global_median": per_channel.expand_as(per_pixel), "pixel_median": per_pixel}
    constants = {name: intensity.normalise(image[None]) for name, image in medians.items()}
    constants = {"dataset_mean": torch.zeros_like(constants["pixel_median"]), **constants}

    def visible_mean(images: Tensor, hidden: Tensor) -> Tensor:
        patches = patchify(images, patch_size)
        visible = ~hidden_mask(hidden, patches.shape[1])
        sums = (patches.mean(dim=(-2, -1)) * visible[..., None]).sum(dim=1)
        return (sums / visible.sum(dim=1, keepdim=True))[..., None, None]

    images_of = {name: lambda *_, image=image: image for name, image in constants.items()}
    return {name: Constant(of, patch_size) for name, of in {**images_of, "visible_mean": visible_mean}.items()}


Baselines = dict[str, dict[str, float]]
VERSION = 3  # of what is measured


def baseline_scores(
    cfg: DictConfig,
    data: Splits,
    sets: Mapping[str, EvaluationSet],
    loss: ReconstructionLoss,
    labelling: Labelling | None = None,
) -> Baselines:
    """Constant predictor -> {"val_l1", …, "test_l1", …}, for all tasks of `loss`; labels are guessed
    (`by_chance` of `labelling`).

    Of CT also "val_body_l1" and "test_body_l1". Scored once per data set and scale: a file beside the runs keeps them.
    """
    key = [VERSION, *(OmegaConf.to_container(cfg[part], resolve=True) for part in ("dataset", "loss", "scale"))]
    digest = hashlib.sha256(json.dumps([*key, data.checksum], sort_keys=True).encode()).hexdigest()[:10]
    path = Path(cfg.runs) / cfg.scale.name / f"trivial-{cfg.dataset.name}-{digest}.json"
    if path.exists():
        return read_object(path)
    scores: Baselines = {}
    for name, predictor in constant_predictors(data.train, data.intensity, loss.patch_size).items():
        scores[name] = {}
        for split, images in sets.items():
            cpu = torch.device("cpu")
            found = means(evaluate(predictor, loss, images, loss.pixel_tasks, cpu))
            found.pop("body_images", None)
            by_chance = labelling.by_chance(images.labels) if labelling and images.labels is not None else {}
            scores[name] |= {f"{split}_{task}": value for task, value in (found | by_chance).items()}
    write_json(path, scores)
    return scores
