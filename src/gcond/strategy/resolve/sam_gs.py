"""SAM-GS: Borsani et al. 2025, Gradient Similarity Surgery in Multi-Task Deep Learning (arXiv 2506.06130).

Letters: m tasks, P parameters, psi the similarity of gradient norms, M [m, P] first moments of the task gradients.
"""

from __future__ import annotations

import math
from types import MappingProxyType

import torch
from torch import Tensor
from torch.nn.functional import pad

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.conflict import Conflict, Resolution, Resolver
from gcond.strategy.flat import Move

EPSILON = 1e-8


class SAMGS(Resolver):
    """Equalise the task gradients' norms where they are unlike; otherwise modulate each by its own momentum.

    psi_ij = 2 ||g_i|| ||g_j|| / (||g_i||^2 + ||g_j||^2), Psi its mean over pairs; M <- beta1 M + (1 - beta1) g at each
    coordinate; h <- beta2 h + (1 - beta2) (1 - Psi)^2 + 1e-8. With Psi < gamma, w_i = mean_j ||g_j|| / ||g_i||;
    otherwise w_i = |M_i / (1 - beta1^t)| / (sqrt(h / (1 - beta2^t)) + 1e-8) at each coordinate. The update is
    sum_i w_i g_i. The authors' code multiplies it by m and leaves the last 1e-8 out; this does neither.

    The momentum's branch is quadratic in the gradients' scale, and far from the plain sum for a single task too. It
    keeps m P numbers of state, in float32 at least.

    Args:
        psi: the mean over all m^2 pairs, each task with itself included ("paper"), or over i < j ("code"). With two
            tasks the paper's Psi is never below 1/2, so that at the default gamma nothing is ever equalised; the code's
            can be.
        beta1, beta2, gamma: of M, of h, and the threshold on Psi; all .9 in the authors' NYUv2 and Cityscapes runs.

    Raises:
        ValueError: a setting out of range; the message names it.
    """

    works_on_coordinates = True
    remembers_coordinates = True
    needs_every_task = True
    remembers = ("steps", "dissimilarity", "momentum")
    starts = MappingProxyType({"momentum": 0.0})

    def __init__(self, psi: str = "paper", beta1: float = 0.9, beta2: float = 0.99, gamma: float = 0.1) -> None:
        expect_one_of("psi", psi, "paper", "code")
        for name, value in {"beta1": beta1, "beta2": beta2}.items():
            expect(0 <= value < 1, name, "a number in [0, 1)", value)
        expect(0 <= gamma <= 1, "gamma", "a number in [0, 1]", gamma)
        self.psi, self.beta1, self.beta2, self.gamma = psi, beta1, beta2, gamma
        self._steps = 0
        self._dissimilarity = 0.0  # h
        self._momentum: Tensor | None = None  # [m, coordinates seen]

    def resolve(self, conflict: Conflict) -> Resolution:
        norms = conflict.gram.diagonal().sqrt()
        similarity = self._similarity(norms)
        self._steps += 1
        self._dissimilarity = self.beta2 * self._dissimilarity + (1 - self.beta2) * (1 - similarity) ** 2 + EPSILON
        spread = math.sqrt(self._dissimilarity / (1 - self.beta2**self._steps)) + EPSILON
        correction = 1 - self.beta1**self._steps
        equalise = similarity < self.gamma
        scales = torch.where(norms > 0, norms.mean() / norms, 0.0)

        def blockwise(rows: Tensor, start: int) -> Tensor:
            rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
            momentum = self._momentum_at(rows, start)
            momentum.mul_(self.beta1).add_(rows, alpha=1 - self.beta1)
            if equalise:
                return (scales.to(rows, non_blocking=True).unsqueeze(1) * rows).sum(0)
            return (momentum.abs() / (correction * spread) * rows).sum(0)

        metrics = {"sam_gs/similarity": similarity, "sam_gs/equalised": float(equalise)}
        return Resolution(None, metrics, blockwise=blockwise)

    def _similarity(self, norms: Tensor) -> float:
        """Psi; two gradients that are both zero, and a single task, are alike."""
        squares = norms**2
        sums = squares.unsqueeze(1) + squares
        pairs = torch.where(sums > 0, 2 * torch.outer(norms, norms) / sums, 1.0)
        if self.psi == "paper":
            return float(pairs.mean())
        upper = torch.triu_indices(len(norms), len(norms), offset=1)
        return float(pairs[upper[0], upper[1]].mean()) if len(norms) > 1 else 1.0

    def _momentum_at(self, rows: Tensor, start: int) -> Tensor:
        """The first moments of this block [m, c]; the buffer grows as blocks of the first resolution arrive."""
        stop = start + rows.shape[1]
        held = rows.new_zeros(len(rows), 0) if self._momentum is None else self._momentum.to(rows)
        self._momentum = held if held.shape[1] >= stop else pad(held, (0, stop - held.shape[1]))
        return self._momentum[:, start:stop]

    def follow(self, move: Move) -> None:
        if self._momentum is not None:
            self._momentum = move.numbers(self._momentum)
