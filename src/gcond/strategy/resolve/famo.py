"""FAMO: Liu et al. 2023, Fast Adaptive Multitask Optimization (https://arxiv.org/abs/2306.03792)."""

from __future__ import annotations

from collections.abc import Mapping
from math import inf, nan
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import LossWeighting, adam_step

EPSILON = 1e-8


class FAMO(LossWeighting):
    """Lower all log losses at the same rate, with loss values alone.

    With logits xi, z = softmax(xi) and D_i = L_i - b_i + 1e-8, the network descends sum_i z_i / c log D_i, c =
    sum_i z_i / D_i held constant: micro-batch losses are weighted by z_i / D_i, scaled to sum 1, in place of the
    lambdas. xi then takes an Adam step along J^T delta, J the Jacobian of softmax, delta_i = log D_i before the
    network's step - log D_i after it.

    The authors evaluate the losses of the same batch a second time for delta. Here the mean losses of the *next* window
    stand in for that, as in the authors' toy trainer, which saves a forward pass but adds the noise of another batch;
    and, unlike there, xi moves after that window, whose weights were needed before its mean losses were known.

    Args:
        min_losses: b, task name -> lower bound of the loss (0 where a task is not named).
        lr: of Adam on xi; 0.025 in the authors' code.
        weight_decay: of Adam on xi, the paper's gamma: 1e-3 in the authors' NYUv2, CelebA and QM9 runs, .01 in famo.py
            and for Cityscapes, 0 in their toy problem.

    Raises:
        ValueError: a setting out of range; a micro-batch's loss that is not above its lower bound.
    """

    remembers = ("logits", "previous", "adam")
    starts = MappingProxyType({"logits": 0.0, "previous": nan, "adam": 0.0})

    def __init__(
        self, min_losses: Mapping[str, float] | None = None, lr: float = 0.025, weight_decay: float = 1e-3
    ) -> None:
        expect(0 < lr < inf, "lr", "a number > 0", lr)
        expect(0 <= weight_decay < inf, "weight_decay", "a number >= 0", weight_decay)
        self.min_losses = dict(min_losses or {})
        self.lr, self.weight_decay = lr, weight_decay

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        unknown = sorted(set(self.min_losses) - set(tasks))
        expect(not unknown, "min_losses", f"tasks among {list(tasks)}", unknown)
        self._tasks = tuple(tasks)
        self._bounds = torch.tensor([self.min_losses.get(task, 0.0) for task in tasks], dtype=torch.float64)
        self._logits = torch.zeros(len(tasks), dtype=torch.float64)
        self._adam: dict[str, Any] = {}
        self._previous: Tensor | None = None  # [m] log D of the last window
        self._lowest: Tensor | None = None  # [m] smallest L - b of this window's micro-batches, on their device

    def known(self) -> Tensor:
        """z and b [2, m]."""
        return torch.stack([torch.softmax(self._logits, 0), self._bounds])

    def weigh(self, losses: Tensor) -> Tensor:
        z, bounds = super().weigh(losses)
        gaps = losses - bounds
        self._lowest = gaps if self._lowest is None else torch.minimum(self._lowest, gaps)
        return _normalised(z, gaps)

    def after_window(self, losses: Tensor) -> dict[str, float]:
        assert self._lowest is not None
        for task, gap, bound in zip(self._tasks, self._lowest.tolist(), self._bounds.tolist(), strict=True):
            if gap <= 0:
                raise ValueError(
                    f"FAMO: expected losses above {bound} (`min_losses`), found {gap + bound} for task {task!r}"
                )
        z = torch.softmax(self._logits, 0)
        gaps = losses - self._bounds
        weights = _normalised(z, gaps)
        logs = torch.log(gaps + EPSILON)
        if self._previous is not None:
            delta = torch.where(self._previous.isnan(), 0.0, self._previous - logs)
            gradient = z * (delta - z @ delta)
            self._adam = adam_step(self._logits, gradient, self._adam, self.lr, self.weight_decay)
        self._previous = logs
        self.forget_window()
        return {f"famo/weight/{task}": weight for task, weight in zip(self._tasks, weights.tolist(), strict=True)}

    def forget_window(self) -> None:
        super().forget_window()
        self._lowest = None


def _normalised(z: Tensor, gaps: Tensor) -> Tensor:
    """z_i / D_i [m], scaled to sum 1."""
    shares = z / (gaps + EPSILON)
    return shares / shares.sum()
