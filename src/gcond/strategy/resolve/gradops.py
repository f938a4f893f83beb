"""GradOPS: Zhu et al. 2025, Gradient Deconfliction via Orthogonal Projections onto Subspaces (arXiv 2503.03438).

Letters: m tasks, C [m, m] with g_i' = sum_j C_ij g_j, R_i the progress of task i under sum_j g_j'.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.conflict import Conflict, Resolution, Resolver

CUTOFF = 1e-12  # of the largest eigenvalue of the others' cosine matrix; the squared sine at which g_i' vanishes
FLOOR = 1e-3  # of r_i: a smaller one would make r_i ** alpha, alpha < 0, drown every other task


class GradOPS(Resolver):
    """Make each conflicting task gradient orthogonal to the span of the others; the update is their sum.

    g_i' = g_i - proj(g_i, span{g_j : j != i}) where g_i conflicts with at least one other (g_i . g_j < 0), else g_i.
    No g_i', hence no combination of them with weights >= 0, conflicts with any g_j. This is the part that the paper's
    abstract and Figure 1 confirm ("g'_1 is orthogonal to S = span{g_2, g_3} with the conflicting part on S removed";
    "neither each g'_i nor G' conflicts with any of {g_i}"); its body was not available to us.

    A g_i that conflicts and lies in the span of the others vanishes: every conflicting one does, where tasks outnumber
    the rank. They are counted, and a warning is given once when nothing is left of the update. "Lies in" means an angle
    with a squared sine of at most 1e-12; the span is that of eigenvectors above 1e-12 of the largest eigenvalue of the
    others' cosine matrix, so that the result does not depend on the scale of any task.

    Args:
        weights: "none" sums the g_i'. "unverified_r_alpha" weights them with w_i = r_i^alpha / mean_j(r_j^alpha),
            r_i = R_i / mean_j(R_j), R_i = (sum_j g_j' . g_i) / ||g_i||^2. UNVERIFIED: that a single alpha re-weights
            the tasks, and that -3 was used, is published; this formula is not from the paper's text but recalled (by
            language models) without a source that could be checked, and may be wrong. Tasks whose g_i' vanishes are
            left out of the means, and r_i below 1e-3 counts as 1e-3 (reported), since negative powers explode there.
        alpha: required by "unverified_r_alpha", otherwise None; above 0 favours tasks that progress most, below 0
            those that progress least, 0 is "none".

    Raises:
        ValueError: `weights` unknown, or `alpha` missing, not finite, or given where it has no effect.
    """

    def __init__(self, weights: str = "none", alpha: float | None = None) -> None:
        expect_one_of("weights", weights, "none", "unverified_r_alpha")
        if weights == "none":
            expect(alpha is None, "alpha", 'None, as it has no effect with weights "none"', alpha)
        else:
            finite = alpha is not None and math.isfinite(alpha)
            expect(finite, "alpha", f'a finite number with weights "{weights}"', alpha)
        self.alpha = alpha
        self._warned = False

    def resolve(self, conflict: Conflict) -> Resolution:
        gram = conflict.gram
        coefficients = torch.eye(len(gram), dtype=torch.float64)
        alive = gram.diagonal() > 0
        conflicting = (gram < 0).any(1)
        for i in torch.nonzero(conflicting).flatten().tolist():
            coefficients[i] = _orthogonal_to_others(gram, i)
            alive[i] = bool(coefficients[i].any())
        vanished = int((conflicting & ~alive).sum())
        if vanished and not bool(alive.any()) and not self._warned:
            self._warned = True
            warnings.warn(
                "GradOPS: each task gradient lies in the span of the others, so nothing is left of the update (always "
                f"so where {len(gram)} tasks all conflict and outnumber the rank of their gradients)",
                stacklevel=2,
            )
        metrics = {"gradops/projected": float(conflicting.sum()), "gradops/vanished": float(vanished)}
        if self.alpha is not None and bool(alive.any()):
            weights, floored = _weights(gram, coefficients, alive, self.alpha)
            coefficients = weights.unsqueeze(1) * coefficients
            metrics["gradops/floored"] = float(floored)
        return Resolution(coefficients, metrics)


def _orthogonal_to_others(gram: Tensor, i: int) -> Tensor:
    """Coefficients [m] of g_i minus its projection on the span of the others; zeros if nothing is left of it."""
    norms = gram.diagonal().sqrt()
    others = [j for j in range(len(gram)) if j != i and norms[j] > 0]
    cosines = (gram / norms.unsqueeze(1) / norms)[others]  # [others, m]
    block, own = cosines[:, others], cosines[:, i]
    shares = torch.linalg.pinv(block, rtol=CUTOFF, hermitian=True) @ own
    row = torch.zeros(len(gram), dtype=torch.float64)
    if 1 - own @ shares > CUTOFF:
        row[i] = 1.0
        row[others] = -shares * norms[i] / norms[others]
    return row


def _weights(gram: Tensor, coefficients: Tensor, alive: Tensor, alpha: float) -> tuple[Tensor, int]:
    """w [m] of "unverified_r_alpha", 0 where g_i' vanished, and how many r_i were raised to the floor."""
    progress = (coefficients.sum(0) @ gram)[alive] / gram.diagonal()[alive]
    relative = progress / progress.mean()
    powers = torch.softmax(alpha * relative.clamp(min=FLOOR).log(), dim=0)  # proportional to r ** alpha, no overflow
    weights = torch.zeros(len(gram), dtype=torch.float64)
    weights[alive] = len(powers) * powers
    return weights, int((relative < FLOOR).sum())
