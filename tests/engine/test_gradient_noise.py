"""The record of a probe, by hand and against the vectors that the Gram matrices are of."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch

from gcond.engine.gradient_noise import describe, window_sizes

PARTS = {"encoder": slice(0, 5), "head": slice(5, 12)}


def grams(vectors: np.ndarray, parts: dict[str, slice]) -> tuple[dict[str, torch.Tensor], dict[int, torch.Tensor]]:
    """Of `vectors` [n, m, P], as `describe` takes them."""
    n, m, _ = vectors.shape
    sums = vectors.reshape(2, n // 2, m, -1).sum(1).reshape(2 * m, -1)
    halves = {group: torch.from_numpy(sums[:, part] @ sums[:, part].T) for group, part in parts.items()}
    windows = {}
    for size in window_sizes(n):
        summed = vectors.reshape(n // size, size, m, -1).sum(1)
        windows[size] = torch.from_numpy(summed @ summed.transpose(0, 2, 1))
    return halves, windows


def test_windows_divide_and_are_several() -> None:
    assert {n: window_sizes(n) for n in (2, 4, 6, 8, 24)} == {
        2: [1],
        4: [1, 2],
        6: [1, 2],
        8: [1, 2, 4],
        24: [1, 2, 4, 8],
    }


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


@pytest.mark.parametrize(("n", "m"), [(2, 2), (8, 2), (12, 3), (24, 2), (4, 1)])
def test_the_record_is_that_of_the_vectors(n: int, m: int) -> None:
    random = np.random.default_rng(n + m)
    vectors = random.standard_normal((m, 12)) + random.standard_normal((n, m, 12))
    tasks = [f"t{place}" for place in range(m)]
    found = describe(tasks, n, *grams(vectors, PARTS))

    mean, first, second = vectors.mean(0), vectors[: n // 2].mean(0), vectors[n // 2 :].mean(0)
    pairs = list(itertools.combinations(range(m), 2))
    expected = {}
    for group, part in {"all": slice(None), **PARTS}.items():
        if pairs:
            expected[f"cosine/{group}"] = min(cosine(mean[i, part], mean[j, part]) for i, j in pairs)
            expected[f"cosine_disjoint/{group}"] = min(
                (cosine(first[i, part], second[j, part]) + cosine(second[i, part], first[j, part])) / 2
                for i, j in pairs
            )
        for place, task in enumerate(tasks):
            expected[f"self_cosine/{task}/{group}"] = cosine(first[place, part], second[place, part])
    for size in window_sizes(n):
        means = vectors.reshape(n // size, size, m, 12).mean(1)
        for place, task in enumerate(tasks):
            variance = means[:, place].var(0, ddof=1).sum()
            expected[f"noise/{task}/{size}"] = variance / (mean[place] @ mean[place])
        if pairs:
            signs = [np.sign(window[0] @ window[1]) for window in means]
            expected[f"sign_agreement/{size}"] = np.mean(np.array(signs) == np.sign(mean[0] @ mean[1]))
    expected |= {f"norm/{task}": np.linalg.norm(mean[place]) for place, task in enumerate(tasks)}
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_sampled_variance_is_unbiased() -> None:
    """Of means over K draws of P independent numbers with variance 9: 9 P / K, whatever the mean is."""
    random = np.random.default_rng(0)
    parameters, repeats = 50, 400
    variances: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(repeats):
        vectors = 0.5 + 3 * random.standard_normal((8, 1, parameters))
        found = describe(["a"], 8, *grams(vectors, {"one": slice(None)}))
        for size, values in variances.items():
            values.append(found[f"noise/a/{size}"] * found["norm/a"] ** 2)
    for size, values in variances.items():
        error = np.std(values) / math.sqrt(repeats)
        assert error < 0.02 * 9 * parameters / size
        assert np.mean(values) == pytest.approx(9 * parameters / size, abs=4 * error)


def test_what_vanishes_or_is_not_finite_is_nan() -> None:
    vectors = np.ones((4, 2, 3))
    vectors[:, 1] = 0
    found = describe(["a", "b"], 4, *grams(vectors, {"one": slice(None)}))
    undefined = {key for key, value in found.items() if math.isnan(value)}
    assert undefined == {
        *(f"{kind}/{group}" for kind in ("cosine", "cosine_disjoint", "self_cosine/b") for group in ("all", "one")),
        *(f"{kind}/{size}" for kind in ("noise/b", "sign_agreement") for size in (1, 2)),
    }
    vectors[2, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        found = describe(["a", "b"], 4, *grams(vectors, {"one": slice(None)}))
    assert {key for key, value in found.items() if not math.isnan(value)} == {"norm/b"}
