"""DWA: Liu et al. 2019, End-to-End Multi-Task Learning with Attention (https://arxiv.org/abs/1803.10704)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from types import MappingProxyType

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import LossWeighting


class DWA(LossWeighting):
    """Weigh a task by how slowly its loss has been falling.

    Loss weights, in place of the lambdas, are m softmax(r / temperature), r_i = L_i(t - 1) / L_i(t - 2), L(t) the mean
    losses of consecutive periods; they are 1 during the first two.

    Args:
        temperature: larger is more uniform; 2 in the paper.
        period: windows per period. An epoch in the paper; 25 iterations in Nash-MTL's code (there a sliding mean).

    Raises:
        ValueError: a setting out of range; a period's mean loss that is not above 0.
    """

    remembers = ("windows", "sums", "means")
    starts = MappingProxyType({"sums": nan, "means": nan})  # a task's first whole period is the first that counts

    def __init__(self, temperature: float = 2.0, period: int = 25) -> None:
        expect(0 < temperature < inf, "temperature", "a number > 0", temperature)
        expect(period >= 1, "period", "an integer >= 1", period)
        self.temperature, self.period = temperature, period

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        self._tasks = tuple(tasks)
        self._windows = 0  # of the current period
        self._sums = torch.zeros(len(tasks), dtype=torch.float64)  # of the current period
        self._means: list[Tensor] = []  # [m] of the last two periods

    def follow_tasks(self, before: Sequence[str], now: Sequence[str]) -> None:
        super().follow_tasks(before, now)
        if not self._windows:  # the period has yet to begin, for all
            self._sums.zero_()

    def known(self) -> Tensor:
        if len(self._means) < 2:
            return torch.ones_like(self._sums)
        older, newer = self._means
        ratios = newer / older
        return len(self._tasks) * torch.softmax(torch.where(ratios.isnan(), 1.0, ratios) / self.temperature, 0)

    def after_window(self, losses: Tensor) -> dict[str, float]:
        weights = self.known().tolist()
        sums, windows = self._sums + losses, self._windows + 1
        if windows == self.period:
            means = sums / self.period
            for task, mean in zip(self._tasks, means.tolist(), strict=True):
                if mean <= 0:
                    raise ValueError(f"DWA: expected losses above 0, found a mean of {mean} for task {task!r}")
            self._means = [*self._means, means][-2:]
            sums, windows = torch.zeros_like(sums), 0
        self._sums, self._windows = sums, windows
        self.forget_window()
        return {f"dwa/weight/{task}": weight for task, weight in zip(self._tasks, weights, strict=True)}
