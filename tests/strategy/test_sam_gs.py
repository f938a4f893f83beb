"""SAM-GS against its formulas written out coordinate by coordinate, by hand, for any blocks, and across a restart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.problems import by_blocks, conflict, matrix, saved

from gcond.strategy.resolve.sam_gs import SAMGS


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


def update(resolver, rows, sizes=None):
    return by_blocks(resolver, torch.as_tensor(rows), sizes)


@pytest.mark.oracle("sam_gs", "NumPy twin over 30 steps")
@pytest.mark.parametrize("psi", ["paper", "code"])
@pytest.mark.parametrize("settings", [{}, {"beta1": 0.5, "beta2": 0.9, "gamma": 0.9}], ids=str)
@pytest.mark.parametrize("m", [2, 3])
def test_is_its_formulas(psi, settings, m):
    random = np.random.default_rng(m)
    fast, slow = SAMGS(psi, **settings), BySteps(psi, **settings)
    equalised = []
    for step in range(30):
        spread = 2.5 if step % 3 else 0.1
        rows = random.standard_normal((m, 7)) * 10 ** random.uniform(-spread, spread, (m, 1))
        equalised.append(slow.similarity(rows) < slow.gamma)
        np.testing.assert_allclose(update(fast, rows), slow.step(rows), rtol=1e-9)
    assert any(equalised) == (psi == "code" or settings != {})
    assert not all(equalised)


@pytest.mark.oracle("sam_gs", "similarity by hand")
def test_similarity_by_hand():
    """Norms 3 and 4: psi = 24 / 25; the paper also counts the two self-similarities of 1."""
    rows = [[3.0, 0.0], [0.0, 4.0]]
    metrics = {psi: SAMGS(psi).resolve(conflict(rows)).metrics for psi in ("paper", "code")}
    assert metrics["code"]["sam_gs/similarity"] == pytest.approx(24 / 25)
    assert metrics["paper"]["sam_gs/similarity"] == pytest.approx((24 / 25 + 1) / 2)


def test_two_unlike_gradients_are_equalised_by_the_code_s_psi_only():
    """Norms 1 and 99: psi = .0198. Equalised, both have norm 50. The paper's Psi is .51: modulated instead."""
    rows = matrix([[1, 0], [0, 99]])
    resolution = SAMGS("code").resolve(conflict(rows))
    assert resolution.metrics["sam_gs/equalised"] == 1
    torch.testing.assert_close(resolution.blockwise(rows, 0), matrix([50, 50]))
    resolution = SAMGS("paper").resolve(conflict(rows))
    assert resolution.metrics["sam_gs/equalised"] == 0
    spread = ((1 - resolution.metrics["sam_gs/similarity"]) ** 2 + 1e-6) ** 0.5  # bias-corrected: 1e-8 / (1 - .99)
    torch.testing.assert_close(resolution.blockwise(rows, 0), matrix([1, 99**2]) / (spread + 1e-8))


@pytest.mark.parametrize("gamma", [0.1, 1.0])
def test_neither_blocks_nor_a_restart_change_the_update(gamma):
    random = np.random.default_rng(0)
    whole, fresh = SAMGS(gamma=gamma), SAMGS()
    fresh.load_state_dict(SAMGS().state_dict())
    parts = [SAMGS(gamma=gamma) for _ in range(3)]
    for step in range(6):
        rows = random.standard_normal((3, 40)).astype(np.float32)
        expected = update(whole, rows)
        for place, sizes in enumerate(([1] * 40, [7, 33], [39, 1])):
            assert torch.equal(update(parts[place], rows, sizes), expected)
            if step == 3:
                state = parts[place].state_dict()
                assert state["momentum"].shape == (3, 40)
                kept, parts[place] = repr(state), SAMGS(gamma=gamma)
                parts[place].load_state_dict(saved(state))
        if step == 4:
            assert repr(state) == kept  # what was handed out before stays
