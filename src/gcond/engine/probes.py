"""Probes of a model at frozen weights, whatever strategy trains: task gradients (conflict and noise) and activations.

n micro-batches of B images, m tasks, P parameters, K micro-batches of a window, H hidden patches.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, TrainingImages, generator
from gcond.engine.evaluate import BATCH, EvaluationSet
from gcond.engine.gradient_noise import Estimates, describe, estimates, window_sizes
from gcond.engine.process import leave_to_the_parent, signals_held_back
from gcond.model import MaskedAutoencoder
from gcond.model.masking import draw_hidden
from gcond.model.patches import hidden_mask
from gcond.strategy.estimate import Losses
from gcond.strategy.flat import FlatParameters
from gcond.strategy.products import by_chunks


class ProbeGradients:
    """Gradients of each task on micro-batches of training images that a subclass chooses.

    A forward pass serves all tasks; lambdas are applied, and a task whose lambda is 0 has no gradient and is left out.

    A training does not notice: `p.grad` is not touched, buffers (BatchNorm's statistics) are put back, and no random
    number is drawn from a generator of others. `losses` must not be the training's own, which may be compiled or note
    what it has seen. In float16 losses are enlarged by the scale of `scaler`, which stays as it is.

    Args:
        micro_batches: n.
        tasks: name -> lambda.
        training: the model's mode.
    """

    def __init__(
        self,
        model: MaskedAutoencoder,
        losses: Losses,
        tasks: Mapping[str, float],
        source: TrainingImages,
        micro_batches: int,
        training: bool,
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._model, self._losses = model, losses
        self._tasks = {name: weight for name, weight in tasks.items() if weight > 0}
        self._source, self._count, self._size = source, micro_batches, source.micro_batch
        self._training, self._scaler = training, scaler
        self._check()

    def _check(self) -> None:
        """Raises ValueError where n or B do not suit the subclass."""
        raise NotImplementedError

    def _take(
        self,
        taker: GradientSums | GradientRows,
        parameters: Sequence[Tensor],
        chosen: Sequence[int],
        draw: torch.Generator,
    ) -> None:
        """Hand the gradients on images `chosen` [n * B], masks by `draw`, to `taker`. Leaves the model in any mode."""
        self._model.train(self._training)
        with buffers_put_back(self._model):
            for batch in self._batches(chosen, draw):
                scale = self._scaler.get_scale()
                taker.add(self._gradients(batch, parameters, scale), 1 / scale)

    def _batches(self, chosen: Sequence[int], draw: torch.Generator) -> Iterator[Batch]:
        source = self._source
        masks = draw_hidden(len(chosen), source.patches, source.mask_ratio, draw).split(self._size)
        with signals_held_back():
            loader: Iterator[Tensor] = iter(
                DataLoader(
                    Subset(source.images, chosen),  # type: ignore[arg-type]
                    batch_size=self._size,
                    num_workers=source.workers,
                    worker_init_fn=leave_to_the_parent,
                    generator=draw,  # without one it draws from PyTorch's own
                )
            )
        for place, (raw, hidden) in enumerate(zip(loader, masks, strict=True)):
            labels = None
            if source.labelling is not None:
                own = chosen[place * self._size :][: self._size]
                raw, labels = source.labelling.drawn(raw, own, draw)
                labels = labels.to(source.device)
            yield Batch(source.intensity.normalise(raw.to(source.device)), hidden.to(source.device), labels)

    def _gradients(self, batch: Batch, parameters: Sequence[Tensor], scale: float) -> Iterator[Sequence[Tensor | None]]:
        values = self._losses(batch, list(self._tasks))
        last = list(self._tasks)[-1]
        for task, weight in self._tasks.items():
            loss = values[task] * (weight * scale)
            yield torch.autograd.grad(loss, parameters, retain_graph=task != last, allow_unused=True)


class GradientProbe(ProbeGradients):
    """Of n micro-batches of training images, drawn by seed and epoch alone: so all strategies of a seed are probed on
    the same images and masks, whatever their estimator.

    `micro_batches` may be 0 where `measure` is never called.

    Raises:
        ValueError: fewer than n * B training images, so that halves of them would not be disjoint.
    """

    def _check(self) -> None:
        images = len(self._source.images)
        if self._count * self._size > images:
            raise ValueError(
                f"`scale.probe_micro_batches`: expected at most {images // self._size}, since there are {images} "
                f"training images for micro-batches of {self._size}, found {self._count}; 0 probes nothing"
            )

    def measure(self, epoch: int) -> dict[str, Any]:
        """What `gradient_noise.describe` says after `epoch` epochs. Leaves the model in any mode."""
        flat = FlatParameters(self._model.parameter_groups())
        sums = GradientSums(flat, len(self._tasks), self._count)
        draw = generator(self._source.seed, "probe", epoch)
        chosen = torch.randperm(len(self._source.images), generator=draw)[: self._count * self._size].tolist()
        self._take(sums, flat.parameters, chosen, draw)
        said = describe(list(self._tasks), self._count, *sums.grams())
        return {"micro_batches": self._count, "batch_size": self._size, **said}


class GradientSums:
    """Sums of task gradients over windows and halves of n micro-batches, as inner products.

    It holds `rows_held(n, m)` rows of P float32 numbers, not one per gradient.
    """

    def __init__(self, flat: FlatParameters, tasks: int, n: int) -> None:
        self._flat, self._tasks, self._n, self._taken = flat, tasks, n, 0
        self._halves, self._current = self._rows(2 * tasks), self._rows(tasks)
        self._sums = {size: self._rows(tasks) for size in _summed(n)}
        self._grams: dict[int, list[Tensor]] = {size: [] for size in window_sizes(n)}

    def add(self, gradients: Iterable[Sequence[Tensor | None]], factor: float = 1.0) -> None:
        """Take the next micro-batch: for each task its gradient (None: a parameter not reached), times `factor`."""
        half = self._taken // (self._n // 2)
        self._current.zero_()
        rows = iter(self._current)
        for parts in gradients:  # no zip, which would hold a task's gradient while the next one's is computed
            for view, part in zip(self._flat.views(next(rows)), parts, strict=True):
                if part is not None:
                    view.add_(part, alpha=factor)
            del parts
        self._taken += 1
        self._halves[half * self._tasks :][: self._tasks] += self._current
        self._grams[1].append(_gram(self._current))
        for size, rows in self._sums.items():
            rows += self._current
            if self._taken % size == 0:
                self._grams[size].append(_gram(rows))
                rows.zero_()

    def grams(self) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """`halves` and `windows` as `gradient_noise.describe` takes them: float64, on the CPU."""
        m = self._tasks
        halves = {group: _gram(self._halves[:, own]).cpu() for group, own in _columns(self._flat).items()}
        total = torch.stack(list(halves.values())).sum(0)
        windows = {size: torch.stack(grams).cpu() for size, grams in self._grams.items() if grams}
        if self._n // 2 in self._grams:
            windows[self._n // 2] = torch.stack([total[:m, :m], total[m:, m:]])
        return halves, windows

    def _rows(self, count: int) -> Tensor:
        return torch.zeros(count, self._flat.size, device=self._flat.device)


def rows_held(n: int, tasks: int) -> int:
    """Rows of P numbers while a probe is under way: both halves, the micro-batch, and each longer window."""
    return tasks * (3 + len(_summed(n)))


def _summed(n: int) -> list[int]:
    """The windows with rows of their own: neither one micro-batch nor a half."""
    return [size for size in window_sizes(n) if size not in (1, n // 2)]


def _gram(rows: Tensor) -> Tensor:
    """[r, r] of rows [r, c], float64 on the device."""
    count = len(rows)
    sums = torch.zeros(count, 2 * count, dtype=torch.float64, device=rows.device)
    by_chunks(sums, rows, None)
    return sums[:, :count]


@contextmanager
def buffers_put_back(model: nn.Module) -> Iterator[None]:
    """Whatever happens inside, the model's buffers are afterwards what they were."""
    before = [(buffer, buffer.clone()) for buffer in model.buffers()]
    try:
        yield
    finally:
        for buffer, value in before:
            buffer.copy_(value)


SIZES = (1, 2, 4, 8, 24)  # K; 24 is the paper's
FEWEST = 3  # of the longest windows: leaving out one leaves two, which still have a variance
CHUNK = 1 << 15  # numbers of a row whose products are summed in float32; rounding is 1e-6 of the norms (a test)


class WindowProbe(ProbeGradients):
    """Of n micro-batches that are drawn independently of each other: B different images, any of which may come again.

    So that micro-batches are as independent as those of a data set too large to be seen twice, which the paper's are.
    The draw depends on the seed alone.

    Raises:
        ValueError: n is not a multiple of the longest window, or less than `FEWEST` of them.
    """

    sizes: Sequence[int] = SIZES

    def _check(self) -> None:
        longest = self.sizes[-1]
        if self._count % longest or self._count < FEWEST * longest:
            raise ValueError(
                f"`micro_batches`: expected a multiple of {longest}, at least {FEWEST * longest}, so that there are "
                f"{FEWEST} windows of {longest}, found {self._count}"
            )

    def measure(self) -> dict[str, Estimates]:
        """Parameter group, "all" first -> what `statistics` says, with errors. Leaves the model in any mode."""
        flat = FlatParameters(self._model.parameter_groups())
        rows = GradientRows(flat, len(self._tasks), self._count)
        draw = generator(self._source.seed, "windows")
        chosen: list[int] = []
        for _ in range(self._count):
            chosen += torch.randperm(len(self._source.images), generator=draw)[: self._size].tolist()
        self._take(rows, flat.parameters, chosen, draw)
        return {group: estimates(list(self._tasks), gram, self.sizes) for group, gram in rows.grams().items()}


class GradientRows:
    """The gradients themselves, n m rows of P float32 numbers on the CPU."""

    def __init__(self, flat: FlatParameters, tasks: int, n: int) -> None:
        self._flat, self._taken = flat, 0
        self._rows = torch.zeros(n, tasks, flat.size)

    def add(self, gradients: Iterable[Sequence[Tensor | None]], factor: float = 1.0) -> None:
        """As in `GradientSums`."""
        for row, parts in zip(self._rows[self._taken], gradients, strict=True):
            for view, part in zip(self._flat.views(row), parts, strict=True):
                if part is not None:
                    view.copy_(part).mul_(factor)
        self._taken += 1

    def grams(self) -> dict[str, Tensor]:
        """ "all", then each parameter group -> [n, m, n, m] float64."""
        found = {group: _gram_of_all(self._rows[..., own]) for group, own in _columns(self._flat).items()}
        return {"all": torch.stack(list(found.values())).sum(0), **found}


def _columns(flat: FlatParameters) -> dict[str, slice]:
    """The range of a row that each parameter group takes."""
    groups, bounds = flat.groups, flat.bounds
    ends = {group: len(groups) - groups[::-1].index(group) for group in groups}
    return {group: slice(bounds[groups.index(group)], bounds[end]) for group, end in ends.items()}


def _gram_of_all(rows: Tensor) -> Tensor:
    """[n, m, P] -> [n, m, n, m]."""
    n, m, _ = rows.shape
    total = torch.zeros(n * m, n * m, dtype=torch.float64)
    for part in rows.flatten(0, 1).split(CHUNK, dim=1):
        total += part @ part.T
    return total.view(n, m, n, m)


IMAGES = 64
QUANTILES = ("0", "0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999", "1")


class Activations:
    """Measures on the first images of a split, at most `IMAGES`, under their fixed masks; patients' too: no picture."""

    def __init__(self, split: EvaluationSet, intensity: Intensity, device: torch.device) -> None:
        self._split, self._intensity, self._device = split, intensity, device

    @torch.no_grad()
    def measure(self, model: MaskedAutoencoder) -> dict[str, Any]:
        """Of all values of the map together; the model is left in eval mode."""
        model.eval()
        maps = []
        count = min(IMAGES, len(self._split.images))
        for start in range(0, count, BATCH):
            places = range(start, min(start + BATCH, count))
            raw = torch.stack([self._split.images[place] for place in places])
            images = self._intensity.normalise(raw.to(self._device))
            hidden = self._split.hidden[start : start + len(raw)].to(self._device)
            maps.append(model.encode(images, hidden_mask(hidden, model.patches)).flatten().cpu())
        return spread(torch.cat(maps))


def spread(values: Tensor) -> dict[str, Any]:
    """Mean, standard deviation, share of exact zeros and quantiles (interpolated); nan where one is not finite."""
    numbers = values.double().numpy()
    with np.errstate(invalid="ignore"):
        quantiles = np.quantile(numbers, [float(share) for share in QUANTILES])
        mean, std = float(numbers.mean()), float(numbers.std())
    return {
        "mean": _finite(mean),
        "std": _finite(std),
        "zero_share": float((numbers == 0).mean()),
        "quantiles": {share: _finite(value) for share, value in zip(QUANTILES, quantiles.tolist(), strict=True)},
    }


def _finite(value: float) -> float:
    return value if math.isfinite(value) else math.nan
