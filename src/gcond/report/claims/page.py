"""CLAIMS.md and claims.csv: a row for every claim and question, and below it the numbers."""

import csv
import io
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from gcond.files import RECORDED, write_text
from gcond.report.claims import CLAIMS, QUESTIONS
from gcond.report.claims.evidence import BLOCKS, SCALES, Evidence, read, recorded_scales
from gcond.report.claims.judge import Answer, Claim, text
from gcond.report.lineup import NOT_EVIDENCE
from gcond.report.render import write_page
from gcond.report.statistics import CONTRADICTED, FEWEST, HOLDS, NOT_RUN, sign_flip_text

CSV_HEADER = ["id", "kind", "verdict", "scale", "finding", "block", "effect", "low", "high", "unit", "n"]
CSV_HEADER += ["p_sign_flip", "finding_verdict"]


@dataclass(frozen=True)
class Row:
    """`larger`: of larger scales, with too few seeds. `more`: what is known besides, from results that belong to no
    scale or from a scale that is no evidence."""

    claim: Claim
    found: Answer | None
    more: Answer | None = None
    larger: tuple[Answer, ...] = ()

    @property
    def verdict(self) -> str:
        if self.found is None:
            return NOT_RUN
        return said(self.found.verdict, self.found.source)

    @property
    def answers(self) -> tuple[Answer, ...]:
        """What decides comes first."""
        return tuple(each for each in (self.found, *self.larger, self.more) if each)


def said(verdict: str, source: str) -> str:
    return f"{source}, not evidence" if source in NOT_EVIDENCE else verdict


def judge_all(results: Path, scale: str, claims: tuple[Claim, ...] = (*CLAIMS, *QUESTIONS)) -> list[Row]:
    """Each claim at the largest scale, up to `scale`, at which it was run with enough seeds, or else at the largest at
    which it was run; from results that have no scale where it was run at no scale that is evidence."""
    evidence = [read(results, name) for name in SCALES[SCALES.index(scale) :] if (results / name).is_dir()]
    return [_row(claim, evidence, results) for claim in claims]


def _row(claim: Claim, evidence: list[Evidence], results: Path) -> Row:
    elsewhere = claim.elsewhere(results)
    found: list[Answer] = []
    for each in evidence:
        if found and each.scale in NOT_EVIDENCE:
            break
        answer = claim.look(each)
        if answer is not None:
            found.append(replace(answer, source=each.scale))
            if each.scale in NOT_EVIDENCE or _has_enough_seeds(answer):
                break
    if not found:
        return Row(claim, elsewhere)
    if found[-1].source in NOT_EVIDENCE:
        return Row(claim, elsewhere, found[-1]) if elsewhere else Row(claim, found[-1])
    if _has_enough_seeds(found[-1]):
        return Row(claim, found[-1], elsewhere, tuple(found[:-1]))
    return Row(claim, found[0], elsewhere)


def _has_enough_seeds(answer: Answer) -> bool:
    return answer.verdict in (HOLDS, CONTRADICTED) or answer.shown is None or answer.shown.effect.n >= FEWEST


def page(rows: list[Row], scale: str) -> str:
    """CLAIMS.md of `scale`."""
    claims = [row for row in rows if not row.claim.question]
    questions = [row for row in rows if row.claim.question]
    caveat = " (not evidence)" if scale in NOT_EVIDENCE else ""
    counts = Counter(row.verdict.replace(", ", ": ") for row in claims)
    tally = ", ".join(f"{count} {'hold' if verdict == HOLDS else verdict}" for verdict, count in sorted(counts.items()))
    answered = sum(row.found is not None for row in questions)
    parts = [
        f"# The paper's claims, put to the test: scale {scale}{caveat}",
        f"{len(claims)} claims: {tally}. {len(questions)} questions that the paper leaves open: {answered} answered, "
        f"{len(questions) - answered} not run.",
        "**holds**, **contradicted**: the 95 % interval of the effect lies wholly where the claim says, or wholly "
        "elsewhere. **undecided**: neither. **not run**: the command that would run it is below. No verdict is typed "
        "in; all come from recorded numbers.",
        "The seed is the unit: differences (A vs B: A less B) are paired by seed (same initial weights, images and "
        "masks), in percent of B's loss unless said, with a t-interval; a loss is better if lower, so a negative "
        "difference favours A. p is the exact two-sided sign-flip p, "
        f"at least 2/2^n; fewer than {FEWEST} seeds are always undecided. A claim about several comparisons holds if "
        "every one does; the table shows the least favourable of them. `validation, best epoch` decides, as in the "
        "paper; the last epoch and test are told below. Every row is of one scale, the largest at which it was run "
        f"with at least {FEWEST} seeds; what a larger one shows with fewer is told below too.",
        *_scale_note(scale),
        "## Claims",
        _grid(["id", "claim", "verdict", "effect [95 %]", "n", "p", "scale or source", "where"], claims, scale),
        "## Questions",
        _grid(["id", "question", "", "answer [95 %]", "n", "p", "scale or source", "where"], questions, scale),
        "## Numbers",
        *(_paragraph(row) for row in [*claims, *questions]),
        f"Every finding: claims.csv. Generated by `make claims` (`python -m gcond.report claims --scale {scale}`); do "
        "not edit.",
    ]
    return "\n\n".join(parts) + "\n"


def _scale_note(scale: str) -> list[str]:
    if scale not in NOT_EVIDENCE:
        return []
    return [f"Runs at scale {scale} exercise the machinery: too small, too few seeds. Quote none of their numbers."]


def _grid(header: list[str], rows: list[Row], scale: str) -> str:
    plain = [name for name in header if name]
    lines = [f"| {' | '.join(plain)} |", f"|{'---|' * len(plain)}"]
    for row in rows:
        cells = [row.claim.id, row.claim.text]
        if "" not in header or row.found is None:
            verdict = f"**{row.verdict}**" if row.verdict in ("holds", "contradicted") else row.verdict
            cells += [verdict] if "" not in header else []
        cells += _effect_cells(row, scale)
        lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines)


def _effect_cells(row: Row, scale: str) -> list[str]:
    found = row.found
    if found is None:
        return ["" if not row.claim.question else NOT_RUN, "", "", "", "below"]
    shown = found.shown
    if shown is None:
        return ["", "", "", found.source, _from(scale, found)]
    source = f"{found.source}, not evidence" if row.claim.question and found.source in NOT_EVIDENCE else found.source
    others = [
        text(each) if each.effect.n == shown.effect.n else f"{text(each)}, n = {each.effect.n}" for each in found.beside
    ]
    numbers = "; ".join([text(shown), *others])
    return [numbers, str(shown.effect.n), sign_flip_text(shown.effect), source, _from(scale, found)]


def _from(scale: str, found: Answer) -> str:
    """The files of `found`, as seen from the page of `scale`."""
    there = f"../{found.source}/" if found.source in SCALES and found.source != scale else ""
    names = found.where.split(", ")
    return ", ".join(name if name.startswith("..") or name == "claims.csv" else there + name for name in names)


def _paragraph(row: Row) -> str:
    claim = row.claim
    heading = f"### {claim.id}: {row.verdict or 'answered'}"
    if claim.question and row.found is not None:
        heading = f"### {claim.id}: {said('answer', row.found.source)}"
    lines = [heading, f"{claim.text}{'' if claim.question else '.'} Measured by: {claim.measured_by}."]
    for found in row.answers:
        beside = found is not row.found
        shown = [f"In the table: {text(found.shown)}."] if found.shown and beside else []
        verdict = f" ({said(found.verdict, found.source)})" if beside and found.verdict else ""
        lines.append(f"*{found.source[:1].upper()}{found.source[1:]}{verdict}.*")
        lines.append("\n".join(f"- {line}" for line in [*shown, *found.words]))
    if row.found is None:
        lines.append(f"Not run. {command(claim)} Needs: {claim.needs}.")
    return "\n\n".join(lines)


def command(claim: Claim, mark: str = "`") -> str:
    return f"Command: {mark}{claim.command}{mark}." if claim.command else "No command yet."


def tidy_csv(rows: list[Row]) -> str:
    """One row per finding; 6 significant digits, empty where there is no number."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(CSV_HEADER)
    for row in rows:
        kind = "question" if row.claim.question else "claim"
        if row.found is None:
            writer.writerow([row.claim.id, kind, NOT_RUN, *[""] * (len(CSV_HEADER) - 3)])
        for found in row.answers:
            for finding in found.findings:
                effect = finding.effect
                ends = [effect.mean, effect.low, effect.high]
                numbers = ["" if value != value else f"{value:.6g}" for value in ends]
                p = "" if effect.p_sign_flip != effect.p_sign_flip else f"{effect.p_sign_flip:.6g}"
                where = [row.claim.id, kind, said(found.verdict, found.source), found.source, finding.about]
                verdict = said(finding.verdict, found.source) if finding.verdict else ""
                writer.writerow([*where, BLOCKS.get(finding.block, ""), *numbers, finding.unit, effect.n, p, verdict])
    return buffer.getvalue()


def plain(rows: list[Row], scale: str) -> str:
    """For the terminal: a line for every claim and question."""
    lines = [f"Claims at scale {scale}, each at the largest scale at which it was run with {FEWEST} seeds:"]
    for row in rows:
        verdict = row.verdict or "answer"
        shown = row.found.shown if row.found else None
        lines.append(f"{row.claim.id:4} {verdict:20} {row.claim.text}")
        if shown:
            lines.append(f"{'':25} {text(shown)}, n = {shown.effect.n}, {row.found.source}")
        if row.found is None:
            lines.append(f"{'':25} {command(row.claim, '')} Needs {row.claim.needs}.")
    return "\n".join(lines)


def report(results: Path, scale: str | None) -> int:
    """Write the pages of `scale`, or of every recorded scale, and print the largest; the exit code."""
    recorded = recorded_scales(results)
    if not recorded:
        raise ValueError(f"nothing to report: no runs.csv in a folder of {results}; --results {RECORDED} has some")
    if scale and scale not in recorded:
        raise ValueError(f"`--scale`: expected one that is recorded ({', '.join(recorded)}), found {scale!r}")
    scales = [scale] if scale else recorded
    judged = {name: judge_all(results, name) for name in scales}
    for name, rows in judged.items():
        write_page(results / name / "CLAIMS.md", page(rows, name))
        write_text(results / name / "claims.csv", tidy_csv(rows))
    print(plain(judged[scales[0]], scales[0]))
    for name in scales:
        print(f"written: {results / name / 'CLAIMS.md'}, {results / name / 'claims.csv'}")
    return 0
