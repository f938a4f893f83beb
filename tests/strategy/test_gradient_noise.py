"""Statistics of task gradients, by hand and against the vectors that the Gram matrices are of."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gcond.engine.memory import LiveBytes
from gcond.strategy.flat import FlatParameters
from gcond.strategy.gradient_noise import (
    GradientRows,
    GradientSums,
    describe,
    estimates,
    rows_held,
    statistics,
    window_sizes,
)

TASKS = ["a", "b"]
Parts = Mapping[str, slice]


def grams(vectors: np.ndarray, parts: Parts) -> tuple[dict[str, Tensor], dict[int, Tensor]]:
    """Of `vectors` [n, m, P], as `describe` takes them."""
    n, m, _ = vectors.shape
    sums = vectors.reshape(2, n // 2, m, -1).sum(1).reshape(2 * m, -1)
    halves = {group: torch.from_numpy(sums[:, part] @ sums[:, part].T) for group, part in parts.items()}
    windows = {}
    for size in window_sizes(n):
        summed = vectors.reshape(n // size, size, m, -1).sum(1)
        windows[size] = torch.from_numpy(summed @ summed.transpose(0, 2, 1))
    return halves, windows


def gram_of_all(vectors: np.ndarray) -> Tensor:
    """[n, m, n, m], as `statistics` takes it."""
    return torch.from_numpy(np.einsum("amp,bkp->ambk", vectors, vectors))


def cosine(x: np.ndarray, y: np.ndarray) -> float:
    return float(x @ y / np.linalg.norm(x) / np.linalg.norm(y))


def described(vectors: np.ndarray, tasks: Sequence[str], parts: Parts, sizes: Sequence[int]) -> dict[str, float]:
    """What `describe` says, from the vectors [n, m, P] themselves."""
    n, m, _ = vectors.shape
    mean, first, second = vectors.mean(0), vectors[: n // 2].mean(0), vectors[n // 2 :].mean(0)
    pairs = list(itertools.combinations(range(m), 2))
    found = {f"norm/{task}": float(np.linalg.norm(mean[place])) for place, task in enumerate(tasks)}
    for group, part in {"all": slice(None), **parts}.items():
        if pairs:
            found[f"cosine/{group}"] = min(cosine(mean[i, part], mean[j, part]) for i, j in pairs)
            found[f"cosine_disjoint/{group}"] = min(
                (cosine(first[i, part], second[j, part]) + cosine(second[i, part], first[j, part])) / 2
                for i, j in pairs
            )
        for place, task in enumerate(tasks):
            found[f"self_cosine/{task}/{group}"] = cosine(first[place, part], second[place, part])
    for size in sizes:
        means = vectors.reshape(n // size, size, m, -1).mean(1)
        for place, task in enumerate(tasks):
            found[f"noise/{task}/{size}"] = means[:, place].var(0, ddof=1).sum() / (mean[place] @ mean[place])
        if pairs:
            signs = [np.sign(window[0] @ window[1]) == np.sign(mean[0] @ mean[1]) for window in means]
            found[f"sign_agreement/{size}"] = float(np.mean(signs))
    return found


def stated(vectors: np.ndarray, sizes: Sequence[int]) -> dict[str, float]:
    """What `statistics` says of two tasks, from the vectors [n, 2, P] themselves."""
    n = len(vectors)
    found = {name.removesuffix("/all"): value for name, value in described(vectors, TASKS, {}, sizes).items()}
    for size in sizes:
        windows = vectors.reshape(n // size, size, 2, -1).mean(1)
        for place, task in enumerate(TASKS):
            if size > 1:
                one, several = (each[:, place].var(axis=0, ddof=1).sum() for each in (vectors, windows))
                found[f"scaled_noise/{task}/{size}"] = size * several / one
        signs = [
            math.copysign(1, windows[i, 0] @ windows[j, 1]) == math.copysign(1, found["cosine_disjoint"])
            for i, j in itertools.permutations(range(len(windows)), 2)
        ]
        found[f"sign_agreement_disjoint/{size}"] = float(np.mean(signs))
    return found


def noisy(n: int, size: int, seed: int = 0) -> np.ndarray:
    """[n, 2, size]: two means in conflict, noise of each task and noise that both share."""
    random = np.random.default_rng(seed)
    means = random.standard_normal((2, size))
    means[1] -= 0.4 * means[0]
    return means + 1.5 * (random.standard_normal((n, 2, size)) + random.standard_normal((n, 1, size)))


def test_windows_divide_and_are_several() -> None:
    sizes = {2: [1], 4: [1, 2], 6: [1, 2], 8: [1, 2, 4], 24: [1, 2, 4, 8]}
    assert {n: window_sizes(n) for n in sizes} == sizes


@pytest.mark.parametrize(("n", "m"), [(2, 2), (12, 3), (24, 2), (4, 1)])
def test_the_record_is_that_of_the_vectors(n: int, m: int) -> None:
    random, parts = np.random.default_rng(n + m), {"encoder": slice(0, 5), "head": slice(5, 12)}
    vectors = random.standard_normal((m, 12)) + random.standard_normal((n, m, 12))
    tasks = [f"t{place}" for place in range(m)]
    found = describe(tasks, n, *grams(vectors, parts))
    assert found == pytest.approx(described(vectors, tasks, parts, window_sizes(n)), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("seed", range(2))
def test_statistics_and_their_errors_are_those_of_the_vectors(seed: int) -> None:
    vectors, sizes = noisy(12, 9, seed), (1, 2, 4)
    found = estimates(TASKS, gram_of_all(vectors), sizes)
    assert {name: value for name, (value, _) in found.items()} == pytest.approx(stated(vectors, sizes))
    left_out = [stated(np.delete(vectors, slice(start, start + 4), axis=0), sizes) for start in (0, 4, 8)]
    for name, (_, error) in found.items():
        assert error == pytest.approx(math.sqrt(2) * np.std([each[name] for each in left_out]), abs=1e-9), name


def test_what_vanishes_or_is_not_finite_is_nan() -> None:
    vectors, parts = np.ones((4, 2, 3)), {"one": slice(None)}
    vectors[:, 1] = 0
    found = describe(TASKS, 4, *grams(vectors, parts))
    assert {key for key, value in found.items() if math.isnan(value)} == {
        *(f"{kind}/{group}" for kind in ("cosine", "cosine_disjoint", "self_cosine/b") for group in ("all", "one")),
        *(f"{kind}/{size}" for kind in ("noise/b", "sign_agreement") for size in (1, 2)),
    }
    more = statistics(TASKS, gram_of_all(vectors), (1, 2))
    assert math.isnan(more["scaled_noise/b/2"] + more["sign_agreement_disjoint/1"])
    vectors[2, 0, 0] = np.inf
    with np.errstate(invalid="ignore"):
        found = describe(TASKS, 4, *grams(vectors, parts))
    assert {key for key, value in found.items() if not math.isnan(value)} == {"norm/b"}


@pytest.mark.parametrize("blocks", [2, 4])
def test_sums_and_rows_are_those_of_the_gradients(blocks: int) -> None:
    """Sixteen micro-batches: a strided weight, a bias that one task misses, losses enlarged by 4."""
    layers = nn.ModuleList([nn.Conv2d(8, 9, 3).to(memory_format=torch.channels_last), nn.Linear(40, 1000)])
    groups = {"encoder": list(layers[0].parameters()), "head": list(layers[1].parameters())}
    flat, n, random = FlatParameters(groups), 16, torch.Generator().manual_seed(0)
    apart = GradientSums(flat, 2, n, blocks, by_parameter=True)
    together, rows, vectors = GradientSums(flat, 2, n), GradientRows(flat, 2, n), np.zeros((n, 2, flat.size))
    for number in range(n):
        taken = []
        for task in range(2):
            gradient = [torch.randn(p.shape, generator=random) for p in flat.parameters]
            kept = [task == 0 or g.ndim > 1 for g in gradient]
            vectors[number, task] = np.concatenate([g.flatten() * k for g, k in zip(gradient, kept, strict=True)])
            taken.append([4 * g if k else None for g, k in zip(gradient, kept, strict=True)])
        for taker in (apart, together, rows):
            taker.add(taken, 1 / 4)
    edges = np.cumsum([0, *(p.numel() for p in flat.parameters)])
    parts = {"encoder": slice(0, edges[2]), "head": slice(edges[2], None)}
    own = {name: slice(*edges[place : place + 2]) for place, name in enumerate(flat.names)}
    close = {"rtol": 1e-5, "atol": 0.1}  # of norms of 1e5
    halves, windows = together.grams()
    expected = grams(vectors, parts)
    assert (list(halves), list(windows)) == (list(expected[0]), list(expected[1]))
    for key, theirs in expected[0].items():
        np.testing.assert_allclose(halves[key], theirs, **close)
    for size, theirs in expected[1].items():
        np.testing.assert_allclose(windows[size][:, 0], theirs, **close)
    found, windows = apart.grams()
    for place, (name, part) in enumerate(own.items()):
        sums = vectors[..., part].reshape(blocks, n // blocks, 2, -1).sum(1).reshape(2 * blocks, -1)
        np.testing.assert_allclose(found[name], sums @ sums.T, **close)
        for size, theirs in grams(vectors[..., part], {})[1].items():
            np.testing.assert_allclose(windows[size][:, place], theirs, **close)
    of_rows = rows.grams()
    assert list(of_rows) == ["all", *parts]
    for group, part in {"all": slice(None), **parts}.items():
        np.testing.assert_allclose(of_rows[group], gram_of_all(vectors[..., part]), rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize(("n", "blocks"), [(2, 2), (6, 2), (24, 2), (64, 16)])
def test_sums_hold_the_rows_that_they_say(n: int, blocks: int) -> None:
    flat = FlatParameters([nn.Parameter(torch.zeros(10))])
    with LiveBytes() as live:
        sums = GradientSums(flat, 2, n, blocks)
    assert live.now == rows_held(n, 2, blocks) * 10 * 4
    del sums
    assert rows_held(24, 2) == 12  # of 48 gradients
