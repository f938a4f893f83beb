"""GCond-as-PCGrad against PCGrad (two tasks) and against the loop written out in vector space (three and more)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.problems import conflict, matrix

from gcond.strategy.resolve import PCGrad
from gcond.strategy.resolve.gcond_as_pcgrad import GCondAsPCGrad


def by_vectors(rows, iterations):
    """Take the worst pair by cosine and project both fully, from their values before the iteration."""
    rows = np.array(rows, dtype=np.float64)
    done = 0
    for _ in range(iterations):
        pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        cosines = [rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])) for i, j in pairs]
        worst = int(np.argmin(cosines))
        if cosines[worst] >= -1e-9:
            break
        i, j = pairs[worst]
        a, b = rows[i].copy(), rows[j].copy()
        rows[i] = a - (a @ b) / (b @ b) * b
        rows[j] = b - (a @ b) / (a @ a) * a
        done += 1
    return rows, done


def test_two_tasks_are_pcgrad_exactly():
    random = np.random.default_rng(0)
    for _ in range(50):
        seen = conflict(random.standard_normal((2, 5)))
        assert torch.equal(GCondAsPCGrad().resolve(seen).coefficients, PCGrad().resolve(seen).coefficients)


@pytest.mark.oracle("gcond_as_pcgrad", "vector-space twin")
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
@pytest.mark.parametrize("m", [3, 5])
def test_more_tasks_are_the_loop_in_vector_space(m, iterations):
    random = np.random.default_rng(m)
    several = 0
    for _ in range(30):
        rows = random.standard_normal((m, 6))
        expected, done = by_vectors(rows, iterations)
        resolution = GCondAsPCGrad(projection_max_iters=iterations).resolve(conflict(rows))
        np.testing.assert_allclose(resolution.coefficients.numpy() @ rows, expected, atol=1e-10)
        assert sum(value for key, value in resolution.metrics.items() if key.startswith("zone/")) == done
        several += done > 1
    assert several > 5 or iterations == 1


@pytest.mark.oracle("gcond_as_pcgrad", "three tasks by hand")
def test_three_tasks_by_hand():
    """Cosines: (0, 1) -.707, (1, 2) -.707, (0, 2) 0. The first pair of equals: g_0 -> (.5, .5), g_1 -> (0, 1). Then
    (1, 2), cosine -1: both vanish, up to rounding."""
    rows = [[1, 0], [-1, 1], [0, -1]]
    first = GCondAsPCGrad(projection_max_iters=1).resolve(conflict(rows)).coefficients @ matrix(rows)
    torch.testing.assert_close(first, matrix([[0.5, 0.5], [0, 1], [0, -1]]))
    rest = GCondAsPCGrad().resolve(conflict(rows)).coefficients @ matrix(rows)
    torch.testing.assert_close(rest, matrix([[0.5, 0.5], [0, 0], [0, 0]]))


def test_nobody_wins_and_zones_are_named_by_the_thresholds():
    resolution = GCondAsPCGrad().resolve(conflict([[1, 0], [-1, 1]]))
    assert not [key for key in resolution.metrics if key.startswith("wins/")]
    assert [resolution.metrics[f"zone/{zone}"] for zone in ("weak", "main", "critical")] == [0, 1, 0]
    assert not GCondAsPCGrad.uses_history


def test_state_of_earlier_steps_does_not_matter():
    resolver, random = GCondAsPCGrad(), np.random.default_rng(7)
    for _ in range(5):
        rows = random.standard_normal((3, 4))
        expected = GCondAsPCGrad().resolve(conflict(rows)).coefficients
        assert torch.equal(resolver.resolve(conflict(rows)).coefficients, expected)


@pytest.mark.parametrize("rows", [[[3, -4]], np.zeros((3, 2)), [[1, 2], [2, 0.5], [0, 0]]], ids=str)
def test_no_conflict_is_the_sum(rows):
    assert torch.equal(GCondAsPCGrad().resolve(conflict(rows)).coefficients, torch.eye(len(rows), dtype=torch.float64))


def test_norm_cap_comes_first():
    resolution = GCondAsPCGrad(norm_cap=1.0).resolve(conflict([[3, 0], [-4, 4]]))
    expected, _ = by_vectors([[1, 0], [-(0.5**0.5), 0.5**0.5]], 1)
    np.testing.assert_allclose(resolution.coefficients.numpy() @ np.array([[3, 0], [-4, 4]]), expected)
