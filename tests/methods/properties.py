"""What may be asked of a method. Each check yields violations: 0 is none, 1 is as large as the update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from methods.methods import SCALES, UGLY, Case, build, dependent_cases, kind, matrix, random_cases, update
from torch import Tensor

from gcond import GradientConductor, Joint, Raw, Sequential, Unsolved


@dataclass(frozen=True)
class Property:
    title: str
    meaning: str
    violations: Callable[[str, int], Iterator[float]]  # of a strategy, on so many random matrices
    of_case: Callable[[str, Case], Iterator[float]] | None = None  # what is asked of dependent rows too

    def worst(self, name: str, count: int) -> float:
        return max(self.violations(name, count), default=0.0)

    def worst_of(self, name: str, cases: Sequence[Case]) -> float:
        """What has no solution violates nothing."""
        assert self.of_case is not None
        worst = 0.0
        for case in cases:
            with suppress(Unsolved):
                worst = max(worst, *self.of_case(name, case))
        return worst


def relative(found: Tensor, expected: Tensor, least: float = 0.0) -> float:
    return float((found - expected).norm() / expected.norm().clamp(min=max(least, 1e-300)))


def on_random(of_case: Callable[[str, Case], Iterator[float]], *others: Case) -> Callable[[str, int], Iterator[float]]:
    def violations(name: str, count: int) -> Iterator[float]:
        for case in [*random_cases(count), *others]:
            yield from of_case(name, case)

    return violations


def finite(name: str, count: int) -> Iterator[float]:
    tried = [(scale, rows) for rows in UGLY.values() for scale in SCALES]
    for scale, rows in [*tried, *((1.0, case.rows) for case in dependent_cases()[::3])]:
        try:
            whole = bool(update(name, scale * rows, scale * rows[::-1]).isfinite().all())
        except Unsolved:
            whole = False
        if not whole:
            yield math.inf
            return


SHORT_BETWEEN = Case(*2 * (np.array([[0.01, 0.01, 0.001], [1, 0, 0], [0, 1, 0]]),), seed=0)


def non_conflicting(name: str, case: Case) -> Iterator[float]:
    found = case.update(name)
    lengths = matrix(case.rows).norm(dim=1) * found.norm().clamp(min=case.least)
    yield -float((matrix(case.rows) @ found / lengths).min())


def any_order(name: str, case: Case) -> Iterator[float]:
    order = np.random.default_rng(case.seed).permutation(len(case.rows))
    yield relative(case.update(name, lambda rows: rows[order]), case.update(name), case.least)


def linear_under_scaling(name: str, case: Case) -> Iterator[float]:
    """TorchJD's: A(diag(a x + b y) J) = a A(diag(x) J) + b A(diag(y) J) for x, y > 0."""
    x, y = np.random.default_rng(case.seed).uniform(0.2, 2.0, (2, len(case.rows), 1))
    together = case.update(name, lambda rows: (2 * x + 3 * y) * rows)
    apart = [case.update(name, lambda rows, c=c: c * rows) for c in (x, y)]
    yield relative(together, 2 * apart[0] + 3 * apart[1], case.least)


def scale_equivariant(name: str, case: Case) -> Iterator[float]:
    expected = case.update(name)
    for unit in (1e-8, 1e12):
        yield relative(case.update(name, lambda rows, unit=unit: unit * rows) / unit, expected, case.least)


WEAKLY_STATIONARY = (  # a convex combination is zero, but none with all weights above 0 is
    np.array([[1.0, 0, 0], [-1, 0, 0], [0, 0, 1]]),
    np.array([[2.0, 0, 1], [-1, 0, -0.5], [0, 3, 0]]),
)
MORE_TASKS_THAN_RANK = np.array([[1, 0.1], [-1, 0.1], [1, -0.05]])  # not stationary, though all conflict


def moves_unless_stationary(name: str, count: int) -> Iterator[float]:
    """1 where there is no update, or it is zero: below 1/20 of the longest gradient where MGDA's limit is 0."""
    tried = [(case.rows, 1e-6) for case in random_cases(count)]
    tried += [(rows, 0.05) for rows in (*WEAKLY_STATIONARY, MORE_TASKS_THAN_RANK)]
    for rows, least in tried:
        try:
            share = float(update(name, rows, rows).norm() / matrix(rows).norm(dim=1).max())
        except Unsolved:
            yield 1.0
            return
        yield float(share < least)


def blocks(name: str, count: int) -> Iterator[float]:
    """The conductor's result for a parameter cut into many, but for the group "head", against one per group."""
    for case in random_cases(min(count, 6)):
        m, size = case.rows.shape
        half = (size + 1) // 2
        results = []
        for cuts in (([half], [size - half]), ([1] * half, [1, size - half - 1] if size - half > 1 else [1])):
            parts = [[torch.zeros(n, dtype=torch.float64, requires_grad=True) for n in cut] for cut in cuts]
            flat = [p for part in parts for p in part]

            def losses(rows, names, flat=flat):
                values = matrix(rows) @ torch.cat(flat) + 1
                return {task: values[int(task[1:])] for task in names}

            conductor = GradientConductor(
                {"head": parts[0], "body": parts[1]},
                {f"t{i}": 1.0 for i in range(m)},
                Joint(1) if kind(name) == "loss weighting" else Sequential(1),
                build(name),
                Raw(),
                clip_norm=None,
            )
            for rows in (case.before, case.rows):
                conductor.step([rows], losses)
            results.append(torch.cat([p.grad for p in flat]))
        yield relative(results[1], results[0])


def no_conflict(name: str, count: int) -> Iterator[float]:
    """Distance from the plain sum, or from the mean where that is nearer."""
    for case in random_cases(count, conflicts=False):
        found, rows = case.update(name), matrix(case.rows)
        yield min(relative(found, rows.sum(0)), relative(found, rows.mean(0)))


def one_task(name: str, count: int) -> Iterator[float]:
    row = matrix([[3.0, -4.0, 1.0]])
    yield relative(update(name, row, 2 * row), row[0])


def pair(cosine: float) -> np.ndarray:
    return np.array([[1.0, 0.0], [2 * cosine, 2 * math.sqrt(1 - cosine**2)]])


def jumps(name: str, points: int = 41, smallest: float = 0.1, **changes: object) -> list[tuple[float, float]]:
    """(cosine, height) of jumps of the update of two tasks with norms 1 and 2, height in units of the first.

    The step before had a cosine of -0.6 between gradients of the same norms. An interval that the update changes in is
    halved until the change is below `smallest` (no jump) or the interval below 1e-9 (a jump).
    """

    def at(cosine: float) -> Tensor:
        return update(name, pair(cosine), pair(-0.6), **changes)

    found = []
    grid = np.linspace(-0.9995, 0.9995, points).tolist()
    values = [at(cosine) for cosine in grid]
    intervals = list(zip(grid, grid[1:], values, values[1:], strict=False))
    while intervals:
        left, right, low, high = intervals.pop()
        if float((high - low).norm()) < smallest:
            continue
        if right - left < 1e-9:
            found.append(((left + right) / 2, float((high - low).norm())))
            continue
        middle = (left + right) / 2
        value = at(middle)
        intervals += [(left, middle, low, value), (middle, right, value, high)]
    return sorted(found)


def continuous(name: str, count: int) -> Iterator[float]:
    yield from (height for _, height in jumps(name))


PROPERTIES = {
    "finite": Property(
        "always finite",
        "The update is finite for zero, dependent and stationary gradients, norms from 1e-16 to 1e21, 1 to 50 tasks.",
        finite,
    ),
    "non_conflicting": Property(
        "no conflict after",
        "The update has no negative inner product with any task gradient.",
        on_random(non_conflicting, SHORT_BETWEEN),
        non_conflicting,
    ),
    "any_order": Property(
        "task order", "The order in which tasks are named does not matter.", on_random(any_order), any_order
    ),
    "linear": Property(
        "linear in lengths",
        "The update is linear in the lengths of the task gradients, their directions held fixed.",
        on_random(linear_under_scaling),
        linear_under_scaling,
    ),
    "scale": Property(
        "one scale",
        "All gradients times k give the update times k (1e-8 to 1e12).",
        on_random(scale_equivariant),
        scale_equivariant,
    ),
    "stationary": Property(
        "moves",
        "There is an update, and not a zero one, unless some combination of all gradients with weights > 0 is zero.",
        moves_unless_stationary,
    ),
    "blocks": Property("blocking", "How parameters are cut into tensors does not matter.", blocks),
    "no_conflict": Property(
        "linear if no conflict",
        "Where no two gradients conflict, the update is their plain sum, or their plain mean.",
        no_conflict,
    ),
    "one_task": Property("one task", "The gradient of a single task is passed on unchanged.", one_task),
    "continuous": Property(
        "continuous",
        "The update of two tasks (norms 1 and 2) has no jump as their cosine runs from -0.9995 to 0.9995.",
        continuous,
    ),
}
