"""GCond's angles, zones, projections and winners by hand, and its ablation GCond-as-PCGrad against the loop on vectors.

The published arbitration: test_golden.py; the vector-space twin on generated gradients: test_twin.py.
"""

from __future__ import annotations

from math import pi

import numpy as np
import pytest
import torch
from strategy.problems import assert_close, conflict, matrix, random_rows, resolved
from strategy.reference import effective_angle

from gcond import GCond, GCondAsPCGrad, PCGrad

J_BASE = [[-4, 1, 1], [6, 1, 1]]
STRENGTH_ONLY = {"tie_breaking_weights": (0.0, 1.0)}


# Angles, zones, projections


def test_effective_angle_is_equation_4():
    for power in (1.0, 2.0, 3.5):
        for cosine in (-1.0, -0.95, -0.8, -0.7, -0.6, -0.501, -0.5, -0.3, -0.01):
            expected = effective_angle(cosine, (-0.8, -0.5, 0.0), power)
            assert GCond(remap_power=power).effective_angle(cosine) == pytest.approx(expected, abs=1e-14)
    for threshold, angle in ((-0.8, pi), (-0.5, pi / 2), (0.0, 0.0)):  # continuous there
        assert GCond().effective_angle(threshold - 1e-9) == pytest.approx(angle, abs=1e-6)
        assert GCond().effective_angle(min(threshold + 1e-9, 0.0)) == pytest.approx(angle, abs=1e-6)


def test_zones_at_their_boundaries():
    zones = {-0.8: "critical", -0.799: "main", -0.501: "main", -0.5: "weak", -1e-6: "weak"}
    assert {cosine: GCond().zone(cosine) for cosine in zones} == zones


def test_pair_made_orthogonal_is_not_resolved_again():
    """The conflict margin: no phantom iterations, whatever the rounding."""
    for seed in range(50):
        rows = random_rows(seed, 2, 30)
        rows[1] -= 3 * rows[0]
        metrics = GCond(projection_max_iters=5).resolve(conflict(rows)).metrics
        assert metrics["zone/critical"] + metrics["zone/main"] + metrics["zone/weak"] == 1


def test_norm_cap_clips_each_gradient_and_not_the_norm_average():
    gcond = GCond(norm_cap=1.0, norm_ema_beta=0.5)
    assert_close(resolved(gcond, [[3, 4], [0.5, 0]]), [1.1, 0.8])
    assert_close(gcond.state_dict()["norm_ema"], [3.0, 0.75])
    assert_close(resolved(GCond(norm_cap=1.0), [[3.0, -4.0]]), [3, -4])  # one task is not capped, as published


# Who wins, where one rule of the score or of the dominance window decides


def winners(gcond, *steps):
    """The tasks that won at each step, whose rows follow those of the step before."""
    found, previous = [], None
    for rows in steps:
        metrics = gcond.resolve(conflict(rows, previous)).metrics
        found.append([i for i in range(len(rows)) if metrics[f"wins/t{i}"]])
        previous = rows
    return found


def test_first_task_wins_a_tie_of_scores_and_first_pair_a_tie_of_cosines():
    """By hand: equal norms; then cosines of -1 / sqrt(2) for tasks (0, 1) and (0, 2), of which the longer one wins."""
    assert winners(GCond(), [[-3, 4], [3, -4]]) == [[0]]
    assert winners(GCond(projection_max_iters=1), [[1, 0, 0], [-1, 1, 0], [-1, 0, 1]]) == [[1]]


def test_negative_stability_counts_as_zero():
    """Both turned round, cosines -.1 and -.95 with the step before; so the longer second task wins by its strength."""
    gcond = GCond(tie_breaking_weights=(0.99, 0.01), norm_ema_beta=0.999)
    assert winners(gcond, [[1, 0], [0, 1]], [[-0.1, 1], [-0.5, -1.5]]) == [[], [1]]


@pytest.mark.parametrize(("reference", "winner"), [("resolved", 0), ("accumulated", 1)])
def test_stability_reference(reference, winner):
    """Step 1 turns task 1 to (1.6, .8), so step 2's (-.5, 1) is at a right angle to it, not to (0, 4)."""
    gcond = GCond(stability_reference=reference, tie_breaking_weights=(1.0, 0.0), projection_max_iters=1)
    assert winners(gcond, [[1, -2], [0, 4]], [[1, -0.6], [-0.5, 1]])[1] == [winner]


def test_gradients_too_small_to_take_part():
    for vanishing, length, iterations in (
        ("absolute", 1.1e-4, 1),
        ("absolute", 0.9e-4, 0),
        ("relative", 1.1e-6, 1),
        ("relative", 0.9e-6, 0),
    ):
        metrics = GCond(vanishing=vanishing).resolve(conflict([[1, 0], [-length, 0]])).metrics
        assert metrics["zone/critical"] == iterations, (vanishing, length)


@pytest.mark.parametrize("restore", [False, True])
def test_dominant_task_loses_its_next_conflict(restore):
    """By hand: task 1 is always the stronger one; the cosine is critical, so each step is one win."""
    wins = []
    gcond = GCond(dominance_window=2, **STRENGTH_ONLY)
    for _ in range(7):
        wins += winners(gcond, J_BASE)[0]
        if restore:
            state = gcond.state_dict()
            gcond = GCond(dominance_window=2, **STRENGTH_ONLY)
            gcond.load_state_dict(state)
    assert wins == [1, 1, 0, 1, 1, 0, 1]


def test_dominance_counts_wins_over_any_task():
    """The longest first task beats the second, then the third; a third win in a row it must give away."""
    against_1, against_2 = [[3, 0, 0], [-1, 1, 0], [0, 0, 1]], [[3, 0, 0], [0, 0, 1], [-1, 1, 0]]
    gcond = GCond(dominance_window=2, norm_ema_beta=0.999, **STRENGTH_ONLY)
    assert winners(gcond, against_1, against_2, against_1) == [[0], [0], [1]]


def test_corrected_norm_averages_start_at_the_first_norms():
    """Task 1 has grown, task 0 has not: the averages are (5, 1.13), the strengths 1 : 1.06, after a first tie.

    Averages that began at 1 would be (4, 1.1), the strengths 1.25 : 1.09.
    """
    gcond = GCond(norm_ema_bias_correction=True, norm_ema_beta=0.5, **STRENGTH_ONLY)
    assert winners(gcond, [[5, 0], [-1, 0]], [[5, 0], [-1.2, 0]]) == [[0], [1]]


# GCond-as-PCGrad


def by_vectors(rows, iterations):
    """Take the worst pair by cosine and project both fully, from their values before the iteration."""
    rows = np.array(rows, dtype=np.float64)
    for done in range(iterations):
        pairs = [(i, j) for i in range(len(rows)) for j in range(i + 1, len(rows))]
        cosines = [rows[i] @ rows[j] / (np.linalg.norm(rows[i]) * np.linalg.norm(rows[j])) for i, j in pairs]
        worst = int(np.argmin(cosines))
        if cosines[worst] >= -1e-9:
            return rows, done
        i, j = pairs[worst]
        a, b = rows[i].copy(), rows[j].copy()
        rows[i] = a - (a @ b) / (b @ b) * b
        rows[j] = b - (a @ b) / (a @ a) * a
    return rows, iterations


def test_two_tasks_are_pcgrad_exactly():
    random = np.random.default_rng(0)
    for _ in range(50):
        seen = conflict(random.standard_normal((2, 5)))
        assert torch.equal(GCondAsPCGrad().resolve(seen).coefficients, PCGrad().resolve(seen).coefficients)


@pytest.mark.oracle("gcond_as_pcgrad", "vector-space twin")
@pytest.mark.parametrize("iterations", [1, 2, 3, 10])
def test_more_tasks_are_the_loop_in_vector_space(iterations):
    """Whatever was resolved before: nothing is remembered."""
    for m in (3, 5):
        random, several = np.random.default_rng(m), 0
        resolver = GCondAsPCGrad(projection_max_iters=iterations)
        for _ in range(30):
            rows = random.standard_normal((m, 6))
            expected, done = by_vectors(rows, iterations)
            resolution = resolver.resolve(conflict(rows))
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
    for agreeing in ([[3, -4]], np.zeros((3, 2)), [[1, 2], [2, 0.5], [0, 0]]):
        assert_close(GCondAsPCGrad().resolve(conflict(agreeing)).coefficients, np.eye(len(agreeing)))
