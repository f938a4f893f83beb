"""The two-dimensional problem against the authors' formulas in torch, and its Pareto front against known optima."""

import numpy as np
import pytest
import torch
from scipy.optimize import minimize

from gcond.toy.problem import STARTS, distance_to_front, evaluate, front


def authors_losses(x: torch.Tensor) -> torch.Tensor:
    """(f_1, f_2) at x = (x_1, x_2), as the problem's authors wrote them (Cranial-XIX/CAGrad, toy.py), for autograd."""
    x1, x2 = x[0], x[1]
    f1 = torch.clamp((0.5 * (-x1 - 7) - torch.tanh(-x2)).abs(), min=5e-6).log() + 6
    f2 = torch.clamp((0.5 * (-x1 + 3) + torch.tanh(-x2) + 2).abs(), min=5e-6).log() + 6
    c1 = _clamp(torch.tanh(x2 * 0.5))
    c2 = _clamp(torch.tanh(-x2 * 0.5))
    q1 = ((-x1 + 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    q2 = ((-x1 - 7).pow(2) + 0.1 * (-x2 - 8).pow(2)) / 10 - 20
    return torch.stack([f1 * c1 + q1 * c2, f2 * c1 + q2 * c2])


def _clamp(x: torch.Tensor) -> torch.Tensor:
    """max(x, 0) that passes its gradient on at 0, as `torch.clamp` did when the problem was published."""
    return x * (x >= 0)


def test_losses_and_gradients_are_those_of_autograd():
    random = np.random.default_rng(0)
    for point in [*STARTS, (-7.0, 1e-9), (-5.0, 8.0), *random.uniform(-10, 10, (200, 2)).tolist()]:
        x = torch.tensor(point, dtype=torch.float64, requires_grad=True)
        expected = authors_losses(x)
        jacobian = torch.stack([torch.autograd.grad(f, x, retain_graph=True)[0] for f in expected])
        values, rows = evaluate(*point)
        np.testing.assert_allclose(values, expected.detach().numpy(), rtol=1e-12, atol=1e-12, err_msg=str(point))
        np.testing.assert_allclose(rows, jacobian.numpy(), rtol=1e-10, atol=1e-12, err_msg=str(point))


def test_front_holds_the_optima_of_every_weighted_sum():
    """Independent: scipy's minimiser of w f_1 + (1 - w) f_2, without gradients."""
    for weight in (0.05, 0.3, 0.5, 0.8):
        found = minimize(
            lambda x, w=weight: np.dot((w, 1 - w), evaluate(*x)[0]),
            (0.0, -7.0),
            method="Nelder-Mead",
            options={"xatol": 1e-9, "fatol": 1e-12},
        )
        assert found.x[0] == pytest.approx(7 * (2 * weight - 1), abs=1e-4)
        assert distance_to_front(*found.x) < 1e-4


def test_ends_and_middle_of_the_front_are_the_published_optima():
    curve = front(3)
    np.testing.assert_allclose(curve, [(-7, -8.43446), (0, -8.35511), (7, -8.43446)], atol=1e-5)
    np.testing.assert_allclose(evaluate(*curve[2])[0], (-19.98943, -0.39794), atol=1e-5)
    np.testing.assert_allclose(evaluate(*curve[1])[0], (-15.09164, -15.09164), atol=1e-5)


def test_distance_to_front():
    for point, distance in (((7.0, -8.43446 + 1), 1.0), ((10.0, -8.43446), 3.0), ((0.0, -8.35511), 0.0)):
        assert distance_to_front(*point) == pytest.approx(distance, abs=2e-3)
