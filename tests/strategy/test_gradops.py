"""GradOPS against projections by least squares, the inverse Gram matrix, values by hand, PCGrad, and its guarantee."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from strategy.problems import conflict, matrix, resolved

from gcond import GradOPS, PCGrad

J_BASE = [[-4, 1, 1], [6, 1, 1]]
J3 = [[1, 0, 0, 0], [-1, 1, 0, 0], [0.5, -1, 1, 0]]
ALL_CONFLICT_IN_THE_PLANE = [[2, 0], [-1, 2], [-1, -1], [0.5, -3]]


def by_least_squares(rows):
    """The definition in vector space: every conflicting row minus its projection on the span of the other rows."""
    modified = rows.copy()
    for i, row in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        if (others @ row < 0).any():
            basis = (others / np.linalg.norm(others, axis=1, keepdims=True)).T
            modified[i] -= basis @ np.linalg.lstsq(basis, row, rcond=1e-6)[0]
    return modified


@pytest.mark.oracle("gradops", "least squares on 500 matrices")
@pytest.mark.filterwarnings("ignore:GradOPS")
def test_modified_gradients_are_projections_and_no_combination_conflicts():
    """500 random matrices, a third of them with more tasks than parameters, norms from 1e-3 to 1e3."""
    random, more_tasks = np.random.default_rng(0), 0
    for _ in range(500):
        m, size = random.integers(2, 7), random.integers(1, 12)
        rows = random.standard_normal((m, size)) * 10 ** random.uniform(-3, 3, (m, 1))
        norms = np.linalg.norm(rows, axis=1)
        modified = GradOPS().resolve(conflict(rows)).coefficients.numpy() @ rows
        assert (np.abs(modified - by_least_squares(rows)).max(axis=1) / norms).max() < 1e-6
        share = random.exponential(1 / norms)  # any weights >= 0; these give every task a say
        assert (rows @ (share @ modified) / norms).min() > -1e-7
        more_tasks += m > size
    assert more_tasks > 75


@pytest.mark.oracle("gradops", "published values")
def test_values():
    """J_BASE as TorchJD's PCGrad; J3 by hand."""
    torch.testing.assert_close(resolved(GradOPS(), J_BASE), matrix([100 / 171, 650 / 171, 650 / 171]))
    resolution = GradOPS().resolve(conflict(J3))
    expected = matrix([[1, 2 / 3, 2 / 9], [3 / 4, 1, 1 / 2], [1 / 2, 1, 1]])
    torch.testing.assert_close(resolution.coefficients, expected)
    torch.testing.assert_close(resolved(GradOPS(), J3), matrix([4 / 9, 17 / 18, 31 / 18, 0]))
    assert resolution.metrics == {"gradops/projected": 3.0, "gradops/vanished": 0.0}


@pytest.mark.oracle("gradops gradops_alpha", "PCGrad for two tasks, alpha 0")
@pytest.mark.parametrize("make", [GradOPS, lambda: GradOPS("unverified_r_alpha", 0.0)])
def test_two_tasks_are_pcgrad(make):
    random = np.random.default_rng(3)
    for _ in range(100):
        rows = random.standard_normal((2, 4))
        torch.testing.assert_close(
            make().resolve(conflict(rows)).coefficients, PCGrad().resolve(conflict(rows)).coefficients
        )


def test_gradient_in_the_span_of_the_others_vanishes_exactly_and_is_counted():
    """Task 2 is the negated sum of tasks 0 and 1, so every one lies in the span of the others; task 3 has no part.

    A warning is given once, and only where nothing is left.
    """
    resolver = GradOPS()
    with warnings.catch_warnings(action="error"):
        resolution = resolver.resolve(conflict([[1, 2, 0], [3, -1, 0], [-4, -1, 0], [0, 0, 7]]))
        resolver.resolve(conflict(np.zeros((3, 4))))
    assert torch.equal(resolution.coefficients, torch.diag(matrix([0, 0, 0, 1])))
    assert resolution.metrics == {"gradops/projected": 3.0, "gradops/vanished": 3.0}
    with pytest.warns(UserWarning, match="nothing is left of the update"):
        resolution = resolver.resolve(conflict(ALL_CONFLICT_IN_THE_PLANE))
    assert not resolution.coefficients.any()
    assert resolution.metrics["gradops/vanished"] == 4
    with warnings.catch_warnings(action="error"):
        resolver.resolve(conflict(ALL_CONFLICT_IN_THE_PLANE))


def test_zero_gradient_takes_no_part():
    resolution = GradOPS().resolve(conflict([[1, 0], [0, 0], [-1, 1]]))
    torch.testing.assert_close(resolution.coefficients, matrix([[1, 0, 0.5], [0, 1, 0], [1, 0, 1]]))


# the weights that are not confirmed by the paper


@pytest.mark.oracle("gradops_alpha", "weights by hand")
def test_unverified_weights_by_hand():
    """J3: R = (4/9, 1/4, 4/9), so r is (48, 27, 48) / 41 and w is 3 r^-3 over the sum of r^-3."""
    resolution = GradOPS("unverified_r_alpha", -3.0).resolve(conflict(J3))
    inverse_cubes = matrix([48.0**-3, 27.0**-3, 48.0**-3])
    weights = 3 * inverse_cubes / inverse_cubes.sum()
    plain = GradOPS().resolve(conflict(J3)).coefficients
    torch.testing.assert_close(resolution.coefficients, weights.unsqueeze(1) * plain)
    assert resolution.metrics["gradops/floored"] == 0


@pytest.mark.parametrize(("height", "floored"), [(1e-2, 2), (5e-4**0.5, 0)])
def test_small_progress_is_floored_and_counted(height, floored):
    """Two nearly opposite gradients make R = sin^2 of their angle each, a third one is alone, R = 1: by hand."""
    resolution = GradOPS("unverified_r_alpha", -3.0).resolve(conflict([[1, 0, 0], [-1, height, 0], [0, 0, 1]]))
    small = height**2 / (1 + height**2)
    mean = (1 + 2 * small) / 3
    powers = [max(r / mean, 1e-3) ** -3 for r in (small, small, 1)]
    diagonal = resolution.coefficients.diagonal()
    torch.testing.assert_close(diagonal, 3 * matrix(powers) / sum(powers), rtol=1e-6, atol=0)
    assert resolution.metrics["gradops/floored"] == floored
    assert resolution.metrics["gradops/vanished"] == 0
