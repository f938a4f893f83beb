"""Methods against results that do not come from their own code: published values, closed forms, optimality conditions.

Letters: m tasks, rows J [m, P], G = J J^T, update d [P], cosine c of two rows.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from methods.methods import build, conflict, matrix, random_cases, update
from strategy.problems import assert_close as close
from torch import Tensor

J_BASE = [[-4, 1, 1], [6, 1, 1]]
PAIRS = [
    np.array([[n, 0.0], [k * c, k * math.sqrt(1 - c * c)]])
    for n, k in ((1.0, 1.0), (1.0, 2.0), (3.0, 0.2))
    for c in (-0.95, -0.5, -0.1, 0.3, 0.9)
]


assert_close = partial(close, tolerance=1e-6)


def direction(vector: object) -> Tensor:
    return matrix(vector) / matrix(vector).norm()


def independent(m: int, count: int) -> list[np.ndarray]:
    return [case.rows for case in random_cases(count, tasks=(m,))]


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("baseline", {}, (2, 2, 2)),
        ("pcgrad", {}, (0.5848, 3.8012, 3.8012)),
        ("cagrad", {"c": 0.5, "rescale": 0}, (0.1835, 1.2041, 1.2041)),
        ("upgrad", {}, (0.2929, 1.9004, 1.9004)),
        ("mgda", {}, (0, 1, 1)),
        ("nash_mtl", {}, (0.0542, 0.7061, 0.7061)),
        ("aligned_mtl", {}, (0.2133, 0.9673, 0.9673)),
        ("imtl_g", {}, (0.0767, 1, 1)),
        ("config", {}, (0.1588, 2.0706, 2.0706)),
        ("fairgrad", {"alpha": 1.0}, (0.0766, 0.9985, 0.9985)),
    ],
)
@pytest.mark.oracle(
    "baseline pcgrad cagrad upgrad mgda nash_mtl aligned_mtl imtl_g config fairgrad", "TorchJD's published value"
)
def test_torchjd_published_value(name, changes, expected):
    """TorchJD, tests/unit/aggregation/test_values.py, to its four digits."""
    torch.testing.assert_close(update(name, J_BASE, **changes), matrix(expected), rtol=0, atol=1e-4)


NEARLY_OPPOSED = [np.array([[1.65, 0.0], [-1.12 * math.sqrt(1 - e * e), 1.12 * e]]) for e in (0.1, 1e-2, 2e-3)]


@pytest.mark.oracle("mgda", "KKT conditions")
@pytest.mark.parametrize("m", [2, 3, 5])
def test_mgda_is_the_shortest_convex_combination(m):
    """w >= 0, sum 1, <g_i, d> >= ||d||^2, with equality where w_i > 0 (to Frank-Wolfe's gap)."""
    for rows in independent(m, 12):
        resolution = build("mgda").resolve(conflict(rows))
        weights, found = resolution.weights, resolution.weights @ matrix(rows)
        square = float(found @ found)
        gap = (1e-12 if m == 2 else 5e-3) * float(matrix(rows).norm(dim=1).max()) ** 2
        assert float(weights.min()) >= 0
        assert float(weights.sum()) == pytest.approx(1)
        slack = matrix(rows) @ found - square
        assert float(slack.min()) >= -gap
        assert float(weights @ slack) == pytest.approx(0, abs=gap)


@pytest.mark.oracle("mgda", "closed form for two tasks")
def test_mgda_of_two_tasks():
    """Sener & Koltun, equation 4: the first's weight is ((g_2 - g_1) . g_2) / ||g_1 - g_2||^2, clipped to [0, 1]."""
    for first, second in PAIRS:
        share = min(1, max(0, (second - first) @ second / ((first - second) @ (first - second))))
        found = update("mgda", np.stack([first, second]))
        assert_close(found, share * first + (1 - share) * second, tolerance=1e-9)


@pytest.mark.oracle("nash_mtl fairgrad", "its defining equation")
@pytest.mark.parametrize("m", [2, 3])
def test_bargaining_equation(m):
    """Navon et al., claim 3.1: G w = 1 / w, before the cut; Ban & Ji, equation 4: G w = w^(-1/alpha)."""
    for rows in independent(m, 3) + (NEARLY_OPPOSED if m == 2 else []):
        gram = matrix(rows) @ matrix(rows).T
        weights = build("nash_mtl", max_norm=0.0).resolve(conflict(rows)).weights
        assert_close(weights * (gram @ weights), [1.0] * m, tolerance=1e-5)
        for alpha in (0.5, 1.0, 2.0, 5.0):
            weights = build("fairgrad", alpha=alpha).resolve(conflict(rows)).weights
            assert_close(gram @ weights * weights ** (1 / alpha), [1.0] * m, tolerance=1e-5)


@pytest.mark.oracle("nash_mtl", "closed form for two tasks")
def test_nash_of_two_tasks():
    """w_i = 1 / (||g_i|| sqrt(1 + c)); the update, of norm sqrt(2), is cut to norm 1."""
    for rows in PAIRS:
        lengths = np.linalg.norm(rows, axis=1)
        cosine = rows[0] @ rows[1] / lengths.prod()
        expected = (1 / (lengths * math.sqrt(1 + cosine))) @ rows
        assert_close(update("nash_mtl", rows, max_norm=0.0), expected)
        assert_close(update("nash_mtl", rows, max_norm=1.0), direction(expected))
        assert_close(update("nash_mtl", 1e-6 * rows, max_norm=1.0), direction(expected))


@pytest.mark.oracle("nash_mtl imtl_g config fairgrad", "bisector of two tasks")
def test_four_methods_share_the_bisector_of_two_tasks():
    """Equal cosines with both gradients; Nash, IMTL-G, ConFIG and FairGrad with alpha 1 agree on that alone."""
    for rows in PAIRS:
        bisector = direction(direction(rows[0]) + direction(rows[1]))
        for name, changes in (("nash_mtl", {}), ("imtl_g", {}), ("config", {}), ("fairgrad", {"alpha": 1.0})):
            assert_close(direction(update(name, rows, **changes)), bisector, tolerance=1e-5)


@pytest.mark.oracle("fairgrad nash_mtl", "FairGrad(1) = Nash-MTL")
@pytest.mark.parametrize("m", [2, 3])
def test_fairgrad_1_is_nash(m):
    for rows in independent(m, 3):
        found = update("fairgrad", rows, alpha=1.0)
        assert_close(direction(found), direction(update("nash_mtl", rows)), tolerance=1e-4)
        assert float(found.norm() ** 2) == pytest.approx(m, rel=1e-6)


@pytest.mark.oracle("aligned_mtl", "singular values of J by hand")
@pytest.mark.parametrize("m", [2, 3, 5])
def test_aligned_mtl_makes_all_singular_values_the_smallest(m):
    """J = U S V^T; the aligned gradients are min(S) U V^T, and the update is their mean."""
    for rows in independent(m, 12):
        left, singular, right = np.linalg.svd(rows, full_matrices=False)
        assert_close(update("aligned_mtl", rows), singular.min() * (left @ right).mean(0), tolerance=1e-8)


@pytest.mark.oracle("imtl_g", "equal projections, weights sum to 1")
@pytest.mark.parametrize("m", [2, 3, 5])
def test_imtl_g_has_equal_projections(m):
    """Both conditions determine w; solved here as one linear system in the vector space."""
    for rows in independent(m, 12):
        units = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        system = np.vstack([rows @ (units[:1] - units[1:]).T[:, j] for j in range(m - 1)] + [np.ones(m)])
        weights = np.linalg.solve(system, np.eye(m)[-1])
        assert_close(update("imtl_g", rows), weights @ rows, tolerance=1e-7)


@pytest.mark.oracle("config", "equal cosines, length the sum of projections")
@pytest.mark.parametrize("m", [2, 3, 5])
def test_config_has_equal_cosines(m):
    for rows in independent(m, 12):
        found = update("config", rows)
        projections = matrix(rows) @ direction(found)
        cosines = projections / matrix(rows).norm(dim=1)
        assert float(cosines.min()) > 0
        assert_close(cosines, [float(cosines.mean())] * m, tolerance=1e-9)
        assert float(found.norm()) == pytest.approx(float(projections.sum()))
        assert np.linalg.matrix_rank(np.vstack([rows, found])) == m


@pytest.mark.oracle("pcgrad upgrad gradops gcond_as_pcgrad", "one projection for two tasks")
def test_projection_methods_agree_on_two_tasks():
    """By hand: a conflicting g_i loses its part along g_j. UPGrad takes the mean, and regularises by about 2e-4."""
    for first, second in PAIRS:
        dot = first @ second
        expected = first + second
        if dot < 0:
            expected = expected - dot / (second @ second) * second - dot / (first @ first) * first
        rows = np.stack([first, second])
        for name in ("pcgrad", "gradops", "gcond_as_pcgrad"):
            assert_close(update(name, rows), expected, tolerance=1e-9)
        balanced = 1 if np.linalg.norm(first) < 3 else 200  # the regularisation is relative to the long gradient
        assert_close(2 * update("upgrad", rows), expected, tolerance=1e-3 * balanced)


@pytest.mark.oracle("upgrad", "projection on the dual cone by enumeration")
@pytest.mark.parametrize("m", [2, 3, 4])
def test_upgrad_projects_each_gradient_on_the_cone_of_no_conflict(m):
    """The projection removes the part in the span of some active set of gradients: all sets are tried."""
    for rows in independent(m, 8):
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        projected = []
        for row in rows:
            feasible = []
            for mask in range(2**m):
                active = rows[[bool(mask >> i & 1) for i in range(m)]]
                candidate = row - (np.linalg.pinv(active) @ active @ row if len(active) else 0)
                if (rows @ candidate).min() > -1e-9:
                    feasible.append((np.linalg.norm(row - candidate), candidate))
            projected.append(min(feasible, key=lambda pair: pair[0])[1])
        assert_close(update("upgrad", rows), np.mean(projected, axis=0), tolerance=2e-2)


@pytest.mark.oracle("cagrad", "c = 0 is the mean")
def test_cagrad_without_radius_is_the_mean():
    for case in random_cases(8):
        assert_close(update("cagrad", case.rows, c=0.0), case.rows.mean(0), tolerance=1e-9)


@pytest.mark.oracle(
    "gcond_stochastic gcond_sequential gcond_sequential_pure gcond_pure gcond_lion", "published code on a 2 x 3 matrix"
)
def test_gcond_published_value():
    """By hand from the published code's rules: task 1 is stronger, the conflict is critical (cosine -0.84)."""
    for name in ("gcond_stochastic", "gcond_sequential", "gcond_sequential_pure", "gcond_pure", "gcond_lion"):
        assert_close(update(name, J_BASE), np.array([104, 49, 49]) / 19, tolerance=1e-9)
