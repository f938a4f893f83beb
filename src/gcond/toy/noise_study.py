"""Measured and predicted variance and wrong conflict signs of accumulated gradients -> rows of noise.csv."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import product

import numpy as np
from tqdm import tqdm

from gcond.toy.noisy_quadratic import Array, NoisyQuadratic

WINDOWS = (1, 2, 4, 8, 16, 24, 32, 64)  # K; 24 is the paper's
COSINES = (-0.5, -0.2, 0.2)
RHOS = (0.0, 0.02)
KINDS = (("sequential", 0.0), ("sequential", 0.3), ("stochastic", 0.3))  # estimator, tau
SNR = 0.05
TRIALS = 2000
RESAMPLES = 400
Z95 = 1.959964
COLUMNS = (
    "estimator", "rho", "tau", "snr", "dimensions", "cosine", "micro_batches", "trials",
    "variance", "variance_low", "variance_high", "variance_theory",
    "wrong", "wrong_low", "wrong_high", "wrong_theory",
)  # fmt: skip


def measure(trials: int = TRIALS, windows: tuple[int, ...] = WINDOWS, seed: int = 0) -> Iterator[list[object]]:
    """Rows under COLUMNS. `variance` is that of a coordinate over sigma^2, so that 1 is a micro-batch's own."""
    cells = [
        (*kind, rho, micro_batches)
        for kind, rho, micro_batches in product(KINDS, RHOS, windows)
        if kind[0] == "sequential" or micro_batches % 2 == 0
    ]
    for index, (estimator, tau, rho, micro_batches) in enumerate(tqdm(cells, desc="noise", unit="cell", disable=None)):
        random = np.random.default_rng([seed, index])
        errors = NoisyQuadratic(COSINES[0], SNR, rho, tau).accumulated_noise(estimator, micro_batches, trials, random)
        for cosine in COSINES:
            problem = NoisyQuadratic(cosine, SNR, rho, tau)
            accumulated = problem.true_gradients() + errors
            products = (accumulated[:, 0] * accumulated[:, 1]).sum(1)
            wrong = int((np.sign(products) != np.sign(cosine)).sum())
            yield [
                estimator, rho, tau, SNR, problem.dimensions, cosine, micro_batches, trials,
                *_rounded(*_variance(errors / problem.sigma, random)),
                *_rounded(problem.variance(estimator, micro_batches) / problem.sigma**2),
                *_rounded(wrong / trials, *wilson(wrong, trials)),
                *_rounded(problem.wrong_sign_probability(estimator, micro_batches)),
            ]  # fmt: skip


def wilson(hits: int, trials: int) -> tuple[float, float]:
    """95 % interval of a probability (Wilson 1927)."""
    share, square = hits / trials, Z95**2 / trials
    centre = (share + square / 2) / (1 + square)
    half = Z95 / (1 + square) * math.sqrt(share * (1 - share) / trials + square / (4 * trials))
    return max(0.0, centre - half), min(1.0, centre + half)


def _variance(errors: Array, random: np.random.Generator) -> tuple[float, float, float]:
    """Mean square of a coordinate (the mean is known to be 0) and its 95 % interval, by bootstrap over trials."""
    squares = (errors**2).mean((1, 2))
    means = squares[random.integers(len(squares), size=(RESAMPLES, len(squares)))].mean(1)
    return float(squares.mean()), *(float(q) for q in np.quantile(means, [0.025, 0.975]))


def _rounded(*values: float) -> list[str]:
    return [f"{value:.5g}" for value in values]
