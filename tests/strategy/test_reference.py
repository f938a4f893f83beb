"""The vector-space twins against the published arbitration and against values computed by hand."""

from __future__ import annotations

from math import pi, sin, sqrt

import numpy as np
import pytest
from strategy.reference import (
    ReferenceGCond,
    ReferenceGradNorm,
    ReferenceMomentum,
    effective_angle,
    reference_lion_lars,
    reference_pcgrad,
    zone_of,
)

PUBLISHED = (-0.8, -0.5, 0.0)
J_BASE = [[-4, 1, 1], [6, 1, 1]]

# Cases in which the published loop repeats on rounding noise: see tests/golden/README.md.
PHANTOM_CASES = {"two_tasks_strong_conflict", "step_logic_zones", "nearly_anti_parallel"}


def tasks(rows):
    """Rows of a matrix [m, P] as task gradients of two parameter tensors, the first entry alone in the first."""
    return [np.split(np.array(row, dtype=np.float64), [1]) for row in rows]


def flat(gradient):
    return np.concatenate(gradient)


def assert_close(found, expected, tolerance=1e-6):
    """Equal within `tolerance` of the largest expected entry."""
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * max(np.abs(expected).max(), 1e-300))


def from_config(config):
    return ReferenceGCond(
        projection_max_iters=config["projection_max_iters"],
        conflict_thresholds=tuple(config["conflict_thresholds"]),
        remap_power=config["remap_power"],
        smooth=config["use_smooth_logic"],
        dominance_window=config["dominance_window"],
        norm_cap=config["norm_cap"],
        norm_ema_beta=config["norm_ema_beta"],
        tie_breaking_weights=tuple(config["tie_breaking_weights"]),
    )


def test_golden_case(golden_case):
    config, cut = golden_case["config"], golden_case["split"][:1]
    gcond, momentum = from_config(config), ReferenceMomentum(config["momentum_beta"])
    params = [np.array(p) for p in golden_case["params"]]
    for step in golden_case["steps"]:
        found = gcond.step([np.split(np.array(row), cut) for row in step["task_gradients"]])
        assert_close(np.stack([flat(g) for g in found.resolved]), step["resolved_task_gradients"])
        assert_close(flat(found.total), step["resolved"])
        assert_close(found.norm_ema, step["norm_ema"])
        assert found.min_cosine_reported == pytest.approx(step["min_cosine_reported"], abs=1e-6)

        pairs = [list(pair) for pair in found.winner_loser]
        assert pairs[:1] == step["winner_loser"][:1]
        if golden_case["name"] not in PHANTOM_CASES:
            assert pairs == step["winner_loser"]
            assert found.iterations == step["iterations"]

        written = found.total if config["return_raw_grad"] else momentum.step(found.total)
        if config["use_lion"]:
            written = reference_lion_lars(params, written, config["trust_ratio_coef"], config["trust_ratio_clip"])
        assert_close(flat(written), step["written"])


def test_golden_cases_use_every_published_setting(golden_cases):
    configs = [case["config"] for case in golden_cases]
    assert {config["use_smooth_logic"] for config in configs} == {True, False}
    assert {config["use_lion"] for config in configs} == {True, False}
    assert {config["return_raw_grad"] for config in configs} == {True, False}
    assert any(config["norm_cap"] for config in configs)
    assert any(config["dominance_window"] for config in configs)
    assert {case["num_tasks"] for case in golden_cases} >= {1, 2, 3}


def test_critical_conflict_leaves_the_winner_and_projects_the_loser():
    found = ReferenceGCond().step(tasks(J_BASE))
    assert found.winner_loser == [(1, 0)]
    assert found.zones == ["critical"]
    assert found.min_cosine_reported == pytest.approx(-22 / sqrt(18 * 38))
    assert_close(flat(found.resolved[1]), [6, 1, 1])
    assert_close(flat(found.total), np.array([104, 49, 49]) / 19)


def test_mild_conflict_projects_both_by_the_same_share():
    """By hand; the published code in bfloat16 gives (.8691, 1.2168, 0)."""
    cosine = -0.3 / sqrt(1.09)
    strength = sin(pi / 2 * -cosine / 0.5)
    expected = [0.7 - strength * 0.3 * 0.3 / 1.09 + strength * 0.3, 1 + strength * 0.3 / 1.09, 0]
    found = ReferenceGCond().step(tasks([[1, 0, 0], [-0.3, 1, 0]]))
    assert found.zones == ["weak"]
    assert_close(flat(found.total), expected)
    assert_close(flat(found.total), [0.8691, 1.2168, 0], tolerance=4e-3)


def test_moderate_conflict_projects_the_winner_less_than_the_loser():
    """By hand; the published code in bfloat16 gives (.5781, 1.4883, 0)."""
    share = (0.8 / sqrt(1.64) - 0.5) / 0.3
    strength = sin(pi / 2 + pi / 2 * share**2)
    expected = [(1 - 0.8 * 0.8 / 1.64) + (-0.8 + strength * 0.8), 0.8 / 1.64 + 1, 0]
    found = ReferenceGCond().step(tasks([[1, 0, 0], [-0.8, 1, 0]]))
    assert found.zones == ["main"]
    assert_close(flat(found.total), expected)
    assert_close(flat(found.total), [0.5781, 1.4883, 0], tolerance=4e-3)


def test_step_logic_zeroes_the_loser_of_a_critical_conflict():
    found = ReferenceGCond(smooth=False).step(tasks(J_BASE))
    assert_close(flat(found.total), [6, 1, 1])
    assert found.iterations == 1


def test_step_logic_of_a_weak_conflict_projects_both_fully_and_has_no_winner():
    found = ReferenceGCond(smooth=False).step(tasks([[1, 0, 0], [-0.3, 1, 0]]))
    assert_close(flat(found.total), [1 - 0.09 / 1.09, 0.3 / 1.09 + 1, 0])
    assert found.iterations == 1
    assert found.winner_loser == []


@pytest.mark.parametrize(
    ("cosine", "zone"),
    [(-0.8, "critical"), (-0.79, "main"), (-0.5, "weak"), (-0.51, "main"), (-0.01, "weak"), (0.0, "none")],
)
def test_zones_at_their_boundaries(cosine, zone):
    assert zone_of(cosine, PUBLISHED) == zone


@pytest.mark.parametrize(
    ("cosine", "angle"), [(-0.9, pi), (-0.65, 5 * pi / 8), (-0.5, pi / 2), (-0.25, pi / 4), (-0.05, pi / 20)]
)
def test_effective_angle(cosine, angle):
    assert effective_angle(cosine, PUBLISHED, power=2.0) == pytest.approx(angle)


def test_no_conflict_gives_the_plain_sum():
    found = ReferenceGCond().step(tasks([[1, 0, 0], [1, 2, 3]]))
    assert_close(flat(found.total), [2, 2, 3])
    assert (found.iterations, found.min_cosine_reported) == (0, 1.0)


def test_first_task_of_the_pair_wins_a_tie():
    assert ReferenceGCond().step(tasks([[-3, 4], [3, -4.0]])).winner_loser == [(0, 1)]


def test_negative_stability_counts_as_zero():
    """Both turned round on the second step; the longer second task has the greater strength and must win."""
    gcond = ReferenceGCond(tie_breaking_weights=(0.99, 0.01), norm_ema_beta=0.999)
    gcond.step(tasks([[1, 0], [0, 1]]))
    assert gcond.step(tasks([[-0.1, 1], [-0.5, -1.5]])).winner_loser == [(1, 0)]


def test_step_without_conflict_enters_the_history():
    gcond = ReferenceGCond(tie_breaking_weights=(1.0, 0.0))
    gcond.step(tasks([[1, 0], [0, 1]]))
    assert gcond.step(tasks([[-1, -1], [1, 1.5]])).winner_loser == [(1, 0)]


@pytest.mark.parametrize(("reference", "winner"), [("resolved", 0), ("accumulated", 1)])
def test_stability_reference(reference, winner):
    """Step 1 turns task 1 to (1.6, .8), so step 2's (-.5, 1) is at a right angle to it, not to (0, 4)."""
    gcond = ReferenceGCond(stability_reference=reference, tie_breaking_weights=(1.0, 0.0))
    first = gcond.step(tasks([[1, -2], [0, 4]]))
    assert_close(flat(first.resolved[1]), [1.6, 0.8])
    assert gcond.step(tasks([[1, -0.6], [-0.5, 1]])).winner_loser[0][0] == winner


def test_dominant_task_loses_its_next_conflict():
    gcond = ReferenceGCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0), norm_ema_beta=1.0)
    winners = [gcond.step(tasks(J_BASE)).winner_loser[0][0] for _ in range(6)]
    assert winners == [1, 1, 0, 1, 1, 0]


def test_win_by_dominance_counts_as_a_win():
    gcond = ReferenceGCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0), norm_ema_beta=1.0)
    steps = [J_BASE] * 3 + [J_BASE[::-1]] * 2
    assert [gcond.step(tasks(rows)).winner_loser[0][0] for rows in steps] == [1, 1, 0, 0, 1]


def test_dominance_counts_wins_over_any_task():
    gcond = ReferenceGCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0), norm_ema_beta=1.0)
    against_1 = [[3, 0, 0], [-1, 1, 0], [0, 0, 1]]
    against_2 = [[3, 0, 0], [0, 0, 1], [-1, 1, 0]]
    pairs = [gcond.step(tasks(rows)).winner_loser for rows in (against_1, against_2, against_1)]
    assert pairs == [[(0, 1)], [(0, 2)], [(1, 0)]]


def test_norm_cap_acts_on_gradients_but_not_on_the_norm_average():
    found = ReferenceGCond(norm_cap=1.0, norm_ema_beta=0.5).step(tasks([[3, 4], [0.5, 0]]))
    assert_close(flat(found.total), [0.6 + 0.5, 0.8])
    assert_close(found.norm_ema, [3.0, 0.75])


def test_bias_corrected_norm_average_starts_at_the_first_norms():
    gcond = ReferenceGCond(norm_ema_bias_correction=True, norm_ema_beta=0.9)
    assert_close(gcond.step(tasks([[3, 4], [1, 0]])).norm_ema, [5, 1])
    assert_close(gcond.step(tasks([[0, 10], [1, 0]])).norm_ema, [(0.9 * 5 + 10) / 1.9, 1])


@pytest.mark.parametrize(
    ("vanishing", "length", "resolved"),
    [("absolute", 1.1e-4, True), ("absolute", 0.9e-4, False), ("relative", 1.1e-6, True), ("relative", 0.9e-6, False)],
)
def test_vanishing_pair_is_left_out(vanishing, length, resolved):
    found = ReferenceGCond(vanishing=vanishing).step(tasks([[1, 0], [-length, 0]]))
    assert found.iterations == int(resolved)


def test_rounding_noise_is_no_conflict():
    rows = [[1, 0], [-1e-10, 1]]
    assert ReferenceGCond().step(tasks(rows)).iterations == 0
    assert ReferenceGCond(conflict_margin=0.0).step(tasks(rows)).iterations > 0


def test_momentum_is_bias_corrected():
    momentum = ReferenceMomentum(0.9)
    assert_close(flat(momentum.step([np.array([2.0])])), [2.0])
    assert_close(flat(momentum.step([np.array([4.0])])), [(0.9 * 2 + 4) / 1.9])


def test_lion_lars_clips_the_ratio_before_the_coefficient():
    params = [np.array([3.0, 4.0]), np.array([1000.0]), np.array([0.0])]
    momentum = [np.array([-2.0, 0.0]), np.array([1.0]), np.array([7.0])]
    update = reference_lion_lars(params, momentum, coefficient=0.1)
    assert_close(flat(update), [-0.25, 0.0, 5.0, 0.1])


@pytest.mark.parametrize(("order", "expected"), [((1, 2), [0.5, 0]), ((2, 1), [0.4, 0.2])])
def test_pcgrad_by_hand(order, expected):
    """Task 0 conflicts with task 2 only once it has been projected on task 1's complement."""
    gradients = tasks([[1, 0], [-1, 1], [1, -2]])
    assert_close(flat(reference_pcgrad(gradients, [order, (0, 2), (0, 1)])), expected)


def test_pcgrad_of_torchjd():
    """TorchJD, tests/unit/aggregation/test_values.py."""
    assert_close(flat(reference_pcgrad(tasks(J_BASE), [[1], [0]])), [0.5848, 3.8012, 3.8012], tolerance=1e-4)


def test_gradnorm_by_hand():
    """Step 2: r = (1.4, .6); alpha = 1.5 puts both targets on the other side of the norms, alpha = 1 would not."""
    gradients, shared = tasks([[1, 0], [0, 1]]), [[np.array([3.0])], [np.array([1.0])]]
    gradnorm = ReferenceGradNorm(2)
    assert_close(flat(gradnorm.step([5, 5], gradients, shared)), [1, 1])
    assert_close(gradnorm.weights, [0.999, 1.001])
    assert_close(flat(gradnorm.step([7, 3], gradients, shared)), [0.999, 1.001])
    shift = 1e-3 * (0.01 / 0.19)
    assert_close(gradnorm.weights, [0.999 + shift, 1.001 - shift], tolerance=1e-9)


def test_gradnorm_floor_comes_before_the_renormalisation():
    gradnorm = ReferenceGradNorm(2, lr=2.0)
    gradnorm.step([1, 1], tasks([[1, 0], [0, 1]]), [[np.array([3.0])], [np.array([1.0])]])
    assert_close(gradnorm.weights, np.array([0.001, 3]) * 2 / 3.001, tolerance=1e-7)
