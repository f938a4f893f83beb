"""results/methods.csv and methods.md: which property each method has, and which oracle covers it."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

import pandas as pd
from methods.declarations import Expectation, declared, expectation
from methods.methods import families, kind
from methods.properties import PROPERTIES

TESTS = Path(__file__).parents[1]
COMMITTED = TESTS.parent / "results" / "methods.md"  # and methods.csv beside it
COMMAND = "make methods"

Verdicts = Mapping[tuple[str, str], bool]  # (strategy, property) or (strategy, oracle) -> whether its tests passed


@cache
def oracles() -> dict[tuple[str, str], None]:
    """(strategy, oracle) of every `pytest.mark.oracle("strategy strategy", "oracle")` in the tests' source."""
    found: dict[tuple[str, str], None] = {}
    for path in sorted(TESTS.rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "oracle":
                names, oracle = (ast.literal_eval(argument) for argument in node.args)
                found |= dict.fromkeys((name, oracle) for name in names.split())
    return found


def rows(measured: Verdicts | None = None) -> list[dict[str, str]]:
    """A row for each strategy and property or oracle, as declared or, given the outcomes of a run, as measured.

    `verdict` is yes (to `tolerance`, where that is not 1e-6), no (by design), not promised, or not confirmed.
    """

    def confirmed(key: tuple[str, str]) -> bool:
        return measured is None or measured.get(key, False)

    found = []
    for first, names in families().items():
        title = declared(first) or first
        for name in names:
            shared = {"strategy": name, "kind": kind(title)}
            for prop in PROPERTIES:
                expected = expectation(first, prop)
                if expected is not None:
                    verdict = _verdict(expected)
                    if verdict != "not promised" and not confirmed((first, prop)):
                        verdict = "not confirmed"
                    tolerance = f"{expected.tolerance:g}" if verdict == "yes" and expected.tolerance != 1e-6 else ""
                    if verdict == "yes" and expected.dependent:
                        verdict = "yes, but for dependent gradients"
                    row = {"asks": "property", "name": prop, "verdict": verdict, "tolerance": tolerance}
                    found.append(shared | row | {"reason": expected.reason or expected.dependent})
            for oracle in dict.fromkeys(oracle for other, oracle in oracles() if other in names):
                keys = [(other, oracle) for other in names if (other, oracle) in oracles()]
                verdict = "yes" if all(map(confirmed, keys)) else "not confirmed"
                row = {"asks": "oracle", "name": oracle, "verdict": verdict, "tolerance": "", "reason": ""}
                found.append(shared | row)
    return found


def _verdict(expected: Expectation) -> str:
    return {"holds": "yes", "fails by design": "no"}.get(expected.verdict, expected.verdict)


def as_csv(table: list[dict[str, str]]) -> str:
    return pd.DataFrame(table).to_csv(index=False)


def render(table: list[dict[str, str]]) -> str:
    """The page over `rows`; strategies that share a resolver share a row."""
    notes: list[str] = []
    body, covered = [], []
    for first, names in families().items():
        label = ", ".join(f"`{name}`" for name in names)
        own = [row for row in table if row["strategy"] == first]
        cells = {row["name"]: _cell(row, notes) for row in own if row["asks"] == "property"}
        body.append([label, own[0]["kind"], *(cells.get(prop, "–") for prop in PROPERTIES)])
        texts = [row["name"] + " (NOT CONFIRMED)" * (row["verdict"] != "yes") for row in own if row["asks"] == "oracle"]
        covered.append([label, "; ".join(texts) or "none"])
    lines = [
        "# Methods: which properties each has, and what it was checked against",
        "",
        f"Written by `{COMMAND}` from the tests that it runs; do not edit. The same as data: methods.csv.",
        "",
        *(f"- **{p.title}**: {p.meaning}" for p in PROPERTIES.values()),
        "",
        "**yes**: held on every matrix tried, to 1e-6 or the number given; the second to the fifth property also where "
        "gradients depend on each other: low rank, stationary, up to 50 tasks, as TorchJD tests its aggregators (where "
        "there is no solution, nothing is asked). **no**: fails by design, and a matrix on which it fails was "
        "found. **–**: the method sees losses only. Numbers lead to reasons below. *Gram* methods "
        "need only the inner products of task gradients. Strategies in one row share one resolver.",
        "",
        *_table(["strategy", "kind", *(p.title for p in PROPERTIES.values())], body),
        "",
        *(f"{number}. {note}" for number, note in enumerate(notes, 1)),
        "",
        "## Oracles",
        "",
        "Results that each strategy was checked against and that do not come from its own code.",
        "",
    ]
    return "\n".join([*lines, *_table(["strategy", "oracles"], covered)]) + "\n"


def _cell(row: dict[str, str], notes: list[str]) -> str:
    if row["verdict"] == "not confirmed":
        return "NOT CONFIRMED"
    text = {"no": "**no**"}.get(row["verdict"], row["verdict"])
    if row["tolerance"]:
        text += f", to {row['tolerance']}"
    if not row["reason"]:
        return text
    note = row["reason"][0].upper() + row["reason"][1:] + "."
    if note not in notes:
        notes.append(note)
    return f"{text} [{notes.index(note) + 1}]"


def _table(head: list[str], body: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *body)]
