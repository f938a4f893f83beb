"""GCond as one would write it from the paper's equations: whole vectors, no Gram matrix. A yardstick for benchmarks."""

from __future__ import annotations

import math
from itertools import combinations

import torch
from torch import Tensor


class NaiveGCond:
    """Equations 4 to 10 with the paper's settings, in the precision of the gradients.

    Vectors of P numbers everywhere: every cosine is computed anew where it is needed, every projection makes a vector.
    """

    def __init__(self) -> None:
        self.critical, self.main, self.weak = -0.8, -0.5, 0.0
        self.average_norms: Tensor | None = None
        self.previous: list[Tensor] | None = None
        self.momentum: Tensor | None = None
        self.steps = 0

    def step(self, rows: Tensor) -> Tensor:
        """Task gradients [m, P] -> the smoothed update [P]."""
        gradients = list(rows)
        norms = torch.stack([g.norm() for g in gradients])
        before = torch.ones_like(norms) if self.average_norms is None else self.average_norms
        self.average_norms = 0.95 * before + 0.05 * norms
        for _ in range(3):
            cosines = {(i, j): cosine(gradients[i], gradients[j]) for i, j in combinations(range(len(gradients)), 2)}
            (i, j), c = min(cosines.items(), key=lambda item: item[1])
            if c >= self.weak - 1e-9:
                break
            winner, loser = (i, j) if self._score(gradients, i, j) >= self._score(gradients, j, i) else (j, i)
            g_w, g_l = gradients[winner], gradients[loser]
            angle = self._angle(c)
            gradients[winner] = g_w - math.sin(angle) * (g_w @ g_l) / (g_l @ g_l) * g_l
            gradients[loser] = g_l - math.sin(min(angle, math.pi / 2)) * (g_w @ g_l) / (g_w @ g_w) * g_w
        self.previous = [g.clone() for g in gradients]
        return self._smooth(torch.stack(gradients).sum(0))

    def _score(self, gradients: list[Tensor], task: int, other: int) -> float:
        assert self.average_norms is not None
        stability = 0.0 if self.previous is None else cosine(gradients[task], self.previous[task])
        relative, against = (float(gradients[t].norm() / self.average_norms[t]) for t in (task, other))
        return 0.8 * max(0.0, stability) + 0.2 * relative / (relative + against)

    def _angle(self, c: float) -> float:
        if c <= self.critical:
            return math.pi
        if c < self.main:
            return math.pi / 2 * (1 + ((c - self.main) / (self.critical - self.main)) ** 2)
        return math.pi / 2 * (1 - (c - self.main) / (self.weak - self.main))

    def _smooth(self, update: Tensor) -> Tensor:
        self.steps += 1
        before = torch.zeros_like(update) if self.momentum is None else self.momentum
        self.momentum = 0.9 * before + 0.1 * update
        return self.momentum / (1 - 0.9**self.steps)


def cosine(a: Tensor, b: Tensor) -> float:
    return float((a @ b) / (a.norm() * b.norm()))
