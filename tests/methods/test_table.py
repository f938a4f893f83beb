"""results/methods.csv and methods.md are what the tests say."""

from __future__ import annotations

from methods.declarations import expectations
from methods.methods import families
from methods.table import COMMAND, COMMITTED, as_csv, oracles, render, rows


def test_committed_tables_are_up_to_date():
    """Verdicts of the declarations, which the other tests confirm, and the oracles that tests are marked with."""
    assert COMMITTED.with_suffix(".csv").read_text() == as_csv(rows()), f"run `{COMMAND}`"
    assert COMMITTED.read_text() == render(rows()), f"run `{COMMAND}`"


def test_tables_show_what_a_run_did_not_confirm():
    everything = dict.fromkeys([*expectations(), *oracles()], True)
    assert rows(everything) == rows()
    for key in (("pcgrad", "scale"), next(iter(oracles()))):
        odd = [row for row in rows(everything | {key: False}) if row["verdict"] == "not confirmed"]
        assert odd
        assert {row["name"] for row in odd} == {key[1]}
        assert "NOT CONFIRMED" in render(rows(everything | {key: False}))
    assert {row["verdict"] for row in rows({})} == {"not confirmed", "not promised"}


def test_oracles_are_of_strategies():
    strategies = {name for names in families().values() for name in names}
    assert {name for name, _ in oracles()} <= strategies
