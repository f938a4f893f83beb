"""How noisy the gradient of a window of K micro-batches is, and how often its conflict has the right sign.

Letters: n micro-batches of B images, m tasks, P parameters, K micro-batches of a window.

All of it follows from the inner products of the n m gradients with each other (`GradientRows.grams`): a window's
gradient is a sum of some, and so its inner products are sums of theirs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gcond.engine.gradient_noise import describe
from gcond.engine.gradient_probe import TaskGradients
from gcond.engine.seeding import generator
from gcond.strategy.flat import FlatParameters

SIZES = (1, 2, 4, 8, 24)  # K; 24 is the paper's
FEWEST = 3  # of the longest windows: leaving out one leaves two, which still have a variance
CHUNK = 1 << 15  # numbers of a row whose products are summed in float32; rounding is 1e-6 of the norms (a test)

Estimates = dict[str, tuple[float, float]]
"""Name -> value, standard error."""


class WindowProbe(TaskGradients):
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
        if self._size > len(self._images):
            raise ValueError(
                f"`micro_batch`: expected at most the {len(self._images)} training images, found {self._size}"
            )

    def measure(self) -> dict[str, Estimates]:
        """Parameter group, "all" first -> what `statistics` says, with errors. Leaves the model in any mode."""
        flat = FlatParameters(self._model.parameter_groups())
        rows = GradientRows(flat, len(self._tasks), self._count)
        draw = generator(self._seed, "windows")
        chosen: list[int] = []
        for _ in range(self._count):
            chosen += torch.randperm(len(self._images), generator=draw)[: self._size].tolist()
        self._take(rows, flat.parameters, chosen, draw)
        return {group: estimates(list(self._tasks), gram, self.sizes) for group, gram in rows.grams().items()}


class GradientRows:
    """The gradients themselves, n m rows of P float32 numbers on the CPU."""

    def __init__(self, flat: FlatParameters, tasks: int, n: int) -> None:
        self._flat, self._taken = flat, 0
        self._rows = torch.zeros(n, tasks, flat.size)

    def add(self, gradients: Iterable[Sequence[Tensor | None]], factor: float = 1.0) -> None:
        """Take the next micro-batch: for each task its gradient (None: a parameter not reached), times `factor`."""
        for row, parts in zip(self._rows[self._taken], gradients, strict=True):
            for view, part in zip(self._flat.views(row), parts, strict=True):
                if part is not None:
                    view.copy_(part).mul_(factor)
        self._taken += 1

    def grams(self) -> dict[str, Tensor]:
        """ "all", then each parameter group -> [n, m, n, m] float64."""
        bounds, groups = self._flat.bounds, self._flat.groups
        found = {}
        for group in dict.fromkeys(groups):  # each is one range of the rows
            start, stop = groups.index(group), len(groups) - groups[::-1].index(group)
            found[group] = _gram(self._rows[..., bounds[start] : bounds[stop]])
        return {"all": torch.stack(list(found.values())).sum(0), **found}


def _gram(rows: Tensor) -> Tensor:
    """[n, m, P] -> [n, m, n, m]."""
    n, m, _ = rows.shape
    total = torch.zeros(n * m, n * m, dtype=torch.float64)
    for part in rows.flatten(0, 1).split(CHUNK, dim=1):
        total += part @ part.T
    return total.view(n, m, n, m)


def estimates(tasks: Sequence[str], gram: Tensor, sizes: Sequence[int]) -> Estimates:
    """`statistics` of gram [n, m, n, m], with jackknife errors: each window of the longest size left out in turn."""
    n, longest = len(gram), sizes[-1]
    found = statistics(tasks, gram, sizes)
    without: list[Mapping[str, float]] = []
    for start in range(0, n, longest):
        kept = [place for place in range(n) if not start <= place < start + longest]
        without.append(statistics(tasks, gram[kept][:, :, kept], sizes))
    return {name: (value, _jackknife([each[name] for each in without])) for name, value in found.items()}


def _jackknife(values: Sequence[float]) -> float:
    """Standard error, from what the statistic is without each of g groups."""
    g = len(values)
    mean = sum(values) / g
    return math.sqrt((g - 1) / g * sum((value - mean) ** 2 for value in values))


def statistics(tasks: Sequence[str], gram: Tensor, sizes: Sequence[int]) -> dict[str, float]:
    """What there is to say of one parameter group; nan where a gradient vanishes or is not finite.

    cosine, cosine_disjoint, self_cosine/TASK, norm/TASK, noise/TASK/K and sign_agreement/K are those of
    `gradient_noise.describe`.

    scaled_noise/TASK/K: K times noise at K over noise at 1; 1 where micro-batches are independent.
    sign_agreement_disjoint/K: share of ordered pairs of different windows in which the cosine of the first task on one
        with the second on the other has the sign of cosine_disjoint.
    """
    n, m = gram.shape[:2]
    windows = {size: _windows(gram, size) for size in sizes}
    own = {size: each.diagonal(dim1=0, dim2=2).permute(2, 0, 1) for size, each in windows.items()}
    said = describe(tasks, n, {"all": _windows(gram, n // 2).reshape(2 * m, 2 * m)}, own)
    found = {name.removesuffix("/all"): value for name, value in said.items()}
    for task in tasks:
        first = found[f"noise/{task}/{sizes[0]}"]
        for size in sizes[1:]:
            ratio = found[f"noise/{task}/{size}"] / first if first else math.nan
            found[f"scaled_noise/{task}/{size}"] = size / sizes[0] * ratio
    if m > 1:
        for size, each in windows.items():
            across = each[:, 0, :, 1]
            others = across[~torch.eye(len(across), dtype=torch.bool)]
            known = math.isfinite(found["cosine_disjoint"]) and bool(torch.isfinite(others).all())
            right = torch.sign(others) == math.copysign(1, found["cosine_disjoint"])
            found[f"sign_agreement_disjoint/{size}"] = float(right.double().mean()) if known else math.nan
    return found


def _windows(gram: Tensor, size: int) -> Tensor:
    """[n, m, n, m] of micro-batches -> [n / K, m, n / K, m] of sums over K of them, one after the other."""
    n, m = gram.shape[:2]
    return gram.view(n // size, size, m, n // size, size, m).sum((1, 4))
