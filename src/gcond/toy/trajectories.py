"""One strategy's way down the two-dimensional problem: the library's own resolver, Adam on (x_1, x_2), all float64."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

from gcond.strategy.conflict import Conflict, LossWeighting, Resolver
from gcond.toy.problem import F1_SCALE, Row, evaluate

Point = tuple[int, float, float]  # step, x_1, x_2
TASKS = ("f1", "f2")
LOWEST = torch.tensor(
    [-2.1, -21.0], dtype=torch.float64
)  # below both losses (FAMO's authors): loss weighting needs losses above 0
ONES = torch.ones(2, dtype=torch.float64)


class Descent:
    """The update of a resolver from one step to the next, as `GradientConductor` makes it of exact gradients.

    A resolver that weights losses is given f - LOWEST, so that what it divides by or takes the logarithm of is
    positive.
    """

    def __init__(self, resolver: Resolver, clip_norm: float | None = None, seed: int = 0) -> None:
        resolver.check(dict.fromkeys(TASKS, 1.0), ("all",))
        self._resolver = resolver
        self._clip_norm = clip_norm
        self._generator = torch.Generator().manual_seed(seed)
        self._previous = torch.zeros(2, 2, dtype=torch.float64)
        self._step = 0

    def direction(self, x1: float, x2: float) -> Row:
        """What stands in the gradient's place."""
        (f1, f2), (row1, row2) = evaluate(x1, x2)
        values = torch.tensor([F1_SCALE * f1, f2], dtype=torch.float64)
        rows = torch.tensor([[F1_SCALE * row1[0], F1_SCALE * row1[1]], row2], dtype=torch.float64)
        if isinstance(self._resolver, LossWeighting):
            update = self._resolver.weigh(values - LOWEST) @ rows
            self._resolver.after_window(values - LOWEST)
        else:
            update = self._resolve(rows, values)
        self._step += 1
        return self._clipped(*update.tolist())

    def _resolve(self, rows: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        gram = rows @ rows.T
        resolution = self._resolver.resolve(
            Conflict(
                tasks=TASKS,
                gram=gram,
                cross=rows @ self._previous.T,
                group_grams={"all": gram},
                losses=values,
                lambdas=ONES,
                step=self._step,
                generator=self._generator,
            )
        )
        self._previous = rows
        if resolution.blockwise is not None:
            return resolution.blockwise(rows.clone(), 0)
        return resolution.weights @ rows

    def _clipped(self, first: float, second: float) -> Row:
        norm = math.hypot(first, second)
        if not math.isfinite(norm):
            raise FloatingPointError(f"step {self._step}: the update is ({first}, {second})")
        factor = 1.0 if self._clip_norm is None else self._clip_norm / max(norm, self._clip_norm)
        return first * factor, second * factor


class Adam:
    """Kingma and Ba 2015, on one number: torch's takes longer than the problem itself."""

    def __init__(self, lr: float = 1e-3, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8) -> None:
        self._lr, self._betas, self._eps = lr, betas, eps
        self._first = self._second = 0.0
        self._steps = 0

    def step(self, gradient: float) -> float:
        """What to subtract from the parameter."""
        self._steps += 1
        one, two = self._betas
        self._first = one * self._first + (1 - one) * gradient
        self._second = two * self._second + (1 - two) * gradient**2
        root = math.sqrt(self._second / (1 - two**self._steps))
        return self._lr / (1 - one**self._steps) * self._first / (root + self._eps)


def follow(descent: Descent, start: Row, steps: int, spacing: float = 0.1) -> Iterator[Point]:
    """(step, x_1, x_2) wherever a coordinate is `spacing` away from where it was last given, and at both ends.

    Where the resolver gives up (RuntimeError), the place where it did is given before the error is raised.
    """
    adam1, adam2 = Adam(), Adam()
    last = (0, *start)
    yield last
    x1, x2 = start
    for step in range(1, steps + 1):
        try:
            first, second = descent.direction(x1, x2)
        except RuntimeError:
            yield (step - 1, x1, x2)
            raise
        x1, x2 = x1 - adam1.step(first), x2 - adam2.step(second)
        if step == steps or max(abs(x1 - last[1]), abs(x2 - last[2])) >= spacing:
            last = (step, x1, x2)
            yield last
