"""results/methods.md: which oracle covers which method, and which property each method has."""

from __future__ import annotations

import ast
from collections.abc import Mapping
from functools import cache
from pathlib import Path

from methods.declarations import Expectation, declared, expectation
from methods.methods import families, kind
from methods.properties import PROPERTIES

TESTS = Path(__file__).parents[1]
COMMITTED = TESTS.parent / "results" / "methods.md"
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


def render(measured: Verdicts | None = None) -> str:
    """The table as declared, or, given the outcomes of a run, as measured: what was not confirmed says so."""
    rows, notes = [], []
    for first, names in families().items():
        title = declared(first) or first
        label = ", ".join(f"`{name}`" for name in names)
        cells = [_cell(first, prop, measured, notes) for prop in PROPERTIES]
        rows.append([label, kind(title), *cells])
    lines = [
        "# Methods: what each promises, and who says so",
        "",
        f"Written by `{COMMAND}` from the tests that it runs; do not edit.",
        "",
        "## Properties",
        "",
        *(f"- **{p.title}**: {p.meaning}" for p in PROPERTIES.values()),
        "",
        "**yes**: held on every matrix tried, to 1e-6 or the number given. **no**: fails by design, and a matrix on "
        "which it fails was found. **–**: the method sees losses only. Numbers lead to reasons below. *Gram* methods "
        "need only the inner products of task gradients. Strategies in one row share one resolver.",
        "",
        *_table(["strategy", "kind", *(p.title for p in PROPERTIES.values())], rows),
        "",
        *(f"{number}. {note}" for number, note in enumerate(notes, 1)),
        "",
        "## Oracles",
        "",
        "Each strategy against results that do not come from its own code.",
        "",
    ]
    covered = [[", ".join(f"`{name}`" for name in names), _oracles(names, measured)] for names in families().values()]
    return "\n".join([*lines, *_table(["strategy", "oracles"], covered)]) + "\n"


def _cell(name: str, prop: str, measured: Verdicts | None, notes: list[str]) -> str:
    expected = expectation(name, prop)
    if expected is None:
        return "–"
    if expected.verdict != "not promised" and measured is not None and not measured.get((name, prop), False):
        return "NOT CONFIRMED"
    text = _verdict(expected)
    if not expected.reason:
        return text
    note = expected.reason[0].upper() + expected.reason[1:] + "."
    if note not in notes:
        notes.append(note)
    return f"{text} [{notes.index(note) + 1}]"


def _verdict(expected: Expectation) -> str:
    if expected.verdict == "fails by design":
        return "**no**"
    if expected.verdict == "not promised":
        return "not promised"
    return "yes" if expected.tolerance == 1e-6 else f"yes, to {expected.tolerance:g}"


def _oracles(names: tuple[str, ...], measured: Verdicts | None) -> str:
    found = dict.fromkeys(oracle for name, oracle in oracles() if name in names)
    if measured is None:
        return "; ".join(found) or "none"
    texts = []
    for oracle in found:
        passed = all(measured.get((name, oracle), False) for name in names if (name, oracle) in oracles())
        texts.append(oracle if passed else f"{oracle} (NOT CONFIRMED)")
    return "; ".join(texts) or "none"


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return ["| " + " | ".join(row) + " |" for row in (head, ["---"] * len(head), *rows)]
