"""Resolvers against TorchJD, against the vector-space twins, by their optimality conditions, and on ugly matrices."""

from __future__ import annotations

from itertools import permutations, product
from math import inf, nan, pi, sin, sqrt

import numpy as np
import pytest
import torch
from strategy.problems import conflict, matrix
from strategy.reference import ReferenceGradNorm, effective_angle, reference_pcgrad
from torchjd import aggregation

from gcond.strategy import CAGrad, GCond, GradNorm, Linear, PCGrad

J_BASE = [[-4, 1, 1], [6, 1, 1]]
RESOLVERS = {
    "linear": Linear,
    "pcgrad": PCGrad,
    "cagrad": CAGrad,
    "cagrad sum": lambda: CAGrad(average="sum"),
    "gradnorm": GradNorm,
    "gcond": GCond,
    "gcond steps": lambda: GCond(smooth=False),
    "gcond absolute": lambda: GCond(vanishing="absolute"),
}
each_resolver = pytest.mark.parametrize("make", RESOLVERS.values(), ids=RESOLVERS)


def resolved(resolver, rows, **others):
    """The update [P] of a fresh conflict between `rows` [m, P]."""
    return resolver.resolve(conflict(rows, **others)).weights @ matrix(rows)


def random_rows(seed, m, size):
    return np.random.default_rng(seed).standard_normal((m, size))


def assert_close(found, expected, tolerance=1e-9):
    """Within `tolerance` of the largest expected entry."""
    expected = matrix(expected)
    torch.testing.assert_close(matrix(found), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


UGLY = {
    "zero": np.zeros((3, 4)),
    "one zero row": [[1, 2, 3], [0, 0, 0], [-1, -2, 1]],
    "anti-parallel": [[1.3, -0.7, 2.1], [-2.6, 1.4, -4.2]],
    "sum is zero": [[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]],
    "equal rows": [[1, 2], [1, 2], [-2, 0]],
    "more tasks than parameters": random_rows(1, 6, 2),
    "rank one": np.outer(random_rows(2, 4, 1), random_rows(3, 5, 1)),
    "unlike norms": random_rows(4, 4, 8) * [[1e-6], [1e6], [1], [1e-3]],
}


@each_resolver
@pytest.mark.parametrize("rows", UGLY.values(), ids=UGLY)
@pytest.mark.parametrize("scale", [1e-10, 1e-4, 1.0, 1e8, 1e15])
def test_update_is_finite_and_no_longer_than_the_gradients(make, rows, scale):
    rows = scale * matrix(rows)
    update = resolved(make(), rows)
    assert bool(update.isfinite().all())
    assert float(update.norm()) <= 2 * float(rows.norm(dim=1).sum())


@each_resolver
def test_one_task_is_left_alone(make):
    resolver = make()
    if isinstance(resolver, CAGrad):
        resolver = CAGrad(rescale=2, average=resolver.average)  # what undoes d = (1 + c) g, see below
    for _ in range(3):
        assert_close(resolver.resolve(conflict([[3.0, -4.0]])).coefficients, [[1]], tolerance=1e-12)


@pytest.mark.parametrize(("rescale", "length"), [(0, 1.5), (1, 1.5 / 1.25), (2, 1.0)])
def test_cagrad_of_one_task_is_rescaled_only(rescale, length):
    """By definition d = (1 + c) g; see `rescale`."""
    assert_close(resolved(CAGrad(0.5, rescale), [[3, -4]]), [3 * length, -4 * length])


def test_one_task_is_not_capped():
    """With one task nothing is tracked and nothing resolved, as in the published code."""
    assert_close(resolved(GCond(norm_cap=1.0), [[3.0, -4.0]]), [3, -4])


def test_linear_is_the_sum():
    assert_close(resolved(Linear(), J_BASE), [2, 2, 2])


@pytest.mark.parametrize("make", [PCGrad, GCond, lambda: GCond(smooth=False), lambda: GCond(dominance_window=1)])
def test_without_conflict_the_update_is_the_sum(make):
    resolver = make()
    for seed in range(3):
        rows = np.abs(random_rows(seed, 4, 7))
        assert_close(resolver.resolve(conflict(rows)).coefficients, np.eye(4))


@pytest.mark.parametrize("make", [lambda: CAGrad(0.5), lambda: GCond(norm_ema_bias_correction=True)])
def test_update_does_not_depend_on_the_order_of_tasks_nor_on_the_unit(make):
    before, rows = random_rows(5, 4, 6) + 3, random_rows(6, 4, 6)
    order = [2, 0, 3, 1]

    def second_update(scale, permutation):
        resolver = make()
        resolver.resolve(conflict(scale * before[permutation]))
        return resolved(resolver, scale * rows[permutation], previous=scale * before[permutation])

    expected = second_update(1.0, [0, 1, 2, 3])
    assert float((expected - matrix(rows).sum(0)).norm()) > 0.1
    assert_close(second_update(1.0, order), expected, tolerance=1e-6)
    for scale in (1e-8, 1e9):
        assert_close(second_update(scale, [0, 1, 2, 3]) / scale, expected, tolerance=1e-6)


# PCGrad


@pytest.mark.oracle("pcgrad", "TorchJD for two tasks")
@pytest.mark.parametrize("seed", range(20))
def test_pcgrad_of_two_tasks_is_torchjd_s(seed):
    rows = random_rows(seed, 2, 5)
    rows[1] -= 0.7 * rows[0]
    assert_close(resolved(PCGrad(), rows), aggregation.PCGrad()(matrix(rows)))


def test_pcgrad_published_value():
    """TorchJD, tests/unit/aggregation/test_values.py."""
    assert_close(resolved(PCGrad(), J_BASE), [0.5848, 3.8012, 3.8012], tolerance=1e-4)


@pytest.mark.oracle("pcgrad", "vector-space twin in every order")
def test_pcgrad_takes_every_order_and_no_other():
    """Three tasks: each meets the other two in one of two orders, so there are eight results."""
    rows = np.array([[1, 0, 0.2], [-1, 1, 0.1], [1, -2, -0.5]])
    orders = product(*[[(a, b), (b, a)] for a, b in ((1, 2), (0, 2), (0, 1))])
    expected = {tuple(np.round(reference_pcgrad([[row] for row in rows], order)[0], 9)) for order in orders}
    found = {tuple(np.round(resolved(PCGrad(), rows, seed=seed).numpy(), 9)) for seed in range(60)}
    assert len(expected) >= 4
    assert found == expected


@pytest.mark.parametrize("seed", range(5))
def test_pcgrad_projects_each_task_in_some_order(seed):
    """Five tasks: each row of coefficients is the twin's projected gradient for one of the 24 orders."""
    rows = random_rows(seed, 5, 3)
    found = PCGrad().resolve(conflict(rows, seed=seed)).coefficients.numpy() @ rows
    for i, row in enumerate(rows):
        others = [j for j in range(5) if j != i]
        untouched = rows[others].sum(0)
        choices = [
            reference_pcgrad([[g] for g in rows], [order if t == i else () for t in range(5)])[0] - untouched
            for order in permutations(others)
        ]
        assert min(np.abs(found[i] - choice).max() for choice in choices) < 1e-9 * np.linalg.norm(row)


# CAGrad


@pytest.mark.parametrize("c", [0.2, 0.5, 0.9])
@pytest.mark.parametrize("seed", range(12))
def test_cagrad_is_torchjd_s(c, seed):
    """To the precision of TorchJD's interior-point solver."""
    m = 2 + seed % 4
    rows = random_rows(seed, m, 3 + seed)
    if seed % 3 == 0:
        rows[-1] = -0.5 * rows[0] + 0.1 * rows[-1]
    assert_close(resolved(CAGrad(c, rescale=0), rows), aggregation.CAGrad(c=c)(matrix(rows)), tolerance=1e-3)


@pytest.mark.parametrize(("rescale", "divisor"), [(0, 1.0), (1, 1.25), (2, 1.5)])
def test_cagrad_published_value(rescale, divisor):
    """TorchJD, tests/unit/aggregation/test_values.py; rescaled as in the authors' code."""
    expected = matrix([0.1835, 1.2041, 1.2041]) / divisor
    assert_close(resolved(CAGrad(0.5, rescale), J_BASE), expected, tolerance=1e-4)


@pytest.mark.parametrize(("average", "expected"), [("mean", [1, 1, 1]), ("sum", [2, 2, 2])])
def test_cagrad_without_radius_is_the_average(average, expected):
    assert_close(resolved(CAGrad(0.0, average=average), J_BASE), expected)


@pytest.mark.parametrize("average", ["mean", "sum"])
@pytest.mark.parametrize("seed", range(6))
def test_cagrad_is_the_best_direction_in_its_ball(average, seed):
    """The primal problem of the paper: max over ||d - g_0|| <= c ||g_0|| of min_i <g_i, d>."""
    c = 0.6
    rows = random_rows(seed, 2 + seed % 4, 4) * [[1.0], [3.0], [0.3], [1.0], [1.0]][: 2 + seed % 4]
    centre = rows.mean(0) if average == "mean" else rows.sum(0)
    radius = c * np.linalg.norm(centre)
    found = resolved(CAGrad(c, rescale=0, average=average), rows).numpy()
    assert np.linalg.norm(found - centre) <= radius * (1 + 1e-9)

    random = np.random.default_rng(100 + seed)
    steps = np.concatenate(
        [random.standard_normal((20_000, 4)), found - centre + 0.02 * random.standard_normal((20_000, 4))]
    )
    others = centre + radius * steps / np.linalg.norm(steps, axis=1, keepdims=True)
    worst = (others @ rows.T).min(axis=1)
    scale = np.linalg.norm(rows, axis=1).max() * np.linalg.norm(centre)
    assert (rows @ found).min() >= worst.max() - 1e-6 * scale
    assert (rows @ found).min() > worst[:100].max()


@pytest.mark.parametrize("seed", range(10))
def test_cagrad_adds_no_rounding_noise_where_the_worst_direction_vanishes(seed):
    """Two opposite gradients and one at a right angle: w* = (.5, .5, 0), g_w* = 0, and the average is optimal."""
    axes, _ = np.linalg.qr(random_rows(seed, 5, 5))
    rows = np.array([[3.0, 0], [-3.0, 0], [0, 0.7 + seed]]) @ axes[:2]
    assert_close(resolved(CAGrad(0.5, rescale=0), rows), rows.mean(0))


# GradNorm


@pytest.mark.oracle("gradnorm", "vector-space twin")
@pytest.mark.parametrize("restore", [False, True])
def test_gradnorm_is_the_twin(restore):
    random = np.random.default_rng(0)
    lambdas = np.array([0.85, 0.15, 2.0])
    fast, twin = GradNorm(alpha=1.5, lr=0.05, group="head"), ReferenceGradNorm(3, alpha=1.5, lr=0.05)
    for step in range(40):
        losses = random.uniform(0.3, 1.5, 3)
        rows = random.standard_normal((3, 6))
        head = rows[:, :2]
        expected = twin.step(losses, [[row] for row in rows], [[row] for row in head])
        if restore and step == 15:
            state = fast.state_dict()
            fast = GradNorm(alpha=1.5, lr=0.05, group="head")
            fast.load_state_dict(state)
        weighted = lambdas[:, None] * rows
        seen = conflict(weighted, losses=losses, lambdas=lambdas, group=lambdas[:, None] * head)
        resolution = fast.resolve(seen)
        assert_close(resolution.weights @ matrix(weighted), expected[0])
        assert_close(resolution.exclusive, resolution.weights)
        assert resolution.metrics["gradnorm/lifted"] == 0
    assert np.abs(twin.weights - 1).max() > 0.1


def test_gradnorm_counts_the_weights_that_it_lifts():
    """By hand: Adam's first step is lr in size, so a weight of 1 becomes -1 and is lifted to .001; then rescaled."""
    fast = GradNorm(lr=2.0)
    first = fast.resolve(conflict([[3, 0], [0, 1]]))
    assert (first.metrics["gradnorm/weight/t0"], first.metrics["gradnorm/lifted"]) == (1.0, 1.0)
    second = fast.resolve(conflict([[3, 0], [0, 1]]))
    assert_close(second.weights, np.array([0.001, 3]) * 2 / 3.001, tolerance=1e-6)


def test_gradnorm_needs_positive_first_losses():
    with pytest.raises(ValueError, match="first losses"):
        GradNorm().resolve(conflict(J_BASE, losses=[1.0, 0.0]))


# GCond


@pytest.mark.parametrize("cosine", [-1.0, -0.95, -0.8, -0.7, -0.6, -0.501, -0.5, -0.3, -0.01])
@pytest.mark.parametrize("power", [1.0, 2.0, 3.5])
def test_effective_angle_is_equation_4(cosine, power):
    assert GCond(remap_power=power).effective_angle(cosine) == pytest.approx(
        effective_angle(cosine, (-0.8, -0.5, 0.0), power), abs=1e-14
    )


@pytest.mark.parametrize(("threshold", "angle"), [(-0.8, pi), (-0.5, pi / 2), (0.0, 0.0)])
def test_effective_angle_is_continuous_at_the_thresholds(threshold, angle):
    gcond = GCond()
    assert gcond.effective_angle(threshold - 1e-9) == pytest.approx(angle, abs=1e-6)
    assert gcond.effective_angle(min(threshold + 1e-9, 0.0)) == pytest.approx(angle, abs=1e-6)


@pytest.mark.parametrize(
    ("cosine", "zone"), [(-0.8, "critical"), (-0.799, "main"), (-0.501, "main"), (-0.5, "weak"), (-1e-6, "weak")]
)
def test_zones_at_their_boundaries(cosine, zone):
    assert GCond().zone(cosine) == zone


def test_weak_conflict_of_equal_norms_overshoots_or_stays():
    """By hand: one symmetric projection of strength s turns a dot product c into c (1 - 2 s + s^2 c^2)."""
    for cosine, dot, iterations in ((-0.35, 0.24, 1), (-0.1, -0.038, 3)):
        strength = sin(pi / 2 * -cosine / 0.5)
        rows = matrix([[1, 0], [cosine, (1 - cosine**2) ** 0.5]])
        one = GCond(projection_max_iters=1).resolve(conflict(rows)).coefficients @ rows
        assert float(one[0] @ one[1]) == pytest.approx(cosine * (1 - 2 * strength + strength**2 * cosine**2), abs=1e-12)
        assert float(one[0] @ one[1]) == pytest.approx(dot, abs=5e-3)
        assert GCond().resolve(conflict(rows)).metrics["zone/weak"] == iterations


def test_gcond_published_value():
    """METHODS: task 1 is stronger and wins a critical conflict (cosine -22 / sqrt(18 * 38))."""
    resolution = GCond().resolve(conflict(J_BASE))
    assert_close(resolution.weights @ matrix(J_BASE), np.array([104, 49, 49]) / 19)
    assert (resolution.metrics["wins/t1"], resolution.metrics["zone/critical"]) == (1, 1)
    assert resolution.metrics["gcond/min_cosine_as_published"] == pytest.approx(-22 / sqrt(18 * 38))


def test_pair_made_orthogonal_is_not_resolved_again():
    """The conflict margin: no phantom iterations, whatever the rounding."""
    for seed in range(50):
        rows = random_rows(seed, 2, 30)
        rows[1] -= 3 * rows[0]
        metrics = GCond(projection_max_iters=5).resolve(conflict(rows)).metrics
        assert metrics["zone/critical"] + metrics["zone/main"] + metrics["zone/weak"] == 1


def test_first_task_wins_a_tie_of_scores_and_first_pair_a_tie_of_cosines():
    """By hand: equal norms; then cosines of -1 / sqrt(2) for tasks (0, 1) and (0, 2), of which the longer one wins."""
    assert GCond().resolve(conflict([[-3, 4], [3, -4]])).metrics["wins/t0"] == 1
    tie = [[1, 0, 0], [-1, 1, 0], [-1, 0, 1]]
    assert GCond(projection_max_iters=1).resolve(conflict(tie)).metrics["wins/t1"] == 1


@pytest.mark.parametrize("restore", [False, True])
def test_dominant_task_loses_its_next_conflict(restore):
    """By hand: task 1 is always the stronger one; the cosine is critical, so each step is one win."""
    wins = []
    gcond = GCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0))
    for _ in range(7):
        wins.append(gcond.resolve(conflict(J_BASE)).metrics["wins/t1"])
        if restore:
            state = gcond.state_dict()
            gcond = GCond(dominance_window=2, tie_breaking_weights=(0.0, 1.0))
            gcond.load_state_dict(state)
    assert wins == [1, 1, 0, 1, 1, 0, 1]


def test_norm_cap_clips_each_gradient_and_not_the_norm_average():
    gcond = GCond(norm_cap=1.0, norm_ema_beta=0.5)
    assert_close(resolved(gcond, [[3, 4], [0.5, 0]]), [1.1, 0.8])
    assert_close(gcond.state_dict()["norm_ema"], [3.0, 0.75])


@pytest.mark.parametrize(
    ("resolver", "argument"),
    [
        (lambda: GCond(thresholds=(-0.5, -0.8, 0.0)), "thresholds"),
        (lambda: GCond(thresholds=(-0.8, -0.5, -0.5)), "thresholds"),
        (lambda: GCond(thresholds=(-1.1, -0.5, 0.0)), "thresholds"),
        (lambda: GCond(projection_max_iters=0), "projection_max_iters"),
        (lambda: GCond(remap_power=0.0), "remap_power"),
        (lambda: GCond(tie_breaking_weights=(0.0, 0.0)), "tie_breaking_weights"),
        (lambda: GCond(norm_ema_beta=1.0), "norm_ema_beta"),
        (lambda: GCond(norm_ema_beta=-0.1), "norm_ema_beta"),
        (lambda: GCond(dominance_window=-1), "dominance_window"),
        (lambda: GCond(norm_cap=0.0), "norm_cap"),
        (lambda: GCond(stability_reference="previous"), "stability_reference"),
        (lambda: GCond(conflict_margin=-1.0), "conflict_margin"),
        (lambda: GCond(vanishing="never"), "vanishing"),
        (lambda: CAGrad(c=1.0), "c"),
        (lambda: CAGrad(c=-0.1), "c"),
        (lambda: CAGrad(rescale=3), "rescale"),
        (lambda: CAGrad(average="median"), "average"),
        (lambda: GradNorm(alpha=-1.0), "alpha"),
        (lambda: GradNorm(lr=0.0), "lr"),
        (lambda: GCond(thresholds=(nan, -0.5, 0.0)), "thresholds"),
        (lambda: GCond(remap_power=nan), "remap_power"),
        (lambda: GCond(tie_breaking_weights=(nan, 0.2)), "tie_breaking_weights"),
        (lambda: GCond(tie_breaking_weights=(0.8, nan)), "tie_breaking_weights"),
        (lambda: GCond(tie_breaking_weights=(0.8, inf)), "tie_breaking_weights"),
        (lambda: GCond(norm_cap=nan), "norm_cap"),
        (lambda: GCond(conflict_margin=nan), "conflict_margin"),
        (lambda: CAGrad(c=nan), "c"),
        (lambda: GradNorm(alpha=nan), "alpha"),
        (lambda: GradNorm(lr=inf), "lr"),
    ],
)
def test_setting_out_of_range_is_named(resolver, argument):
    with pytest.raises(ValueError, match=f"`{argument}`: expected .*, found "):
        resolver()
