"""The noisy quadratic: its gradients by autograd and by the package's own estimators, its predictions by simulation."""

import math

import numpy as np
import pytest
import torch

from gcond.strategy import Sequential, Stochastic
from gcond.strategy.estimate import Window
from gcond.strategy.gradients import TaskGradients
from gcond.toy import noise
from gcond.toy.noise import NoisyQuadratic, mean_noise


def problem(**changes):
    return NoisyQuadratic(**{"cosine": -0.4, "snr": 0.1, "rho": 0.1, "tau": 0.3, "dimensions": 16, **changes})


def test_true_gradients_have_unit_norm_and_the_cosine():
    gradients = problem().true_gradients()
    np.testing.assert_allclose(gradients @ gradients.T, [[1, -0.4], [-0.4, 1]], atol=1e-12)


@pytest.mark.parametrize(("name", "estimator"), [("sequential", Sequential(6)), ("stochastic", Stochastic(6))])
def test_the_estimators_of_the_package_accumulate_the_same_gradients(name, estimator):
    """(theta - u_i)^T A_i (theta - u_i) / 2 + sigma xi . theta, differentiated by autograd, window of 6."""
    quadratic = problem()
    noise = quadratic.noise(6, np.random.default_rng(0))
    theta = torch.zeros(16, dtype=torch.float64, requires_grad=True)
    curvatures, optima = torch.from_numpy(quadratic.curvatures), torch.from_numpy(quadratic.optima)

    def losses(batch, names):
        found = {}
        for task in names:
            i = int(task)
            away = theta - optima[i]
            found[task] = 0.5 * away @ (curvatures[i] * away) + torch.from_numpy(batch[i]) @ theta
        return found

    gradients = TaskGradients([theta], 2)
    window = Window(estimator, gradients, {"0": 1.0, "1": 1.0}, len(noise))
    for batch in noise:
        window.open_micro_batch()
        window.take(batch, losses)
        window.close_micro_batch()
    expected = quadratic.true_gradients() + mean_noise(noise, name)
    np.testing.assert_allclose(gradients.rows.numpy(), expected, atol=1e-12)


@pytest.mark.parametrize("estimator", ["sequential", "stochastic"])
@pytest.mark.parametrize(("rho", "tau"), [(0.0, 0.0), (0.0, 0.5), (0.2, 0.0), (0.2, 0.5)])
def test_variance_and_covariance_are_as_predicted(estimator, rho, tau):
    """20 standard errors would be a bug; 4 are allowed. By hand, K = 8: (1 + 7 rho) / 8, or (1 + 3 rho) / 4."""
    quadratic = problem(rho=rho, tau=tau)
    errors = quadratic.accumulated_noise(estimator, 8, 3000, np.random.default_rng(1)) / quadratic.sigma
    by_hand = (1 + 7 * rho) / 8 if estimator == "sequential" else (1 + 3 * rho) / 4
    assert quadratic.variance(estimator, 8) / quadratic.sigma**2 == pytest.approx(by_hand)
    squares = (errors**2).mean((1, 2))
    products = (errors[:, 0] * errors[:, 1]).mean(1)
    for samples, expected in ((squares, by_hand), (products, quadratic.covariance(estimator, 8) / quadratic.sigma**2)):
        assert abs(samples.mean() - expected) < 4 * samples.std() / math.sqrt(len(samples))


def test_rows_of_the_study_agree_with_their_predictions():
    rows = list(noise.measure(300, (2, 8)))
    assert len(rows) == 3 * 2 * 2 * len(noise.COSINES)
    for row in rows:
        assert float(row["variance"]) == pytest.approx(float(row["variance_theory"]), rel=0.06)
        assert float(row["variance_low"]) < float(row["variance"]) < float(row["variance_high"])
        assert abs(float(row["wrong"]) - float(row["wrong_theory"])) < 0.12
