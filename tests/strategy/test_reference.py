"""The vector-space twins against the published arbitration and against values computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from strategy.problems import assert_close
from strategy.reference import (
    ReferenceGCond,
    ReferenceGradNorm,
    ReferenceMomentum,
    reference_lion_lars,
    reference_pcgrad,
)
from strategy.test_golden import PHANTOM_CASES


def tasks(rows):
    """Rows of a matrix [m, P] as task gradients of two parameter tensors, the first entry alone in the first."""
    return [np.split(np.array(row, dtype=np.float64), [1]) for row in rows]


def flat(gradient):
    return np.concatenate(gradient)


def test_golden_case(golden_case):
    config, cut = golden_case["config"], golden_case["split"][:1]
    same = ("projection_max_iters", "remap_power", "dominance_window", "norm_cap", "norm_ema_beta")
    gcond = ReferenceGCond(
        conflict_thresholds=tuple(config["conflict_thresholds"]),
        smooth=config["use_smooth_logic"],
        tie_breaking_weights=tuple(config["tie_breaking_weights"]),
        **{name: config[name] for name in same},
    )
    momentum = ReferenceMomentum(config["momentum_beta"])
    params = [np.array(p) for p in golden_case["params"]]
    for step in golden_case["steps"]:
        found = gcond.step([np.split(np.array(row), cut) for row in step["task_gradients"]])
        assert_close(np.stack([flat(g) for g in found.resolved]), step["resolved_task_gradients"], 1e-6)
        assert_close(flat(found.total), step["resolved"], 1e-6)
        assert_close(found.norm_ema, step["norm_ema"], 1e-6)
        assert found.min_cosine_reported == pytest.approx(step["min_cosine_reported"], abs=1e-6)

        pairs = [list(pair) for pair in found.winner_loser]
        assert pairs[:1] == step["winner_loser"][:1]
        if golden_case["name"] not in PHANTOM_CASES:
            assert pairs == step["winner_loser"]
            assert found.iterations == step["iterations"]

        written = found.total if config["return_raw_grad"] else momentum.step(found.total)
        if config["use_lion"]:
            written = reference_lion_lars(params, written, config["trust_ratio_coef"], config["trust_ratio_clip"])
        assert_close(flat(written), step["written"], 1e-6)


@pytest.mark.parametrize(("reference", "winner"), [("resolved", 0), ("accumulated", 1)])
def test_stability_reference(reference, winner):
    """Step 1 turns task 1 to (1.6, .8), so step 2's (-.5, 1) is at a right angle to it, not to (0, 4)."""
    gcond = ReferenceGCond(stability_reference=reference, tie_breaking_weights=(1.0, 0.0))
    first = gcond.step(tasks([[1, -2], [0, 4]]))
    assert_close(flat(first.resolved[1]), [1.6, 0.8])
    assert gcond.step(tasks([[1, -0.6], [-0.5, 1]])).winner_loser[0][0] == winner


def test_what_no_golden_case_decides():
    """The dominance window counts wins over any task; averages with correction; which pairs are too small; noise."""
    gcond = ReferenceGCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0), norm_ema_beta=1.0)
    against_1, against_2 = [[3, 0, 0], [-1, 1, 0], [0, 0, 1]], [[3, 0, 0], [0, 0, 1], [-1, 1, 0]]
    pairs = [gcond.step(tasks(rows)).winner_loser for rows in (against_1, against_2, against_1)]
    assert pairs == [[(0, 1)], [(0, 2)], [(1, 0)]]

    gcond = ReferenceGCond(norm_ema_bias_correction=True, norm_ema_beta=0.9)
    assert_close(gcond.step(tasks([[3, 4], [1, 0]])).norm_ema, [5, 1])
    assert_close(gcond.step(tasks([[0, 10], [1, 0]])).norm_ema, [(0.9 * 5 + 10) / 1.9, 1])

    for vanishing, length, resolved in (
        ("absolute", 1.1e-4, 1),
        ("absolute", 0.9e-4, 0),
        ("relative", 1.1e-6, 1),
        ("relative", 0.9e-6, 0),
    ):
        found = ReferenceGCond(vanishing=vanishing).step(tasks([[1, 0], [-length, 0]]))
        assert found.iterations == resolved, (vanishing, length)

    assert ReferenceGCond().step(tasks([[1, 0], [-1e-10, 1]])).iterations == 0
    assert ReferenceGCond(conflict_margin=0.0).step(tasks([[1, 0], [-1e-10, 1]])).iterations > 0


def test_updates_by_hand():
    momentum = ReferenceMomentum(0.9)
    assert_close(flat(momentum.step([np.array([2.0])])), [2.0])
    assert_close(flat(momentum.step([np.array([4.0])])), [(0.9 * 2 + 4) / 1.9])
    params = [np.array([3.0, 4.0]), np.array([1000.0]), np.array([0.0])]
    update = reference_lion_lars(params, [np.array([-2.0, 0.0]), np.array([1.0]), np.array([7.0])], coefficient=0.1)
    assert_close(flat(update), [-0.25, 0.0, 5.0, 0.1])


def test_pcgrad_by_hand():
    """Task 0 conflicts with task 2 only once it has been projected on task 1's complement."""
    gradients = tasks([[1, 0], [-1, 1], [1, -2]])
    for order, expected in (((1, 2), [0.5, 0]), ((2, 1), [0.4, 0.2])):
        assert_close(flat(reference_pcgrad(gradients, [order, (0, 2), (0, 1)])), expected)


def test_gradnorm_by_hand():
    """Step 2: r = (1.4, .6); alpha = 1.5 puts both targets on the other side of the norms, alpha = 1 would not."""
    gradients, shared = tasks([[1, 0], [0, 1]]), [[np.array([3.0])], [np.array([1.0])]]
    gradnorm = ReferenceGradNorm(2)
    assert_close(flat(gradnorm.step([5, 5], gradients, shared)), [1, 1])
    assert_close(gradnorm.weights, [0.999, 1.001], 1e-6)
    assert_close(flat(gradnorm.step([7, 3], gradients, shared)), [0.999, 1.001], 1e-6)
    shift = 1e-3 * (0.01 / 0.19)
    assert_close(gradnorm.weights, [0.999 + shift, 1.001 - shift])
    floored = ReferenceGradNorm(2, lr=2.0)  # the floor comes before the renormalisation
    floored.step([1, 1], gradients, shared)
    assert_close(floored.weights, np.array([0.001, 3]) * 2 / 3.001, 1e-7)
