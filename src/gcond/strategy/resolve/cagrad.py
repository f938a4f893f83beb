"""CAGrad: Liu et al. 2021, Conflict-Averse Gradient Descent, Algorithm 1 (https://arxiv.org/abs/2110.14048)."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.conflict import Conflict, Resolution, Resolver
from gcond.strategy.safety import Unsolved

Array = NDArray[np.float64]
VANISHING = 1e-7  # of ||g_w|| relative to the gradients: its direction is then rounding noise, and d = g_0


class CAGrad(Resolver):
    """Maximise the smallest local improvement over tasks within a ball of radius c ||g_0|| around the average g_0.

    With sqrt(phi) = c ||g_0||, w* = argmin over the simplex of g_w . g_0 + sqrt(phi) ||g_w||, g_w = sum_i w_i g_i, the
    update is d = g_0 + sqrt(phi) g_w* / ||g_w*||.

    Args:
        c: radius, in [0, 1); 0.4 in the authors' NYUv2 code. The GCond paper gives none.
        rescale: 0: d; 1: d / (1 + c^2), as in the authors' NYUv2 code; 2: d / (1 + c), as in their toy problem.
        average: g_0 is the "mean" of the task gradients, as published, or their "sum" (the GCond paper does not say).
    """

    def __init__(self, c: float = 0.4, rescale: int = 1, average: str = "mean") -> None:
        expect(0 <= c < 1, "c", "a number in [0, 1)", c)
        expect(rescale in (0, 1, 2), "rescale", "0, 1 or 2", rescale)
        expect_one_of("average", average, "mean", "sum")
        self.c, self.rescale, self.average = c, rescale, average

    def resolve(self, conflict: Conflict) -> Resolution:
        gram = conflict.gram.numpy()
        m = len(gram)
        average = np.full(m, 1 / m if self.average == "mean" else 1.0)
        radius = self.c * float(np.sqrt(max(average @ gram @ average, 0.0)))
        weights = average.copy()
        norm = 0.0
        if radius > 0:
            simplex = _solve(gram, average, radius)
            norm = float(np.sqrt(max(simplex @ gram @ simplex, 0.0)))
            if norm > VANISHING * float(np.sqrt(np.diag(gram).max())):
                weights += radius / norm * simplex
        weights /= {0: 1.0, 1: 1 + self.c**2, 2: 1 + self.c}[self.rescale]
        # Only the sum over rows is defined by the method; a diagonal C gives each task its share of it.
        return Resolution(torch.from_numpy(np.diag(weights)), {"cagrad/worst_direction_norm": norm})


def _solve(gram: Array, average: Array, radius: float) -> Array:
    """argmin over the simplex of w G a + radius sqrt(w G w), on the Gram matrix scaled to a unit largest entry."""
    from scipy.optimize import minimize  # takes half a second, which all other strategies can save

    scale = float(np.diag(gram).max())
    gram, radius = gram / scale, radius / float(np.sqrt(scale))
    linear = gram @ average

    def objective(w: Array) -> tuple[float, Array]:
        gw = gram @ w
        norm = float(np.sqrt(max(float(w @ gw), 0.0) + 1e-16))
        return float(w @ linear) + radius * norm, linear + radius * gw / norm

    m = len(gram)
    for start in (np.full(m, 1 / m), *np.eye(m)):
        result = minimize(
            objective,
            start,
            jac=True,
            method="SLSQP",
            bounds=[(0.0, 1.0)] * m,
            constraints={"type": "eq", "fun": lambda w: w.sum() - 1, "jac": lambda w: np.ones_like(w)},
            options={"ftol": 1e-15, "maxiter": 500},
        )
        if result.success:
            best: Array = np.clip(result.x, 0.0, None)
            best /= best.sum()
            return best
    raise Unsolved(f"CAGrad: the simplex problem was not solved ({result.message}); Gram matrix {gram.tolist()}")
