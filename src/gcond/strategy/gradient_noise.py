"""What Gram matrices of task gradients say of conflict and of noise.

Letters: n micro-batches, m tasks, K micro-batches of a window.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor

from gcond.strategy.diagnose import cosines, minimum_cosine
from gcond.strategy.flat import FlatParameters
from gcond.strategy.products import by_chunks

Gradients = Iterable[Sequence[Tensor | None]]
"""For each task its gradient, a tensor per parameter; None: a parameter not reached."""
Estimates = dict[str, tuple[float, float]]
"""Name -> value, standard error."""


def window_sizes(n: int) -> list[int]:
    """K = 1, 2, 4, … that divide n and leave more than one window."""
    return [1 << power for power in range(n.bit_length()) if n % (1 << power) == 0 and 1 << power < n]


class GradientSums:
    """Sums of task gradients over windows and blocks of n micro-batches, as inner products.

    It holds `rows_held(n, m, blocks)` rows of P float32 numbers, not one per gradient.

    Args:
        blocks: into how many blocks, one after the other, the micro-batches fall.
        by_parameter: keep the inner products of every parameter apart: blocks' are else by group, windows' of all.
    """

    def __init__(self, flat: FlatParameters, tasks: int, n: int, blocks: int = 2, by_parameter: bool = False) -> None:
        self._flat, self._tasks, self._n, self._taken, self._block = flat, tasks, n, 0, n // blocks
        self._blocks, self._current = self._rows(blocks * tasks), self._rows(tasks)
        self._sums = {size: self._rows(tasks) for size in _summed(n, blocks)}
        self._columns = _columns(flat.names if by_parameter else flat.groups, flat.bounds)
        self._apart = list(self._columns.values()) if by_parameter else [slice(None)]
        self._grams: dict[int, list[Tensor]] = {size: [] for size in window_sizes(n)}

    def add(self, gradients: Gradients, factor: float = 1.0) -> Tensor:
        """Take the next micro-batch's, times `factor`; gives their inner products [1 or parameters, m, m]."""
        block = self._taken // self._block
        write(self._current.zero_(), self._flat, gradients, factor)
        self._taken += 1
        self._blocks[block * self._tasks :][: self._tasks] += self._current
        self._grams[1].append(self._window(self._current))
        for size, rows in self._sums.items():
            rows += self._current
            if self._taken % size == 0:
                self._grams[size].append(self._window(rows))
                rows.zero_()
        return self._grams[1][-1]

    def _window(self, rows: Tensor) -> Tensor:
        return torch.stack([_gram(rows[:, own]) for own in self._apart])

    def grams(self) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
        """Float64, on the CPU, of b blocks: group or parameter -> [b m, b m], and K -> [n / K, 1 or parameters, m, m].

        With two blocks and all parameters together they are what `gradient_noise.describe` takes.
        """
        m = self._tasks
        blocks = {name: _gram(self._blocks[:, own]).cpu() for name, own in self._columns.items()}
        windows = {size: torch.stack(grams).cpu() for size, grams in self._grams.items() if grams}
        stacked = torch.stack(list(blocks.values()))
        if len(self._apart) == 1:
            stacked = stacked.sum(0, keepdim=True)
        for size in [size for size in self._grams if size % self._block == 0]:
            summed = [between(each.view(-1, m, len(each) // m, m), size // self._block) for each in stacked]
            windows[size] = torch.stack([each.diagonal(dim1=0, dim2=2).permute(2, 0, 1) for each in summed], 1)
        return blocks, windows

    def _rows(self, count: int) -> Tensor:
        return torch.zeros(count, self._flat.size, device=self._flat.device)


def rows_held(n: int, tasks: int, blocks: int = 2) -> int:
    """Rows of P numbers while a probe is under way: the blocks, the micro-batch, and windows shorter than a block."""
    return tasks * (blocks + 1 + len(_summed(n, blocks)))


def _summed(n: int, blocks: int) -> list[int]:
    """The windows with rows of their own: neither one micro-batch nor whole blocks."""
    return [size for size in window_sizes(n) if size != 1 and size % (n // blocks)]


def _gram(rows: Tensor) -> Tensor:
    """[r, r] of rows [r, c], float64 on the device."""
    count = len(rows)
    sums = torch.zeros(count, 2 * count, dtype=torch.float64, device=rows.device)
    by_chunks(sums, rows, None)
    return sums[:, :count]


def describe(
    tasks: Sequence[str], n: int, halves: Mapping[str, Tensor], windows: Mapping[int, Tensor]
) -> dict[str, float]:
    """What there is to log; nan where a gradient vanishes or is not finite.

    Args:
        tasks: the names of m tasks.
        halves: parameter group -> [2m, 2m], inner products of the tasks' gradients summed over the first half of the n
            micro-batches, then over the second.
        windows: K -> [n / K, m, m], those of the sums over K consecutive micro-batches.

    Returns:
        cosine/GROUP: the smallest between two tasks' means over all n. Common samples, so common noise, raise it.
        cosine_disjoint/GROUP: the same of means over disjoint halves, averaged over which task gets which half.
        self_cosine/TASK/GROUP: between the task's means over the two halves: how well n / 2 micro-batches know it.
        norm/TASK: of the mean over all n.
        noise/TASK/K: sampled (unbiased) variance of means over K around the mean over n, summed over coordinates, over
            the squared norm of the latter. Falls as 1 / K where micro-batches are independent.
        sign_agreement/K: share of windows in which the cosine of the first two tasks has the sign that it has over n.

        GROUP is "all" or a parameter group. Two tasks or more only: cosine, cosine_disjoint, sign_agreement.
    """
    m = len(tasks)
    halves = {"all": torch.stack(list(halves.values())).sum(0), **halves}
    whole = {group: gram.view(2, m, 2, m).sum((0, 2)) for group, gram in halves.items()}
    total, squares = whole["all"], whole["all"].diagonal()
    record: dict[str, float] = {}
    if m > 1:
        record |= {f"cosine/{group}": minimum_cosine(gram) for group, gram in whole.items()}
        record |= {f"cosine_disjoint/{group}": _disjoint_cosine(gram) for group, gram in halves.items()}
    for place, task in enumerate(tasks):
        for group, gram in halves.items():
            record[f"self_cosine/{task}/{group}"] = float(cosines(gram)[place, m + place])
    for place, task in enumerate(tasks):
        record[f"norm/{task}"] = math.sqrt(max(0.0, float(squares[place]))) / n
        for size, grams in windows.items():
            record[f"noise/{task}/{size}"] = _noise(grams[:, place, place] / size**2, squares[place] / n**2)
    if m > 1:
        for size, grams in windows.items():
            alike = torch.sign(grams[:, 0, 1]) == torch.sign(total[0, 1])
            known = bool(torch.isfinite(total[:2, :2]).all()) and float(squares[:2].min()) > 0
            record[f"sign_agreement/{size}"] = float(alike.double().mean()) if known else math.nan
    return {key: value if math.isfinite(value) else math.nan for key, value in record.items()}


def _noise(squares: Tensor, square: Tensor) -> float:
    """From the squared norms of the windows' means [W] and of their mean: sum |x_w - x|^2 = sum |x_w|^2 - W |x|^2."""
    deviations = squares.sum() - len(squares) * square
    return float(deviations / (len(squares) - 1) / square)


def _disjoint_cosine(halves: Tensor) -> float:
    """The smallest over pairs of tasks; nan without a pair whose gradients are nonzero in both halves."""
    m = len(halves) // 2
    across = cosines(halves)[:m, m:]
    pairs = ((across + across.T) / 2)[torch.triu_indices(m, m, offset=1).unbind()]
    return min((value for value in pairs.tolist() if not math.isnan(value)), default=math.nan)


def estimates(tasks: Sequence[str], gram: Tensor, sizes: Sequence[int]) -> Estimates:
    """`statistics` of gram [n, m, n, m], with jackknife errors: each window of the longest size left out in turn."""
    n, longest = len(gram), sizes[-1]
    found = statistics(tasks, gram, sizes)
    without: list[Mapping[str, float]] = []
    for start in range(0, n, longest):
        kept = [place for place in range(n) if not start <= place < start + longest]
        without.append(statistics(tasks, gram[kept][:, :, kept], sizes))
    return {name: (value, jackknife([each[name] for each in without])) for name, value in found.items()}


def jackknife(values: Sequence[float]) -> float:
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
    windows = {size: between(gram, size) for size in sizes}
    own = {size: each.diagonal(dim1=0, dim2=2).permute(2, 0, 1) for size, each in windows.items()}
    said = describe(tasks, n, {"all": between(gram, n // 2).reshape(2 * m, 2 * m)}, own)
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


def between(gram: Tensor, size: int) -> Tensor:
    """[n, m, n, m] of micro-batches -> [n / K, m, n / K, m] of sums over K of them, one after the other."""
    n, m = gram.shape[:2]
    return gram.view(n // size, size, m, n // size, size, m).sum((1, 4))


class GradientRows:
    """The gradients themselves, n m rows of P float32 numbers on the CPU."""

    def __init__(self, flat: FlatParameters, tasks: int, n: int) -> None:
        self._flat, self._taken = flat, 0
        self._rows = torch.zeros(n, tasks, flat.size)

    def add(self, gradients: Gradients, factor: float = 1.0) -> None:
        """As in `GradientSums`."""
        write(self._rows[self._taken], self._flat, gradients, factor)
        self._taken += 1

    def grams(self) -> dict[str, Tensor]:
        """ "all", then each parameter group -> [n, m, n, m] float64."""
        n, m, _ = self._rows.shape
        rows = self._rows.flatten(0, 1)
        found = {
            group: _gram(rows[:, own]).view(n, m, n, m)
            for group, own in _columns(self._flat.groups, self._flat.bounds).items()
        }
        return {"all": torch.stack(list(found.values())).sum(0), **found}


def write(rows: Tensor, flat: FlatParameters, gradients: Gradients, factor: float) -> None:
    """Each task's gradient times `factor` to its row of `rows` [m, P], which are zero."""
    free = iter(rows)
    for parts in gradients:  # no zip, which would hold a task's gradient while the next one's is computed
        for view, part in zip(flat.views(next(free)), parts, strict=True):
            if part is not None:
                view.copy_(part).mul_(factor)
        del parts


def _columns(names: Sequence[str], bounds: Sequence[int]) -> dict[str, slice]:
    """The range of a row that each group of parameters takes, or each parameter."""
    ends = {name: len(names) - names[::-1].index(name) for name in names}
    return {name: slice(bounds[names.index(name)], bounds[end]) for name, end in ends.items()}
