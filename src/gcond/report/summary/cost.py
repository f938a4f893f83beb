"""What a step costs and holds: the claims that benchmarks decide."""

from collections.abc import Sequence

from gcond.report.claims.judge import Finding
from gcond.report.claims.page import Row
from gcond.report.render import bullets
from gcond.report.statistics import CONTRADICTED, HOLDS
from gcond.report.summary.say import span
from gcond.report.summary.section import Section

TITLE = "Speed and memory"
PAGES = {
    "S1": "[table3](bench/table3.md), [table4](bench/table4.md)",
    "S2": "[table3](bench/table3.md), [table4](bench/table4.md), [step](bench/step.md)",
    "M1": "[memory](bench/memory.md)",
    "M2": "[memory](bench/memory.md)",
}
WORDS = {HOLDS: "holds", CONTRADICTED: "does not hold"}


def cost(rows: Sequence[Row]) -> Section:
    own = [row for row in rows if row.claim.id in PAGES]
    said = [f'"{row.claim.text}" {_verdict(row)}: {_numbers(row)[0]} ({row.found.source}).' for row in own if row.found]
    answers = [f"**What does it cost?** {' '.join(said)}"] if said else []
    return Section(TITLE, answers, [bullets([_line(row) for row in own])])


def _line(row: Row) -> str:
    claim = row.claim
    if row.found is None:
        return f"**{claim.id}** not run. `{claim.command}` makes it; needs {claim.needs}."
    return f"**{claim.id} {_verdict(row)}:** {'; '.join(_numbers(row))}. {' '.join(_notes(row))} {PAGES[claim.id]}."


def _numbers(row: Row) -> list[str]:
    """Of what was measured its ranges; of what was planned, in words."""
    if row.found is None:
        return []
    return [row.found.words[0].rstrip(".")] if _planned(row) else _ranges(row.found.findings)


def _notes(row: Row) -> Sequence[str]:
    """What is left of the words; of a benchmark's what counts as what, which comes last."""
    if row.found is None:
        return []
    return row.found.words[1:] if _planned(row) else row.found.words[-1:]


def _planned(row: Row) -> bool:
    return row.claim.id.startswith("M")


def _verdict(row: Row) -> str:
    return WORDS.get(row.verdict, f"is {row.verdict}")


def _ranges(findings: Sequence[Finding]) -> list[str]:
    """Of each quantity its mean, or the smallest and the largest over the settings in which it was measured."""
    own: dict[str, list[Finding]] = {}
    for found in findings:
        own.setdefault(found.about.split("): ", 1)[-1], []).append(found)
    return [f"{name} {_range(each)}" for name, each in own.items()]


def _range(findings: list[Finding]) -> str:
    return span(findings) + (f" in {len(findings)} settings" if len(findings) > 1 else "")
