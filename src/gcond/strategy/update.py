"""From the resolved gradient to what stands in `p.grad`.

Letters: P parameters; d [P] the resolved gradient, overwritten with what is to be written.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from math import inf
from typing import Any, Protocol

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.flat import Move
from gcond.strategy.gradients import TaskGradients


class Update(Protocol):
    """Without another's methods: a resolved gradient is written as it is, and nothing is kept."""

    def apply(self, direction: Tensor, gradients: TaskGradients) -> None:
        """Overwrite `direction` [P] with what `p.grad` is to hold where `gradients.reached_in_window`."""
        return  # without it type checkers take an empty method of a protocol for an abstract one

    def follow(self, move: Move) -> None:
        """Carry what is kept for each coordinate over to another layout; ValueError where that would change it."""
        return

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError for the state of another kind of update."""
        if state.keys() != self.state_dict().keys():
            raise ValueError(f"{type(self).__name__} keeps {list(self.state_dict())}, found the state of {list(state)}")


class Raw(Update):
    """The resolved gradient as it is (GCond "pure"; every peer). The outer optimizer has its own momentum."""


class EMA(Update):
    """Bias-corrected moving average of the resolved gradient (GCond "integrated"; equation 10).

    The outer AdamW then runs with beta1 = 0, else the gradient would be smoothed twice. At the same learning rate this
    takes larger steps than AdamW with beta1 = 0.9: the control `baseline_integrated` shows what that alone does.

    As in AdamW, a parameter that no task reaches in a window (an expert that is not used, a frozen layer) keeps its
    average and its count of steps as they are, and gets no gradient.

    Args:
        beta: in [0, 1); 0.9 in the paper.
    """

    def __init__(self, beta: float = 0.9) -> None:
        expect(0 <= beta < 1, "beta", "a number in [0, 1)", beta)
        self.beta = beta
        self._steps: list[int] = []  # of each parameter
        self._momentum: Tensor | None = None  # [P]

    def apply(self, direction: Tensor, gradients: TaskGradients) -> None:
        if self._momentum is None:
            self._momentum, self._steps = torch.zeros_like(direction), [0] * len(gradients.parameters)
        self._momentum = self._momentum.to(direction.device)  # a checkpoint may have been read on the CPU
        self._steps = [n + reached for n, reached in zip(self._steps, gradients.reached_in_window, strict=True)]
        for start, stop, steps in self._runs(gradients):
            momentum, own = self._momentum[start:stop], direction[start:stop]
            momentum.lerp_(own, 1 - self.beta)
            torch.div(momentum, 1 - self.beta**steps, out=own)

    def _runs(self, gradients: TaskGradients) -> Iterator[tuple[int, int, int]]:
        """Ranges [start, stop) of reached parameters with the same count of steps, which is the third number."""
        place = 0
        for (reached, steps), run in groupby(zip(gradients.reached_in_window, self._steps, strict=True)):
            first, place = place, place + len(list(run))
            if reached:
                yield gradients.bounds[first], gradients.bounds[place], steps

    def follow(self, move: Move) -> None:
        if self._momentum is not None:
            self._momentum = move.numbers(self._momentum, move.dtype)
            self._steps = move.each(self._steps, new=0)

    def state_dict(self) -> dict[str, Any]:
        return {"steps": list(self._steps), "momentum": None if self._momentum is None else self._momentum.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self._steps = list(state["steps"])
        self._momentum = None if state["momentum"] is None else state["momentum"].clone()


class LionLARS(EMA):
    """sign(m_hat) * min(|p| / |m_hat|, clip) * coefficient, per parameter tensor (GCond "lion").

    m_hat is the bias-corrected average of `EMA`, |.| the Euclidean norm of a tensor. The ratio is 1 where either norm
    is below 1e-8, so that tensors that start at zero move. The outer optimizer is SGD without momentum or weight decay
    and carries the learning rate.

    Args:
        beta: of the average; 0.9 in the paper.
        clip: largest trust ratio; 50 in the paper.
        coefficient: factor on the result. 1 leaves the learning rate to the outer SGD; the published code runs that at
            1 and passes the scheduled learning rate here.
    """

    def __init__(self, beta: float = 0.9, clip: float = 50.0, coefficient: float = 1.0) -> None:
        super().__init__(beta)
        expect(clip > 0, "clip", "a number > 0", clip)
        expect(0 < coefficient < inf, "coefficient", "a number > 0", coefficient)
        self.clip, self.coefficient = clip, coefficient

    def apply(self, direction: Tensor, gradients: TaskGradients) -> None:
        super().apply(direction, gradients)
        views = gradients.views(direction)
        momentum_norms = gradients.norms(views)
        parameter_norms = gradients.norms([p.detach() for p in gradients.parameters])
        ratios = (parameter_norms / momentum_norms).clamp(max=self.clip)
        ratios = torch.where((parameter_norms < 1e-8) | (momentum_norms < 1e-8), 1.0, ratios) * self.coefficient
        direction.sign_()
        torch._foreach_mul_(views, list(ratios.to(direction.dtype).unbind()))
