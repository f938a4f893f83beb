"""results/methods.csv and methods.md: which property each method has, and which oracle covers it.

PYTHONPATH=tests python -m methods.table FOLDER    writes both from the declarations, which tests hold true
"""

from __future__ import annotations

import ast
import sys
from functools import cache
from pathlib import Path

import pandas as pd
from methods.declarations import Expectation, declared, expectation
from methods.methods import families, kind
from methods.properties import PROPERTIES

TESTS = Path(__file__).parents[1]
COMMITTED = TESTS.parent / "results" / "methods.md"  # and methods.csv beside it
COMMAND = "make methods"


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


def rows() -> list[dict[str, str]]:
    """A row for each strategy and property or oracle. `verdict` of a property is yes (to `tolerance`, where that is not
    1e-6), no (by design) or not promised."""
    found = []
    for first, names in families().items():
        title = declared(first) or first
        expected = {prop: expectation(first, prop) for prop in PROPERTIES}
        own = [_of_property(prop, each) for prop, each in expected.items() if each is not None]
        own += [
            {"asks": "oracle", "name": oracle, "verdict": "yes", "tolerance": "", "reason": ""}
            for oracle in dict.fromkeys(oracle for name, oracle in oracles() if name in names)
        ]
        found += [{"strategy": name, "kind": kind(title)} | row for name in names for row in own]
    return found


def _of_property(prop: str, expected: Expectation) -> dict[str, str]:
    verdict = {"holds": "yes", "fails by design": "no"}.get(expected.verdict, expected.verdict)
    tolerance = f"{expected.tolerance:g}" if verdict == "yes" and expected.tolerance != 1e-6 else ""
    if verdict == "yes" and expected.dependent:
        verdict = "yes, but for dependent gradients"
    reason = expected.reason or expected.dependent
    return {"asks": "property", "name": prop, "verdict": verdict, "tolerance": tolerance, "reason": reason}


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
        covered.append([label, "; ".join(row["name"] for row in own if row["asks"] == "oracle") or "none"])
    lines = [
        "# Methods: which properties each has, and what it was checked against",
        "",
        f"Written by `{COMMAND}` once the tests that it runs have passed; do not edit. The same as data: methods.csv.",
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


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "methods.csv").write_text(as_csv(rows()))
    (folder / "methods.md").write_text(render(rows()))
