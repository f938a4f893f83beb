"""Probes of a model at frozen weights, whatever strategy trains: task gradients (conflict and noise) and activations.

n micro-batches of B images, m tasks, P parameters, K micro-batches of a window, H hidden patches.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, TrainingImages, generator, read
from gcond.engine.evaluate import EvaluationSet
from gcond.model import MaskedAutoencoder
from gcond.model.masking import draw_hidden
from gcond.model.patches import hidden_mask
from gcond.strategy.estimate import Losses
from gcond.strategy.flat import FlatParameters
from gcond.strategy.gradient_noise import Estimates, GradientRows, GradientSums, describe, estimates
from gcond.strategy.profiler import task_gradients, untouched


@dataclass
class ProbeGradients:
    """Gradients of each task on micro-batches of training images that a subclass chooses.

    A forward pass serves all tasks; lambdas are applied, and a task whose lambda is 0 has no gradient and is left out.

    A training does not notice: `p.grad` is not touched, buffers (BatchNorm's statistics) are put back, and no random
    number is drawn from a generator of others. `losses` must not be the training's own, which may be compiled or note
    what it has seen. In float16 losses are enlarged by the scale of `scaler`, which stays as it is.

    Args:
        tasks: name -> lambda.
        micro_batches: n.
        training: the model's mode.
    """

    model: MaskedAutoencoder
    losses: Losses
    tasks: Mapping[str, float]
    source: TrainingImages
    micro_batches: int
    training: bool
    scaler: torch.amp.GradScaler

    def __post_init__(self) -> None:
        self.tasks = {name: weight for name, weight in self.tasks.items() if weight > 0}

    def _take(self, taker: GradientSums | GradientRows, parameters: Sequence[Tensor], batches: Iterable[Batch]) -> None:
        """Hand the gradients on `batches` to `taker`."""
        with untouched(self.model, None, self.source.device):
            self.model.train(self.training)
            for batch in batches:
                scale = self.scaler.get_scale()
                values = self.losses(batch, list(self.tasks))
                taker.add(task_gradients(values, self.tasks, scale, parameters), 1 / scale)

    def independent(self) -> Iterator[Batch]:
        """n micro-batches of B different images, any of which may come again in another, by the seed alone."""
        draw = generator(self.source.seed, "windows")
        chosen: list[int] = []
        for _ in range(self.micro_batches):
            chosen += torch.randperm(len(self.source.images), generator=draw)[: self.source.micro_batch].tolist()
        return self._batches(chosen, draw)

    def _batches(self, chosen: Sequence[int], draw: torch.Generator) -> Iterator[Batch]:
        source, size = self.source, self.source.micro_batch
        masks = draw_hidden(len(chosen), source.patches, source.mask_ratio, draw).split(size)
        loader = read(Subset(source.images, chosen), source.workers, batch_size=size, generator=draw)
        for place, (raw, hidden) in enumerate(zip(loader, masks, strict=True)):
            labels = None
            if source.labelling is not None:
                raw, labels = source.labelling.drawn(raw, chosen[place * size :][:size], draw)
                labels = labels.to(source.device)
            yield Batch(source.intensity.normalise(raw.to(source.device)), hidden.to(source.device), labels)


class GradientProbe(ProbeGradients):
    """Of n micro-batches of training images, drawn by seed and epoch alone: so all strategies of a seed are probed on
    the same images and masks, whatever their estimator.

    `micro_batches` may be 0 where `measure` is never called.

    Raises:
        ValueError: fewer than n * B training images, so that halves of them would not be disjoint.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        images, size = len(self.source.images), self.source.micro_batch
        if self.micro_batches * size > images:
            raise ValueError(
                f"`scale.probe_micro_batches`: expected at most {images // size}, since there are {images} training "
                f"images for micro-batches of {size}, found {self.micro_batches}; 0 probes nothing"
            )

    def measure(self, epoch: int) -> dict[str, Any]:
        """What `gradient_noise.describe` says after `epoch` epochs."""
        n, size = self.micro_batches, self.source.micro_batch
        flat = FlatParameters(self.model.parameter_groups())
        sums = GradientSums(flat, len(self.tasks), n)
        draw = generator(self.source.seed, "probe", epoch)
        chosen = torch.randperm(len(self.source.images), generator=draw)[: n * size].tolist()
        self._take(sums, flat.parameters, self._batches(chosen, draw))
        halves, windows = sums.grams()
        together = {size: grams[:, 0] for size, grams in windows.items()}
        return {"micro_batches": n, "batch_size": size, **describe(list(self.tasks), n, halves, together)}


SIZES = (1, 2, 4, 8, 24)  # K; 24 is the paper's
FEWEST = 3  # of the longest windows: leaving out one leaves two, which still have a variance


class WindowProbe(ProbeGradients):
    """Of n micro-batches that are drawn independently of each other: B different images, any of which may come again.

    So that micro-batches are as independent as those of a data set too large to be seen twice, which the paper's are.
    The draw depends on the seed alone.

    Raises:
        ValueError: n is not a multiple of the longest window, or less than `FEWEST` of them.
    """

    sizes = SIZES

    def __post_init__(self) -> None:
        super().__post_init__()
        longest = self.sizes[-1]
        if self.micro_batches % longest or self.micro_batches < FEWEST * longest:
            raise ValueError(
                f"`micro_batches`: expected a multiple of {longest}, at least {FEWEST * longest}, so that there are "
                f"{FEWEST} windows of {longest}, found {self.micro_batches}"
            )

    def measure(self) -> dict[str, Estimates]:
        """Parameter group, "all" first -> what `statistics` says, with errors."""
        flat = FlatParameters(self.model.parameter_groups())
        rows = GradientRows(flat, len(self.tasks), self.micro_batches)
        self._take(rows, flat.parameters, self.independent())
        return {group: estimates(list(self.tasks), gram, self.sizes) for group, gram in rows.grams().items()}


IMAGES = 64
QUANTILES = ("0", "0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999", "1")


@torch.no_grad()
def activations(
    model: MaskedAutoencoder, split: EvaluationSet, intensity: Intensity, device: torch.device
) -> dict[str, Any]:
    """`spread` of the encoder's map of the first images of a split, at most `IMAGES`, under their fixed masks.

    Patients' too: no picture. The model is left in eval mode.
    """
    model.eval()
    maps = []
    for raw, hidden, *_ in split.first(IMAGES).batches(device):
        masks = hidden_mask(hidden, model.patches)
        maps.append(model.encode(intensity.normalise(raw), masks).flatten().cpu())
    return spread(torch.cat(maps))


def spread(values: Tensor) -> dict[str, Any]:
    """Mean, standard deviation, share of exact zeros and quantiles (interpolated)."""
    numbers = values.double().numpy()
    with np.errstate(invalid="ignore"):
        quantiles = np.quantile(numbers, [float(share) for share in QUANTILES])
        mean, std = float(numbers.mean()), float(numbers.std())
    found = {"mean": mean, "std": std, "zero_share": float((numbers == 0).mean())}
    return found | {"quantiles": dict(zip(QUANTILES, quantiles.tolist(), strict=True))}
