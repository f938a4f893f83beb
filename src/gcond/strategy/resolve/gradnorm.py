"""GradNorm: Chen et al. 2018, Algorithm 1 (https://arxiv.org/abs/1711.02257)."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, nan
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import Conflict, Resolution, Resolver, adam_step

MIN_WEIGHT = 1e-3  # the paper does not keep weights positive; a weight that falls below is counted and lifted to this


class GradNorm(Resolver):
    """Loss weights w that equalise the gradient norms on one shared layer, faster for tasks that train slowly.

    With G_i = w_i ||grad_W L_i||, its mean over tasks G, and the relative inverse training rate
    r_i = (L_i / L_i(0)) / mean_j(L_j / L_j(0)), one Adam step is taken on sum_i |G_i - G r_i^alpha| (the target held
    constant; the derivative by w_i is sign(G_i - G r_i^alpha) ||grad_W L_i||, so no double backward pass is needed),
    then w is renormalised to sum m. The network's own update uses the weights from before that step. w starts at 1 and
    replaces the lambdas ("Dynamic" in the GCond paper's Table 5), on the parameters of a single task too. Where only
    one task reaches W (the others are absent from a micro-batch), w stays.

    Args:
        alpha: strength of the pull towards a common training rate; 1.5 in both papers.
        lr: of Adam on w; 1e-3 in the GCond paper, 0.025 in GradNorm's.
        group: the parameter group that is W, the last layer that all tasks share.

    Raises:
        ValueError: a setting out of range; no such group; a lambda of 0; a first loss that is not above 0, or a later
            one below 0.
    """

    needs_every_task = True
    ignores_lambdas = True
    remembers = ("weights", "first_losses", "adam")
    starts = MappingProxyType({"weights": 1.0, "first_losses": nan, "adam": 0.0})

    def __init__(self, alpha: float = 1.5, lr: float = 1e-3, group: str = "head") -> None:
        expect(0 <= alpha < inf, "alpha", "a number >= 0", alpha)
        expect(0 < lr < inf, "lr", "a number > 0", lr)
        self.alpha, self.lr, self.group = alpha, lr, group
        self._weights: Tensor | None = None
        self._first_losses: Tensor | None = None
        self._adam: dict[str, Any] = {}

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        zero = [name for name, value in tasks.items() if value == 0]
        expect(not zero, "tasks", "every lambda above 0, by which GradNorm divides gradients", f"0 for {zero}")
        layer = f"the last shared layer {self.group!r} among the parameter groups"
        found = f"{list(groups)}; pass the parameters as a mapping from group name to parameters"
        expect(self.group in groups, "group", layer, found)

    def follow_tasks(self, before: Sequence[str], now: Sequence[str]) -> None:
        super().follow_tasks(before, now)
        if self._weights is not None and set(before) - set(now):
            self._weights.mul_(len(now) / self._weights.sum())

    def resolve(self, conflict: Conflict) -> Resolution:
        shared = self.group in conflict.group_grams
        reached = shared or self._weights is not None
        expect(reached, "group", "a layer that more than one task reaches", repr(self.group))
        losses = conflict.losses
        known = losses * nan if self._first_losses is None else self._first_losses
        first = torch.where(known.isnan(), losses, known)
        holds = bool((first > 0).all() and (losses >= 0).all())
        found = dict(zip(conflict.tasks, losses.tolist(), strict=True))
        expect(holds, "losses", "losses >= 0, at first above 0, as GradNorm divides each by its first", found)
        self._first_losses = first
        if self._weights is None:
            self._weights = torch.ones_like(losses)
        weights = self._weights.clone()
        remaining = losses / first
        lifted = self._learn(self._weights, remaining, conflict) if shared else 0
        effective = weights / conflict.lambdas
        metrics = {f"gradnorm/weight/{task}": float(w) for task, w in zip(conflict.tasks, weights, strict=True)}
        return Resolution(torch.diag(effective), metrics | {"gradnorm/lifted": float(lifted)}, effective)

    def _learn(self, weights: Tensor, remaining: Tensor, conflict: Conflict) -> int:
        """One step of Adam on w, in place, and how many weights were lifted; `remaining` is L_i / L_i(0)."""
        norms = conflict.group_grams[self.group].diagonal().sqrt() / conflict.lambdas
        pulls = weights * norms
        target = pulls.mean() * (remaining / remaining.mean()) ** self.alpha
        self._adam = adam_step(weights, torch.sign(pulls - target) * norms, self._adam, self.lr)
        lifted = int((weights < MIN_WEIGHT).sum())
        weights.clamp_(min=MIN_WEIGHT)
        weights.mul_(len(norms) / weights.sum())
        return lifted
