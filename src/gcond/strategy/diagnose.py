"""What is logged about a conflict and its resolution: all of it from m x m matrices, so it costs nothing of size P."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from gcond.strategy.conflict import Conflict, Resolution

NUMBER = re.compile(r"[-+\d.,%\[\] ]*|nan|inf")  # an interval too, and a dash where there is none
CANCELLED = 1e-12  # of the squared norms that went into a row: what float64 leaves of an exact cancellation


def describe(conflict: Conflict, resolution: Resolution) -> dict[str, float]:
    """Norms, true minimum cosines before and after, implied weights, and the size of the correction.

    Of more than two tasks the cosine of each pair too, between the task gradients on the parameters that several reach.
    `resolved` is 1 where the update is not the plain sum of the task gradients: always, for methods that weight tasks.
    `correction` is ||d - s|| / ||s|| for the update d and the plain sum s of the task gradients, over the shared
    parameters. A minimum cosine is nan where no two gradients are nonzero. A method that works
    on coordinates has no coefficients, hence no weights, correction or resolved cosines.
    """
    metrics: dict[str, float] = {}
    for index in conflict.present:
        task = conflict.tasks[index]
        metrics[f"loss/{task}"] = float(conflict.losses[index])
        metrics[f"grad_norm/{task}"] = math.sqrt(max(0.0, float(conflict.gram[index, index])))
    if len(conflict.tasks) > 1:
        for name, gram in {"all": conflict.gram, **conflict.group_grams}.items():
            metrics[f"cosine/{name}"] = minimum_cosine(gram)
    if len(conflict.tasks) > 2:
        there = conflict.without_absent()
        pairs = pair_cosines(there.tasks, there.gram)
        metrics |= {f"pair_cosine/{','.join(pair)}": value for pair, value in pairs.items()}
    if resolution.coefficients is not None:
        metrics |= _describe_coefficients(conflict, resolution.coefficients)
    return metrics | resolution.metrics


def _describe_coefficients(conflict: Conflict, coefficients: Tensor) -> dict[str, float]:
    weights = coefficients.sum(0)
    metrics = {f"weight/{conflict.tasks[index]}": float(weights[index]) for index in conflict.present}
    metrics["resolved"] = float(not torch.equal(coefficients, torch.eye(len(weights), dtype=torch.float64)))
    if len(conflict.tasks) > 1:
        change = weights - 1
        total = float(conflict.gram.sum())
        square = max(0.0, float(change @ conflict.gram @ change))
        metrics["correction"] = math.sqrt(square / total) if total > 0 else math.nan
        for name, gram in {"all": conflict.gram, **conflict.group_grams}.items():
            rounding = CANCELLED * (coefficients.square() @ gram.diagonal())  # a row that cancelled does not count
            resolved = coefficients @ gram @ coefficients.T
            metrics[f"cosine_resolved/{name}"] = minimum_cosine(resolved, rounding)
    return metrics


def cosines(gram: Tensor) -> Tensor:
    """Of inner products [..., m, m]; nan where a square is not above 0."""
    squares = gram.diagonal(dim1=-2, dim2=-1)
    norms = torch.where(squares > 0, squares, math.nan).sqrt()
    return gram / (norms[..., :, None] * norms[..., None, :])


def pair_cosines(tasks: Sequence[str], gram: Tensor) -> dict[tuple[str, str], float]:
    """The cosine of each pair of `tasks` with the Gram matrix `gram` [m, m]; nan where a gradient is zero."""
    values = cosines(gram).tolist()
    return {(tasks[i], tasks[j]): values[i][j] for i, j in combinations(range(len(tasks)), 2)}


@dataclass(frozen=True)
class WindowRecord:
    """What a window has shown. Of one resolved by micro-batch, Gram matrices are means and `reached` is any.

    `tasks` are those of the rows: "a+b" where one row holds the sum.
    """

    tasks: tuple[str, ...]
    metrics: Mapping[str, float]  # as `step` returns them
    counts: Mapping[str, int]  # losses of each task
    grams: Mapping[str, Tensor]  # [m, m] on the parameters that several tasks reach, "all" and by group
    reached: Tensor  # bool [m, parameters]
    parameters: Mapping[str, int]  # name -> size

    @property
    def losses(self) -> dict[str, float]:
        return {key.removeprefix("loss/"): value for key, value in self.metrics.items() if key.startswith("loss/")}

    @property
    def norms(self) -> dict[str, dict[str, float]]:
        """Group -> task -> norm of its gradient, lambda applied."""
        found = {group: gram.diagonal().clamp(min=0).sqrt().tolist() for group, gram in self.grams.items()}
        return {group: dict(zip(self.tasks, norms, strict=True)) for group, norms in found.items()}

    @property
    def cosines(self) -> dict[str, dict[tuple[str, str], float]]:
        """Group -> pair of tasks -> cosine."""
        return {group: pair_cosines(self.tasks, gram) for group, gram in self.grams.items()}

    def reach(self) -> str:
        """A table of which parameters which tasks share."""
        groups: dict[str, list[str]] = {}
        for name, column in zip(self.parameters, self.reached.T.tolist(), strict=True):
            by = [task for task, reached in zip(self.tasks, column, strict=True) if reached]
            alone = " alone" if len(by) == 1 < len(self.tasks) else ""
            groups.setdefault((", ".join(by) or "none") + alone, []).append(name)
        whole = sum(self.parameters.values())
        rows = [("reached by", "tensors", "numbers", "share", "such as")]
        for tasks, names in groups.items():
            numbers = sum(self.parameters[name] for name in names)
            such = ", ".join(names[:2]) + (", …" if len(names) > 2 else "")
            rows.append((tasks, f"{len(names):,}", f"{numbers:,}", f"{numbers / max(whole, 1):.1%}", such))
        return aligned(rows)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """A table whose first row are headings: columns of numbers end at the same place, all others begin there."""
    columns = []
    for column in zip(*rows, strict=True):
        width, numbers = max(map(len, column)), all(map(NUMBER.fullmatch, column[1:]))
        columns.append([cell.rjust(width) if numbers else cell.ljust(width) for cell in column])
    return "\n".join("  ".join(cells).rstrip() for cells in zip(*columns, strict=True))


def minimum_cosine(gram: Tensor, floors: Tensor | float = 0.0) -> float:
    """The smallest cosine between two different rows with the Gram matrix `gram` [m, m].

    Rows whose squared norm is not above its floor do not count; nan without a pair.
    """
    counts = gram.diagonal() > floors
    pairs = torch.triu(counts.unsqueeze(1) & counts, diagonal=1)
    return float(cosines(gram)[pairs].min()) if bool(pairs.any()) else math.nan


def average(resolutions: list[dict[str, float]]) -> dict[str, float]:
    """One record for several resolutions of a step: means, but the minimum of cosines. nan is left out of both."""
    merged = {}
    for key in dict.fromkeys(key for metrics in resolutions for key in metrics):
        values = [metrics[key] for metrics in resolutions if not math.isnan(metrics.get(key, math.nan))]
        if key.startswith("cosine"):
            merged[key] = min(values, default=math.nan)
        else:
            merged[key] = sum(values) / len(values) if values else math.nan
    return merged
