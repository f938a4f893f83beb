"""GCond where the table says that it fails by design: where it jumps, and when its strength score comes to rest."""

from __future__ import annotations

import numpy as np
import pytest
from methods.declarations import GCOND_JUMPS
from methods.methods import build, conflict, matrix
from methods.properties import jumps

STRENGTH_ONLY = {"tie_breaking_weights": [0.0, 1.0]}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, GCOND_JUMPS),
        (STRENGTH_ONLY, ()),  # the longer gradient always wins
        ({"smooth": False} | STRENGTH_ONLY, (-0.8, -0.5)),  # step logic: at the thresholds themselves
    ],
)
def test_gcond_jumps_only_where_listed(changes, expected):
    found = [cosine for cosine, _ in jumps("gcond_lion", **changes)]
    assert found == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("corrected", [False, True])
def test_strength_depends_on_the_scale_until_its_averages_have_settled(corrected):
    """They start at 1: .95^500 = 7e-12 of that is left in the end. With bias correction the scale never matters."""
    random = np.random.default_rng(0)
    stream = [np.array([[-4, 1, 1], [6, 1, 1]]) * random.uniform(0.5, 1.5, (2, 3)) for _ in range(600)]
    updates = []
    for unit in (1e-3, 1.0, 1e3):
        resolver = build("gcond_lion", norm_ema_bias_correction=corrected)
        rows = [unit * each for each in stream]
        resolved = [resolver.resolve(conflict(now, old)) for old, now in zip([None, *rows], rows, strict=False)]
        updates.append(np.stack([(r.weights @ matrix(each)).numpy() for r, each in zip(resolved, stream, strict=True)]))
    apart = np.abs(np.stack(updates) - updates[1]).max(axis=(0, 2))
    assert apart[-100:].max() < 1e-9
    assert (apart[:100].max() < 1e-9) == corrected
