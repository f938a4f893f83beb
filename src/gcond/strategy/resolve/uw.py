"""UW: Kendall et al. 2018, Multi-Task Learning Using Uncertainty to Weigh Losses (https://arxiv.org/abs/1705.07115)."""

from __future__ import annotations

from math import inf
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import LossWeighting, adam_step


class UW(LossWeighting):
    """Minimise sum_i (exp(-s_i) L_i + s_i) / 2 over the network and the log variances s_i = log sigma_i^2 together.

    The network sees loss weights exp(-s_i) / 2, in place of the lambdas; s takes one Adam step per window, with the
    gradient (1 - exp(-s_i) L_i) / 2 at the window's mean losses. Its fixed point is s_i = log L_i. s starts at 0.

    Args:
        lr: of Adam on s, without weight decay; 0.025 in Nash-MTL's code.

    Raises:
        ValueError: `lr`; a window's mean loss that is not above 0: its s would fall without bound.
    """

    remembers = ("log_variances", "adam")
    starts = MappingProxyType({"log_variances": 0.0, "adam": 0.0})

    def __init__(self, lr: float = 0.025) -> None:
        expect(0 < lr < inf, "lr", "a number > 0", lr)
        self.lr = lr

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        self._tasks = tuple(tasks)
        self._log_variances = torch.zeros(len(tasks), dtype=torch.float64)
        self._adam: dict[str, Any] = {}

    def known(self) -> Tensor:
        return torch.exp(-self._log_variances) / 2

    def after_window(self, losses: Tensor) -> dict[str, float]:
        for task, loss in zip(self._tasks, losses.tolist(), strict=True):
            if loss <= 0:
                raise ValueError(f"UW: expected losses above 0, found {loss} for task {task!r}")
        weights = self.known()
        self._adam = adam_step(self._log_variances, 0.5 - weights * losses, self._adam, self.lr)
        self.forget_window()
        return {f"uw/weight/{task}": weight for task, weight in zip(self._tasks, weights.tolist(), strict=True)}
