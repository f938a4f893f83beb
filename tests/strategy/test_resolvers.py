"""PCGrad, CAGrad and GradNorm against TorchJD, against the vector-space twins, and by their optimality conditions."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from strategy.problems import assert_close, conflict, matrix, random_rows, resolved
from torchjd import aggregation

from gcond.strategy import CAGrad, GradNorm, PCGrad

J_BASE = [[-4, 1, 1], [6, 1, 1]]


# PCGrad


@pytest.mark.oracle("pcgrad", "TorchJD for two tasks")
def test_pcgrad_of_two_tasks_is_torchjd_s():
    for seed in range(20):
        rows = random_rows(seed, 2, 5)
        rows[1] -= 0.7 * rows[0]
        assert_close(resolved(PCGrad(), rows), aggregation.PCGrad()(matrix(rows)))


def twin_of_pcgrad(gradients, orders):
    """Yu et al. 2020, algorithm 1, summed; orders[i] is the order in which task i meets the other tasks."""
    projected = []
    for gradient, order in zip(gradients, orders, strict=True):
        for j in order:
            if gradient @ gradients[j] < 0:
                gradient = gradient - (gradient @ gradients[j]) / (gradients[j] @ gradients[j]) * gradients[j]
        projected.append(gradient)
    return np.sum(projected, axis=0)


@pytest.mark.oracle("pcgrad", "vector-space twin in every order")
def test_pcgrad_takes_every_order_and_no_other():
    """Three tasks: each meets the other two in one of two orders, so there are eight results."""
    rows = np.array([[1, 0, 0.2], [-1, 1, 0.1], [1, -2, -0.5]])
    orders = product(*[[(a, b), (b, a)] for a, b in ((1, 2), (0, 2), (0, 1))])
    expected = {tuple(np.round(twin_of_pcgrad(rows, order), 9)) for order in orders}
    found = {tuple(np.round(resolved(PCGrad(), rows, seed=seed).numpy(), 9)) for seed in range(60)}
    assert len(expected) >= 4
    assert found == expected


# CAGrad


def test_cagrad_is_torchjd_s():
    """To the precision of TorchJD's interior-point solver."""
    for seed in range(12):
        rows = random_rows(seed, 2 + seed % 4, 3 + seed)
        if seed % 3 == 0:
            rows[-1] = -0.5 * rows[0] + 0.1 * rows[-1]
        for c in (0.2, 0.5, 0.9):
            found = resolved(CAGrad(c, 0), rows)
            assert_close(found, aggregation.CAGrad(c=c)(matrix(rows)), tolerance=1e-3)
            assert_close(resolved(CAGrad(c, 0, average="sum"), rows), len(rows) * found, 1e-5)


def test_cagrad_published_value():
    """TorchJD, tests/unit/aggregation/test_values.py; rescaled as in the authors' code. One task: d = (1 + c) g."""
    for rescale, divisor in ((0, 1.0), (1, 1.25), (2, 1.5)):
        expected = matrix([0.1835, 1.2041, 1.2041]) / divisor
        assert_close(resolved(CAGrad(0.5, rescale), J_BASE), expected, tolerance=1e-4)
        assert_close(resolved(CAGrad(0.5, rescale), [[3, -4]]), matrix([3, -4]) * 1.5 / divisor)
    assert_close(resolved(CAGrad(0.0), J_BASE), [1, 1, 1])
    assert_close(resolved(CAGrad(0.0, average="sum"), J_BASE), [2, 2, 2])


def test_cagrad_adds_no_rounding_noise_where_the_worst_direction_vanishes():
    """Two opposite gradients and one at a right angle: w* = (.5, .5, 0), g_w* = 0, and the average is optimal."""
    for seed in range(10):
        axes, _ = np.linalg.qr(random_rows(seed, 5, 5))
        rows = np.array([[3.0, 0], [-3.0, 0], [0, 0.7 + seed]]) @ axes[:2]
        assert_close(resolved(CAGrad(0.5, rescale=0), rows), rows.mean(0))


# GradNorm


class TwinOfGradNorm:
    """Chen et al. 2018: weights w [m] from 1, Adam (0.9, 0.999, 1e-8), floor, then renormalised to sum m."""

    def __init__(self, m: int, alpha: float, lr: float, floor: float = 1e-3) -> None:
        self.weights, self.first, self.second, self.steps = np.ones(m), np.zeros(m), np.zeros(m), 0
        self.alpha, self.lr, self.floor = alpha, lr, floor
        self.initial_losses: Any = None

    def step(self, losses, gradients, shared):
        """Sum of w_i g_i with w as it stood before this step's update.

        gradients and shared are those of the unweighted losses: of all parameters, and of the shared layer W alone.
        """
        total = self.weights @ gradients
        self.initial_losses = losses if self.initial_losses is None else self.initial_losses
        norms = np.linalg.norm(shared, axis=1)
        progress = losses / self.initial_losses
        target = (self.weights * norms).mean() * (progress / progress.mean()) ** self.alpha
        slope = np.sign(self.weights * norms - target) * norms
        self.steps += 1
        self.first = 0.9 * self.first + 0.1 * slope
        self.second = 0.999 * self.second + 0.001 * slope**2
        first, second = self.first / (1 - 0.9**self.steps), self.second / (1 - 0.999**self.steps)
        self.weights = np.maximum(self.weights - self.lr * first / (np.sqrt(second) + 1e-8), self.floor)
        self.weights = self.weights * len(self.weights) / self.weights.sum()
        return total


@pytest.mark.oracle("gradnorm", "vector-space twin")
def test_gradnorm_is_the_twin():
    random = np.random.default_rng(0)
    lambdas = np.array([0.85, 0.15, 2.0])
    fast, twin = GradNorm(alpha=1.5, lr=0.05, group="head"), TwinOfGradNorm(3, alpha=1.5, lr=0.05)
    for _ in range(40):
        losses = random.uniform(0.3, 1.5, 3)
        rows = random.standard_normal((3, 6))
        head = rows[:, :2]
        expected = twin.step(losses, rows, head)
        weighted = lambdas[:, None] * rows
        seen = conflict(weighted, losses=losses, lambdas=lambdas, group=lambdas[:, None] * head)
        resolution = fast.resolve(seen)
        assert_close(resolution.weights @ matrix(weighted), expected)
        assert_close(resolution.exclusive, resolution.weights)
        assert resolution.metrics["gradnorm/lifted"] == 0
    assert np.abs(twin.weights - 1).max() > 0.1


def test_gradnorm_counts_the_weights_that_it_lifts():
    """By hand: Adam's first step is lr in size, so a weight of 1 becomes -1 and is lifted to .001; then rescaled."""
    fast, rows = GradNorm(lr=2.0), [[3, 0], [0, 1]]
    first = fast.resolve(conflict(rows, group=rows))
    assert (first.metrics["gradnorm/weight/t0"], first.metrics["gradnorm/lifted"]) == (1.0, 1.0)
    second = fast.resolve(conflict(rows, group=rows))
    assert_close(second.weights, np.array([0.001, 3]) * 2 / 3.001, tolerance=1e-6)
