"""Every property of every method in conf/strategy, shown to hold or to fail, as results/methods.csv and .md say."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
from methods.declarations import DECLARED, GCOND_JUMPS, SHOWN_TO_FAIL, declared, expectations
from methods.methods import build, conflict, dependent_cases, families, matrix, update
from methods.properties import PROPERTIES, jumps
from methods.table import COMMAND, COMMITTED, as_csv, oracles, render, rows

MATRICES = 16
DEPENDENT = dependent_cases()
SLOW_DEPENDENT = {"nash_mtl": 6, "fairgrad": 9, "mgda": 3}  # every sixth of them, or so
SLOW = {"nash_mtl": 2, "mgda": 4, "fairgrad": 4}  # a solve takes up to 0.15 s


def test_every_strategy_is_declared_and_every_declaration_is_of_a_strategy():
    undeclared = [names for name, names in families().items() if declared(name) is None]
    assert not undeclared, f"say in tests/methods/declarations.py what is expected of {undeclared}"
    assert set(DECLARED) == {declared(name) for name in families()}
    assert all(set(found) <= set(PROPERTIES) for found in DECLARED.values())


@pytest.mark.measures
@pytest.mark.parametrize(
    ("name", "prop"), [key for key, expected in expectations().items() if expected.verdict != "not promised"]
)
def test_property_is_as_declared(name, prop):
    expected = expectations()[name, prop]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "GradOPS")
        violation = PROPERTIES[prop].worst(name, SLOW.get(name, MATRICES))
        if expected.verdict == "holds" and PROPERTIES[prop].of_case:
            dependent = PROPERTIES[prop].worst_of(name, DEPENDENT[:: SLOW_DEPENDENT.get(name, 1)])
            assert dependent > SHOWN_TO_FAIL if expected.dependent else dependent <= expected.tolerance
    if expected.verdict == "holds":
        assert violation <= expected.tolerance
    else:
        assert expected.reason
        assert violation > SHOWN_TO_FAIL


def test_cagrad_s_order_shows_where_its_worst_direction_nearly_vanishes():
    """Gradients that all but balance each other; the conf's c = .4 keeps away from where they do."""
    apart = {0.4: 0.0, 0.9: 0.0}
    for case in dependent_cases():
        if case.rows.shape == (20, 100):
            random = np.random.default_rng(case.seed)
            rows = case.rows + 3e-7 * random.standard_normal(case.rows.shape)
            order = random.permutation(len(rows))
            for c in apart:
                changed = update("cagrad", rows[order], c=c) - update("cagrad", rows, c=c)
                apart[c] = max(apart[c], float(changed.norm()) / case.least)
    assert apart[0.4] < 1e-6
    assert 1e-6 < apart[0.9] < 1e-2


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


def test_committed_tables_are_up_to_date():
    """Verdicts of the declarations, which the other tests confirm, and the oracles that tests are marked with."""
    assert COMMITTED.with_suffix(".csv").read_text() == as_csv(rows()), f"run `{COMMAND}`"
    assert COMMITTED.read_text() == render(rows()), f"run `{COMMAND}`"


def test_oracles_are_of_strategies():
    strategies = {name for names in families().values() for name in names}
    assert {name for name, _ in oracles()} <= strategies
