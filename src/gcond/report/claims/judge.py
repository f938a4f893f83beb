"""A claim, what was found about it, and how findings add up to a verdict. The verdict comes from numbers alone."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from gcond.report.claims.evidence import BLOCKS, CLASSES, TASKS, Arm, Evidence, column
from gcond.report.statistics import (
    CONTRADICTED,
    FEWEST,
    HOLDS,
    LEVEL,
    REGIONS,
    UNDECIDED,
    Effect,
    holm,
    paired,
    tost,
    within,
)

MARGIN = 2.0  # percent of Baseline's value: what counts as equal (T2c)
SIDE_BY_SIDE = 8  # comparisons that are listed one by one; more are in claims.csv
FREE = (-math.inf, math.inf)
FORMS = {  # unit -> number, and what follows it
    "%": ("{:+.1f}", " %"),
    "ratio": ("{:.2f}", ""),
    "cosine": ("{:+.2f}", ""),
    "correlation": ("{:+.2f}", ""),
    "difference": ("{:+.3f}", ""),
    "share": ("{:.1f}", " %"),
    "number": ("{:.3g}", ""),
}


@dataclass(frozen=True)
class Finding:
    """One number with its interval. `region`: where the claim says it lies; FREE for an answer to a question."""

    about: str
    effect: Effect
    unit: str = "%"  # how it is printed: one of FORMS
    region: tuple[float, float] = FREE
    block: str = ""  # of BLOCKS; "" where that makes no difference
    given: str = ""  # a verdict by another test than the interval's
    remarks: tuple[str, ...] = ()

    @property
    def verdict(self) -> str:
        if self.given or self.region == FREE:
            return self.given
        return within(self.effect, *self.region)

    @property
    def p_against(self) -> float:
        """p of the mean lying outside the region by chance; 1 where it lies inside."""
        lowest, highest = self.region
        if self.region == FREE:  # an exact check
            return float(self.given != CONTRADICTED)
        if lowest <= self.effect.mean <= highest:
            return 1.0
        return self.effect.p_against(highest if self.effect.mean > highest else lowest)

    @property
    def slack(self) -> float:
        """How far the interval sticks out of the region, in widths of the effect's unit; nan first."""
        lowest, highest = self.region
        ends = (self.effect.low, self.effect.high)
        if any(map(math.isnan, ends)):
            ends = (self.effect.mean, self.effect.mean)
        return max(ends[1] - highest, lowest - ends[0])


@dataclass(frozen=True)
class Answer:
    """`shown`: the finding that stands in the row, of a conjunction its weakest; `beside` it others.
    `source`: scale, device or toy."""

    verdict: str  # "" for a question
    findings: tuple[Finding, ...]
    shown: Finding | None
    words: tuple[str, ...] = ()
    where: str = ""
    source: str = ""
    beside: tuple[Finding, ...] = ()


@dataclass(frozen=True)
class Claim:
    id: str
    text: str
    measured_by: str
    command: str  # what would run it
    needs: str  # that this takes, besides time
    look: Callable[[Evidence], Answer | None] = lambda evidence: None
    elsewhere: Callable[[Path], Answer | None] = lambda results: None  # results that belong to no scale
    question: bool = field(default=False)


def compare(
    evidence: Evidence,
    dataset: str,
    ours: Arm,
    theirs: Arm,
    metric: str,
    direction: str = "",
    *,
    block: str = "best_val",
    reference: Arm | None = None,
) -> Finding:
    """ours - theirs by seed, in percent of the mean of `reference` (default: of theirs)."""
    a, b = (evidence.by_seed(dataset, arm)[column(block, metric)] for arm in (ours, theirs))
    dropped, remarks = evidence.comparable(dataset, ours, theirs)
    a, b = a[~a.index.isin(dropped)], b[~b.index.isin(dropped)]
    effect = paired(a, b)
    base = b if reference is None else evidence.by_seed(dataset, reference)[column(block, metric)]
    shared = a.index.intersection(b.index)
    if base.reindex(shared).notna().any():
        base = base.reindex(shared).dropna()
    effect = effect.times(100 / float(base.mean())) if len(base) else effect
    if effect.missing:
        remarks.append(f"seeds without a partner: {', '.join(map(str, effect.missing))} ({ours.label}, {theirs.label})")
    about = f"{dataset} {(TASKS | CLASSES)[metric]}: {ours.label} vs {theirs.label}"
    about += f", in percent of {reference.label}" if reference else ""
    region = REGIONS[direction] if direction else FREE
    return Finding(about, effect, region=region, block=block, remarks=tuple(remarks))


def equivalent(finding: Finding, margin: float = MARGIN) -> Finding:
    """The same difference, judged by TOST."""
    test = tost(finding.effect.values, margin)
    return replace(finding, region=(-margin, margin), given=test.verdict)


def conjunction(findings: Sequence[Finding], missing: Sequence[str] = ()) -> str:
    """Holds if every finding holds at 95 % (intersection-union) and none is missing; contradicted if one is, p
    adjusted over all findings (Holm), since the more are looked at the sooner one looks bad by chance."""
    against = holm([finding.p_against for finding in findings])
    for finding, p in zip(findings, against, strict=True):
        if finding.verdict == CONTRADICTED and p <= 1 - LEVEL + 1e-12:
            return CONTRADICTED
    if findings and not missing and all(finding.verdict == HOLDS for finding in findings):
        return HOLDS
    return UNDECIDED


def weakest(findings: Sequence[Finding]) -> Finding | None:
    order = {CONTRADICTED: 0, UNDECIDED: 1, HOLDS: 2}
    return min(findings, key=lambda found: (order[found.verdict], -found.slack), default=None)


def judge(
    findings: Sequence[Finding], missing: Sequence[str] = (), words: Sequence[str] = (), where: str = ""
) -> Answer | None:
    """The answer to a claim that says all of `findings`; where blocks differ, the best validation epoch decides."""
    blocks = {block: [found for found in findings if found.block == block] for block in ("", *BLOCKS)}
    deciding = blocks[""] + blocks["best_val"]
    if not deciding:
        return None
    verdict = conjunction(deciding, missing)
    said = [count(deciding, "" if blocks[""] else BLOCKS["best_val"])]
    for block in ("last_val", "best_test"):
        if not blocks[block]:
            continue
        other = conjunction(blocks[""] + blocks[block], missing)
        note = "" if other == verdict else f" Judged by it, the claim would be: {other}."
        said.append(count(blocks[block], BLOCKS[block]) + note)
    if len(deciding) <= SIDE_BY_SIDE:
        said += side_by_side(findings)
    if missing:
        said.append(f"Not run: {'; '.join(missing)}.")
    return Answer(verdict, tuple(findings), weakest(deciding), (*said, *words, *remarks(findings)), where)


def side_by_side(findings: Sequence[Finding]) -> list[str]:
    """A line for each comparison: the deciding number and its verdict, then last epoch and test."""
    lines = []
    for about in dict.fromkeys(found.about for found in findings):
        own = [found for found in findings if found.about == about]
        first, *rest = [
            f"{BLOCKS.get(found.block, '').removeprefix('validation, ')} {number(found.effect, found.unit)}".strip()
            for found in own
        ]
        lines.append(f"{about}: {'; '.join([first, *rest])}.")
    return lines


def count(findings: Sequence[Finding], title: str) -> str:
    """ "Validation, best epoch: of 4 findings 1 hold, 0 contradict, 3 undecided; …" """
    found = [finding.verdict for finding in findings]
    held, against, open_ = (found.count(word) for word in (HOLDS, CONTRADICTED, UNDECIDED))
    title = f"{upper(title)}: " if title else ""
    inside = sum(lowest <= f.effect.mean <= highest for f in findings for lowest, highest in [f.region])
    exact = all(finding.region == FREE for finding in findings)
    mean = "" if exact else f"; the mean lies where the claim says in {inside}"
    return f"{title or 'All: '}of {len(found)} findings {held} hold, {against} contradict, {open_} undecided{mean}."


def remarks(findings: Sequence[Finding]) -> list[str]:
    """Each once, in order; few seeds are said once for all."""
    said = list(dict.fromkeys(remark for found in findings for remark in found.remarks))
    more = [f"and {len(said) - 3} remarks like these"] if len(said) > 4 else []
    lines = [f"{'; '.join([*(said[:3] if more else said), *more])}."] if said else []
    ns = sorted({found.effect.n for found in findings if found.effect.values})
    if ns and ns[0] < FEWEST and any(found.region != FREE for found in findings):
        lines.append(f"Fewer than {FEWEST} seeds (n = {_listed(ns)}) are always undecided.")
    return lines


def _listed(numbers: Sequence[int]) -> str:
    return str(numbers[0]) if len(numbers) == 1 else f"{numbers[0]} to {numbers[-1]}"


def answer(
    findings: Sequence[Finding], shown: Finding | None = None, words: Sequence[str] = (), where: str = ""
) -> Answer | None:
    """To a question: no verdict."""
    if not findings:
        return None
    return Answer("", tuple(findings), shown or findings[0], (*words, *remarks(findings)), where)


def text(finding: Finding) -> str:
    """ "ct L1: GCond vs Baseline -3.1 % [-4.0, -2.2]"."""
    return f"{finding.about} {number(finding.effect, finding.unit)}"


def number(effect: Effect, unit: str) -> str:
    """ "-3.1 % [-4.0, -2.2]"; without an interval where there is none."""
    form, after = FORMS[unit]
    if math.isnan(effect.mean):
        return "no number"
    ends = [] if math.isnan(effect.low) else [form.format(effect.low), form.format(effect.high)]
    return f"{form.format(effect.mean)}{after}" + (f" [{', '.join(ends)}]" if ends else "")


def upper(text: str) -> str:
    return text[:1].upper() + text[1:]
