"""Losses and gradients that are not finite: found before anything is resolved, and named."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


class NotFinite(FloatingPointError):
    """A loss or a gradient is not finite. `losses` are the window's means by task."""

    def __init__(self, message: str, losses: Mapping[str, float]) -> None:
        super().__init__(message)
        self.losses = dict(losses)


class GradientNotFinite(NotFinite):
    """The losses are finite, a gradient is not: with a GradScaler, an overflow."""


def check_finite(
    step: int, losses: Mapping[str, float], squared_norms: Mapping[str, float], parameter: Callable[[int], str]
) -> None:
    """Raise where a task's loss, or the squared norm of a row's gradient, is not finite.

    `parameter(row)` names the first parameter whose gradient in that row is not finite; it is asked only then.
    """
    for task, value in losses.items():
        if not math.isfinite(value):
            raise NotFinite(f"step {step}: the loss of task {task!r} is {value}", losses)
    for row, (task, value) in enumerate(squared_norms.items()):
        if not math.isfinite(value):
            raise GradientNotFinite(
                f"step {step}: the gradient of task {task!r} is not finite, first in {parameter(row)}", losses
            )
