"""The two-dimensional problem of CAGrad, Nash-MTL and FAMO (CAGrad's authors: Cranial-XIX/CAGrad, toy.py).

With u_1 = (-x_1 - 7) / 2 + tanh x_2, u_2 = (-x_1 + 3) / 2 - tanh x_2 + 2, a_i = log max(|u_i|, 5e-6) + 6,
c_1 = max(tanh(x_2 / 2), 0), c_2 = max(tanh(-x_2 / 2), 0) and q_i = ((x_1 -+ 7)^2 + (x_2 + 8)^2 / 10) / 10 - 20,
task i's loss is f_i = a_i c_1 + q_i c_2. Where x_2 > 0 the valleys u_i = 0 are steep and conflict; where x_2 < 0
there are two bowls. No torch in here: all float64.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

Array = NDArray[np.float64]
Row = tuple[float, float]

STARTS = ((-8.5, 7.5), (0.0, 0.0), (9.0, 9.0), (-7.5, -0.5), (9.0, -1.0))  # Nash-MTL's and FAMO's
F1_SCALE = 0.1  # Nash-MTL and FAMO optimise 0.1 f_1 and f_2
SMALLEST = 5e-6  # of |u_i| inside the logarithm


def evaluate(x1: float, x2: float) -> tuple[tuple[float, float], tuple[Row, Row]]:
    """(f_1, f_2) and the rows d f_i / d (x_1, x_2), unscaled; plain floats, since arrays would take ten times as long.

    Both maxima pass their gradient on where their arguments are equal, as `torch.clamp` did when the problem was
    published. Without that (0, 0), a start, would be stationary: torch 2.14 gives zeros there.
    """
    tanh, half = math.tanh(x2), math.tanh(0.5 * x2)
    tanh_slope, half_slope = 1 - tanh**2, 0.5 * (1 - half**2)
    upper, lower = max(half, 0.0), max(-half, 0.0)
    upper_slope = half_slope if half >= 0 else 0.0
    lower_slope = -half_slope if half <= 0 else 0.0

    def task(u: float, u_slope: float, centre: float) -> tuple[float, Row]:
        inverse = 1 / u if abs(u) >= SMALLEST else 0.0
        valley = math.log(max(abs(u), SMALLEST)) + 6
        bowl = ((x1 - centre) ** 2 + 0.1 * (x2 + 8) ** 2) / 10 - 20
        along_x1 = -0.5 * inverse * upper + (x1 - centre) / 5 * lower
        along_x2 = u_slope * inverse * upper + valley * upper_slope + (x2 + 8) / 50 * lower + bowl * lower_slope
        return valley * upper + bowl * lower, (along_x1, along_x2)

    value1, row1 = task(0.5 * (-x1 - 7) + tanh, tanh_slope, 7.0)
    value2, row2 = task(0.5 * (-x1 + 3) - tanh + 2, -tanh_slope, -7.0)
    return (value1, value2), (row1, row2)


@cache
def front(points: int = 201) -> Array:
    """The Pareto set as a curve [points, 2], from the minimum of f_2 (x_1 = -7) to that of f_1 (x_1 = 7).

    Below x_2 = 0, w f_1 + (1 - w) f_2 is a bowl around x_1 = 7 (2 w - 1) times c_2; x_2 is stationary on top of that.
    """
    first = np.linspace(-7, 7, points)
    second = [brentq(lambda x2, x1=x1: _slope_along_front(x1, x2), -9.0, -8.0, xtol=1e-13) for x1 in first]
    curve = np.stack([first, second], axis=1)
    curve.flags.writeable = False
    return curve


def distance_to_front(x1: float, x2: float) -> float:
    """Euclidean distance to the Pareto set."""
    curve = front(2001)
    start, step = curve[:-1], np.diff(curve, axis=0)
    along = ((np.array([x1, x2]) - start) * step).sum(1) / (step**2).sum(1)
    nearest = start + np.clip(along, 0, 1)[:, None] * step
    return float(np.hypot(*(nearest - (x1, x2)).T).min())


def _slope_along_front(x1: float, x2: float) -> float:
    """d/dx_2 of w f_1 + (1 - w) f_2 where w = (x_1 / 7 + 1) / 2."""
    weight = (x1 / 7 + 1) / 2
    row1, row2 = evaluate(x1, x2)[1]
    return weight * row1[1] + (1 - weight) * row2[1]
