"""GradDrop and SAM-GS, which work on coordinates: TorchJD with the same draws, formulas, by hand, for any blocks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from strategy.problems import conflict
from torchjd import aggregation

from gcond import SAMGS, GradDrop


def dropped(rows, seed=0, resolver=None):
    return (resolver or GradDrop()).resolve(conflict(rows, seed=seed)).blockwise(rows, 0)


def random_rows(m, size):
    return torch.randn(m, size, generator=torch.Generator().manual_seed(0))


@pytest.mark.oracle("graddrop", "TorchJD with the same draws")
@pytest.mark.parametrize("leak", [None, [0.5, 0.0, 0.2, 1.0]])
def test_graddrop_is_torchjd_s_with_the_same_draws(monkeypatch, leak):
    rows = random_rows(4, 1000).double()
    draws = torch.rand(1000)
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws.clone())
    resolver = GradDrop() if leak is None else GradDrop(dict(zip(["t0", "t1", "t2", "t3"], leak, strict=True)))
    expected = aggregation.GradDrop(leak=None if leak is None else torch.tensor(leak).double())(rows)
    torch.testing.assert_close(dropped(rows, resolver=resolver), expected, rtol=1e-6, atol=1e-6)


@pytest.mark.oracle("graddrop", "by hand")
def test_graddrop_by_hand(monkeypatch):
    """P = (3/4, 3/4, 1/4, 1, 0, undefined) against U."""
    rows = torch.tensor([[3.0, 3.0, -3.0, 1.0, -1.0, 0.0], [-1.0, -1.0, 1.0, 2.0, -2.0, 0.0]])
    draws = torch.tensor([0.7, 0.8, 0.2, 1 - 2**-24, 0.0, 0.5])
    monkeypatch.setattr(torch, "rand", lambda *_, **__: draws)
    assert dropped(rows).tolist() == [3, -1, 1, 3, -3, 0]
    leaky = dropped(rows, resolver=GradDrop({"t1": 0.25}))
    assert leaky.tolist() == [2.75, -1, 0.25 + 0.75, 3, -3, 0]
    assert torch.equal(dropped(rows, resolver=GradDrop(1.0)), rows.sum(0))


@pytest.mark.oracle("graddrop", "frequencies of the signs")
def test_probability_of_a_sign_is_its_share():
    """(3, -1) gives 3 three times out of four; so the mean is the sum, 2. Four standard errors of 40,000 draws."""
    found = dropped(torch.tensor([[3.0], [-1.0]]).expand(2, 40_000))
    assert float((found == 3).float().mean()) == pytest.approx(0.75, abs=0.009)
    assert set(found.unique().tolist()) == {3.0, -1.0}
    assert found.shape == (40_000,)  # one draw for all tasks of a coordinate


def test_draws_belong_to_the_resolver_s_generator(request):
    """They depend on it alone: not on precision, nor on the default one, nor on the global generator, left as it is."""
    rows, state = random_rows(2, 200).bfloat16(), torch.random.get_rng_state()
    before, expected = rows.clone(), dropped(rows.float(), seed=3)
    assert torch.equal(dropped(rows, seed=3).float(), expected)
    assert torch.equal(dropped(rows.double(), seed=3).float(), expected)
    assert not torch.equal(dropped(rows.float(), seed=4), expected)
    request.addfinalizer(partial(torch.set_default_dtype, torch.get_default_dtype()))
    torch.set_default_dtype(torch.float64)
    assert torch.equal(dropped(rows.float(), seed=3), expected)
    resolver, seen = GradDrop(), conflict(rows)
    first, second = (resolver.resolve(seen).blockwise(rows, 0) for _ in range(2))
    assert not torch.equal(first, second)
    first.mul_(0)
    assert torch.equal(rows, before)
    assert torch.equal(torch.random.get_rng_state(), state)


class BySteps:
    """The method as METHODS and the authors' code give it, NumPy, whole vectors; `psi` and `gamma` as for SAMGS."""

    def __init__(self, psi, beta1=0.9, beta2=0.99, gamma=0.1):
        self.psi, self.beta1, self.beta2, self.gamma = psi, beta1, beta2, gamma
        self.moment, self.h, self.t = 0.0, 0.0, 0

    def similarity(self, rows):
        norms = [float(np.linalg.norm(row)) for row in rows]
        m = len(norms)
        pairs = {(i, j): 2 * norms[i] * norms[j] / (norms[i] ** 2 + norms[j] ** 2) for i in range(m) for j in range(m)}
        if self.psi == "paper":
            return sum(pairs.values()) / m**2
        upper = [value for (i, j), value in pairs.items() if i < j]
        return sum(upper) / len(upper)

    def step(self, rows):
        self.t += 1
        similarity = self.similarity(rows)
        self.moment = self.beta1 * self.moment + (1 - self.beta1) * rows
        self.h = self.beta2 * self.h + (1 - self.beta2) * (1 - similarity) ** 2 + 1e-8
        if similarity < self.gamma:
            norms = np.linalg.norm(rows, axis=1)
            return sum(norms.mean() / norm * row for norm, row in zip(norms, rows, strict=True))
        moment = self.moment / (1 - self.beta1**self.t)
        spread = np.sqrt(self.h / (1 - self.beta2**self.t)) + 1e-8
        return sum(np.abs(moment) / spread * rows)


@pytest.mark.oracle("sam_gs", "NumPy twin over 30 steps")
@pytest.mark.parametrize("psi", ["paper", "code"])
@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.9, "gamma": 0.9}], ids=str)
@pytest.mark.parametrize("m", [2, 3])
def test_sam_gs_is_its_formulas(psi, settings, m):
    random = np.random.default_rng(m)
    fast, slow = SAMGS(psi, **settings), BySteps(psi, **settings)
    equalised = []
    for step in range(30):
        spread = 2.5 if step % 3 else 0.1
        rows = random.standard_normal((m, 7)) * 10 ** random.uniform(-spread, spread, (m, 1))
        equalised.append(slow.similarity(rows) < slow.gamma)
        found = fast.resolve(conflict(rows)).blockwise(torch.from_numpy(rows), 0)
        np.testing.assert_allclose(found, slow.step(rows), rtol=1e-9)
    assert any(equalised) == (psi == "code" or settings != {})
    assert not all(equalised)


@pytest.mark.oracle("sam_gs", "similarity by hand")
def test_sam_gs_similarity_by_hand():
    """Norms 3 and 4: psi = 24 / 25; the paper also counts the two self-similarities of 1."""
    rows = [[3.0, 0.0], [0.0, 4.0]]
    metrics = {psi: SAMGS(psi).resolve(conflict(rows)).metrics for psi in ("paper", "code")}
    assert metrics["code"]["sam_gs/similarity"] == pytest.approx(24 / 25)
    assert metrics["paper"]["sam_gs/similarity"] == pytest.approx((24 / 25 + 1) / 2)
