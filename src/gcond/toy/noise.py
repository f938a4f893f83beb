"""Two quadratic tasks with known conflict and known noise: how far accumulation makes conflict signs reliable.

Letters: K micro-batches in a window, n of them for each task, d dimensions, R trials.
Task i's loss on micro-batch b is (theta - u_i)^T A_i (theta - u_i) / 2 + sigma xi_ib . theta, hence its gradient
A_i (theta - u_i) + sigma xi_ib. With N(0, 1) draws that are all independent

    xi_ib = sqrt(rho) (sqrt(tau) s + sqrt(1 - tau) s_i) + sqrt(1 - rho) (sqrt(tau) z_b + sqrt(1 - tau) z_ib)

so rho is the correlation between micro-batches, and tau the correlation of the two tasks on the same samples.
Sequential: both tasks see all K micro-batches, n = K. Stochastic: task 1 sees the first half, task 2 the second,
n = K / 2, of an even K.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest
from tqdm import tqdm

Array = NDArray[np.float64]

WINDOWS = (1, 2, 4, 8, 16, 24, 32, 64)  # K; 24 is the paper's
COSINES = (-0.5, -0.2, 0.2)
RHOS = (0.0, 0.02)
KINDS = (("sequential", 0.0), ("sequential", 0.3), ("stochastic", 0.3))  # estimator, tau
SNR = 0.05
TRIALS = 2000
RESAMPLES = 400


@dataclass(frozen=True)
class NoisyQuadratic:
    """Both tasks at theta = 0, where their gradients have norm 1 and the given cosine.

    Args:
        cosine: between the true gradients; negative is a conflict.
        snr: squared norm of a true gradient over that of a micro-batch's noise, 1 / (sigma^2 d).
        rho, tau: as above, in [0, 1].
        dimensions: d.
    """

    cosine: float
    snr: float
    rho: float
    tau: float
    dimensions: int = 64

    @property
    def sigma(self) -> float:
        return 1 / math.sqrt(self.snr * self.dimensions)

    @property
    def curvatures(self) -> Array:
        """Diagonals of A_1 and A_2 [2, d]; the two tasks disagree on which directions are steep."""
        rising = np.linspace(0.5, 2.0, self.dimensions)
        return np.stack([rising, rising[::-1]])

    @property
    def optima(self) -> Array:
        """u_1 and u_2 [2, d], so that the gradients at theta = 0 have norm 1 and the wanted cosine."""
        wanted = np.zeros((2, self.dimensions))
        wanted[0, 0] = 1.0
        wanted[1, :2] = self.cosine, math.sqrt(1 - self.cosine**2)
        return -wanted / self.curvatures

    def true_gradients(self) -> Array:
        """[2, d] at theta = 0."""
        return -self.curvatures * self.optima

    def noise(self, micro_batches: int, random: np.random.Generator) -> Array:
        """sigma xi for one window [K, 2, d]."""
        shapes = ((1, 1), (1, 2), (micro_batches, 1), (micro_batches, 2))
        window, window_task, batch, batch_task = (random.standard_normal((*s, self.dimensions)) for s in shapes)
        own, common = math.sqrt(1 - self.tau), math.sqrt(self.tau)
        shared = math.sqrt(self.rho) * (common * window + own * window_task)
        return self.sigma * (shared + math.sqrt(1 - self.rho) * (common * batch + own * batch_task))

    def accumulated_noise(self, estimator: str, micro_batches: int, trials: int, random: np.random.Generator) -> Array:
        """The error of both accumulated gradients in R windows [R, 2, d]."""
        return np.stack([mean_noise(self.noise(micro_batches, random), estimator) for _ in range(trials)])

    def variance(self, estimator: str, micro_batches: int) -> float:
        """The variance of a coordinate of an accumulated gradient: sigma^2 (1 + (n - 1) rho) / n."""
        n = micro_batches if estimator == "sequential" else micro_batches // 2
        return self.sigma**2 * (1 + (n - 1) * self.rho) / n

    def covariance(self, estimator: str, micro_batches: int) -> float:
        """The covariance of the two accumulated gradients, per coordinate, which comes from shared samples."""
        if estimator == "sequential":
            return self.tau * self.variance(estimator, micro_batches)
        return self.tau * self.rho * self.sigma**2

    def wrong_sign_probability(self, estimator: str, micro_batches: int) -> float:
        """The probability that the accumulated gradients' inner product has the wrong sign, by normal approximation.

        With errors of variance v and covariance w per coordinate, the product has mean cos + d w and variance
        2 v + 2 w cos + d (v^2 + w^2).
        """
        v, w = self.variance(estimator, micro_batches), self.covariance(estimator, micro_batches)
        mean = self.cosine + self.dimensions * w
        spread = math.sqrt(2 * v + 2 * w * self.cosine + self.dimensions * (v**2 + w**2))
        return NormalDist().cdf(-math.copysign(1, self.cosine) * mean / spread)


def mean_noise(noise: Array, estimator: str) -> Array:
    """Each task's mean [2, d] over the micro-batches that serve it, of [K, 2, d]."""
    if estimator == "sequential":
        return noise.mean(0)
    half = len(noise) // 2
    return np.stack([noise[:half, 0].mean(0), noise[half:, 1].mean(0)])


def measure(trials: int = TRIALS, windows: tuple[int, ...] = WINDOWS) -> Iterator[dict[str, object]]:
    """Rows of noise.csv, measured and predicted, with 95 % intervals: Wilson's (1927) of a probability, a bootstrap
    over trials of the variance, which is that of a coordinate over sigma^2, so that 1 is a micro-batch's own."""
    cells = [
        (*kind, rho, micro_batches)
        for kind, rho, micro_batches in product(KINDS, RHOS, windows)
        if kind[0] == "sequential" or micro_batches % 2 == 0
    ]
    for index, (estimator, tau, rho, micro_batches) in enumerate(tqdm(cells, desc="noise", unit="cell", disable=None)):
        random = np.random.default_rng([0, index])
        errors = NoisyQuadratic(COSINES[0], SNR, rho, tau).accumulated_noise(estimator, micro_batches, trials, random)
        for cosine in COSINES:
            problem = NoisyQuadratic(cosine, SNR, rho, tau)
            products = (problem.true_gradients() + errors).prod(1).sum(1)
            wrong = int((np.sign(products) != np.sign(cosine)).sum())
            interval = binomtest(wrong, trials).proportion_ci(method="wilson")
            squares = ((errors / problem.sigma) ** 2).mean((1, 2))
            means = squares[random.integers(trials, size=(RESAMPLES, trials))].mean(1)
            numbers = {
                "variance": squares.mean(),
                "variance_low": np.quantile(means, 0.025),
                "variance_high": np.quantile(means, 0.975),
                "variance_theory": problem.variance(estimator, micro_batches) / problem.sigma**2,
                "wrong": wrong / trials,
                "wrong_low": interval.low,
                "wrong_high": interval.high,
                "wrong_theory": problem.wrong_sign_probability(estimator, micro_batches),
            }
            about = {"estimator": estimator, "rho": rho, "tau": tau, "snr": SNR, "dimensions": problem.dimensions}
            about |= {"cosine": cosine, "micro_batches": micro_batches, "trials": trials}
            yield about | {name: f"{number:.5g}" for name, number in numbers.items()}
