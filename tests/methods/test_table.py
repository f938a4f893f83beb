"""results/methods.md is what the tests say."""

from __future__ import annotations

from methods.declarations import expectations
from methods.methods import families
from methods.table import COMMAND, COMMITTED, oracles, render


def test_committed_table_is_up_to_date():
    """Verdicts of the declarations, which the other tests confirm, and the oracles that tests are marked with."""
    assert COMMITTED.read_text() == render(), f"run `{COMMAND}`"


def test_table_shows_what_a_run_did_not_confirm():
    everything = dict.fromkeys([*expectations(), *oracles()], True)
    assert render(everything) == render()
    for key in (("pcgrad", "scale"), next(iter(oracles()))):
        assert "NOT CONFIRMED" in render(everything | {key: False})
    assert "NOT CONFIRMED" in render({})


def test_oracles_are_of_strategies():
    strategies = {name for names in families().values() for name in names}
    assert {name for name, _ in oracles()} <= strategies
