"""What a pilot suggested before the study (one or two seeds, under 100 steps), each judged like a claim.

A hypothesis is a conjunction of findings with regions; what "about all", "gone", "mostly" mean is stated with it.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gcond.report.claims.conflict import frequencies
from gcond.report.claims.evidence import METRICS, Arm, Evidence, per_run
from gcond.report.claims.factorial import CHANGES, changes, share
from gcond.report.claims.judge import MARGIN, Finding, conjunction, text, weakest
from gcond.report.claims.rates import AtRate, at_own_rate, at_rates
from gcond.report.claims.reconstruction import BASELINE, STOCHASTIC
from gcond.report.lineup import PAPER_RATE
from gcond.report.records import read_table
from gcond.report.render import grid
from gcond.report.statistics import (
    CONTRADICTED,
    FEWEST,
    HOLDS,
    NOT_RUN,
    REGIONS,
    UNDECIDED,
    Effect,
    paired,
    single,
)
from gcond.report.summary.conflict import body_less_encoder, by_seed, early_less_late
from gcond.report.summary.gap import CONTROL, TRAIN, step_size
from gcond.report.summary.say import with_n
from gcond.report.summary.section import Section, best_trivial

TITLE = "What a pilot suggested beforehand"
ABOUT_ALL = 80.0  # percent of the gap
ABSENT = 5.0  # percent of the steps
NOISY = 0.5  # a split-half cosine below it: less signal than noise
MANY = 10.0  # percent of the runs
GCOND = (STOCHASTIC, Arm("gcond_sequential"), Arm("gcond_pure"), Arm("gcond_sequential_pure"))
O1, O6, O10 = (f"make reproduce-{name} SCALE=sample SEEDS=10" for name in ("o1", "o6", "o10"))
SAID = {HOLDS: "supported", CONTRADICTED: "contradicted", UNDECIDED: "undecided", NOT_RUN: "not run"}
Look = Callable[[Evidence], list[Finding]]


@dataclass(frozen=True)
class Hypothesis:
    """`look`: findings with regions, of one scale; none where it was not run. `criterion`: what its words mean."""

    text: str
    criterion: str
    command: str
    look: Look = lambda evidence: []
    elsewhere: Callable[[Path, Sequence[Evidence]], list[Finding]] = lambda results, evidence: []
    source: str = ""  # of what is found elsewhere


@dataclass(frozen=True)
class Judged:
    hypothesis: Hypothesis
    verdict: str
    findings: tuple[Finding, ...]
    source: str


def judge_all(results: Path, evidence: Sequence[Evidence]) -> list[Judged]:
    return [_judged(each, results, evidence) for each in HYPOTHESES]


def _judged(hypothesis: Hypothesis, results: Path, evidence: Sequence[Evidence]) -> Judged:
    for each in evidence:
        if findings := hypothesis.look(each):
            return Judged(hypothesis, conjunction(findings), tuple(findings), each.scale)
    if findings := hypothesis.elsewhere(results, evidence):
        return Judged(hypothesis, conjunction(findings), tuple(findings), hypothesis.source)
    return Judged(hypothesis, NOT_RUN, (), "")


def section(results: Path, evidence: Sequence[Evidence]) -> Section:
    judged = judge_all(results, evidence)
    lines = [["hypothesis", "that is", "verdict", "number that decides", "scale"], []]
    for each in judged:
        verdict = SAID[each.verdict]
        shown = f"**{verdict}**" if each.verdict in (HOLDS, CONTRADICTED) else verdict
        lines.append([each.hypothesis.text, each.hypothesis.criterion, shown, _number(each), each.source])
    reading = (
        "One or two seeds, under 100 steps: what the study was built to overturn. Supported: every number lies, with "
        "its whole 95 % interval, where the hypothesis says; contradicted: one lies wholly elsewhere (p adjusted for "
        f"their number, Holm); undecided: neither, or fewer than {FEWEST} seeds. The number shown is the least "
        "favourable."
    )
    return Section(TITLE, [], [reading, grid(lines)])


def _number(judged: Judged) -> str:
    shown = weakest(judged.findings)
    if shown is None:
        return f"`{judged.hypothesis.command}`"
    exact = shown.effect.n == 1 or math.isnan(shown.effect.low)
    count = f" (least favourable of {len(judged.findings)})" if len(judged.findings) > 1 else ""
    return (text(shown) if exact else f"{shown.about} {with_n(shown)}") + count


# Updates


def _paper_rate(evidence: Evidence) -> AtRate | None:
    return next((at for at in at_rates(evidence) if at.rate == PAPER_RATE), None)


def update_gives_the_gain(evidence: Evidence) -> list[Finding]:
    at = _paper_rate(evidence)
    findings = []
    for dataset in evidence.datasets if at else ():
        for metric in METRICS:
            if at and at.evidence.ran(dataset, BASELINE, CONTROL, STOCHASTIC):
                gap = changes(at.evidence, dataset, metric)[TRAIN.gap]
                part = share(at.evidence, dataset, metric)
                findings.append(replace(gap, about=f"{gap.about}, {at.words}", region=REGIONS["lower"]))
                if part:
                    part = replace(part, about=f"{part.about}, {at.words}", region=(ABOUT_ALL, math.inf))
                    findings.append(part)
    return findings


def update_doubles_the_step(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        for dataset in evidence.datasets:
            size = step_size(at, dataset)
            if size:
                about = f"{dataset}: step of Baseline integrated over Baseline's, {at.words}"
                findings.append(Finding(about, size, "ratio", (2.0, math.inf)))
    return findings


def gain_is_gone(evidence: Evidence) -> list[Finding]:
    at = at_own_rate(evidence)
    if at.rate == PAPER_RATE:
        return []
    findings = []
    for dataset in evidence.datasets:
        for metric in METRICS:
            if evidence.ran(dataset, BASELINE, STOCHASTIC):
                gap = changes(evidence, dataset, metric)[TRAIN.gap]
                findings.append(replace(gap, about=f"{gap.about}, {at.words}", region=(-MARGIN, math.inf)))
    return findings


# Model mode


def eval_mode_gives_no_gain(evidence: Evidence) -> list[Finding]:
    return [
        replace(found, about=f"{found.about}, {at.words}", region=(-MARGIN, math.inf))
        for at in at_rates(evidence)
        for dataset in evidence.datasets
        if at.evidence.ran(dataset, BASELINE)
        for metric in METRICS
        for change, found in changes(at.evidence, dataset, metric).items()
        if change.kind == "mode"
    ]


def eval_mode_shows_more_conflict(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        for dataset in evidence.datasets if len(at.evidence.steps) else ():
            for change in CHANGES:
                if change.kind == "mode":
                    rows = [at.evidence.own(at.evidence.steps, dataset, arm) for arm in (change.ours, change.theirs)]
                    shares = [100 * per_run(own, "conflicts", "cosine_steps") for own in rows]
                    if all(len(own) for own in shares):
                        about = f"{dataset}: share of steps with a conflict, {change.name}, {at.words}"
                        findings.append(Finding(about, paired(*shares), "%", REGIONS["higher"]))
    return findings


# Conflict


def _gcond_runs(evidence: Evidence, dataset: str) -> list[tuple[str, Evidence, Arm]]:
    return [
        (at.words, at.evidence, arm)
        for at in at_rates(evidence)
        if len(at.evidence.steps)
        for arm in GCOND
        if len(at.evidence.own(at.evidence.steps, dataset, arm))
    ]


def never_critical(evidence: Evidence) -> list[Finding]:
    """Steps in the critical zone, of all runs in train mode: exact."""
    findings = []
    for words, own, arm in _gcond_runs(evidence, "ct"):
        zones = per_run(own.own(own.steps, "ct", arm), "zone_critical")
        if zones.empty:
            continue
        reached = int((zones > 0).sum())
        about = f"ct: runs of {arm.label} that ever reach the critical zone, of {len(zones)}, {words}"
        given = CONTRADICTED if reached else HOLDS if len(zones) >= FEWEST else UNDECIDED
        findings.append(
            Finding(about, Effect(len(zones), reached, math.nan, math.nan, math.nan), "number", given=given)
        )
    return findings


def transient(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        for arm in (BASELINE, STOCHASTIC):
            found = early_less_late(at.evidence, "ct", arm)
            if found:
                findings.append(replace(found, about=f"{found.about}, {at.words}", region=REGIONS["higher"]))
    return findings


def absent_on_photographs(evidence: Evidence) -> list[Finding]:
    findings = []
    for dataset in set(evidence.datasets) - {"ct"}:
        for arm in (BASELINE, STOCHASTIC):
            own = frequencies(evidence, dataset, arm) if len(evidence.steps) else {}
            if found := own.get("steps with a conflict"):
                findings.append(replace(found, region=(-math.inf, ABSENT)))
    return findings


def in_the_decoder(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        found = body_less_encoder(at.evidence, "ct") if len(at.evidence.probes) else None
        if found:
            findings.append(replace(found, about=f"{found.about}, {at.words}", region=REGIONS["lower"]))
    return findings


def winner_cannot_matter(results: Path, evidence: Sequence[Evidence]) -> list[Finding]:
    """From the resolver's own samples: in the mild zone winner and loser are projected by the same share."""
    path = results / "table1" / "zones.csv"
    if not path.exists():
        return []
    zones = read_table(path, ("logic", "zone"), ("logic", "zone", "s_w", "s_l"))
    mild = zones[(zones.logic == "smooth") & (zones.zone == "weak")]
    largest = float((mild.s_w - mild.s_l).abs().max())
    about = f"largest difference of the winner's and the loser's share in the mild zone, {len(mild)} cosines sampled"
    given = HOLDS if largest == 0 else CONTRADICTED
    return [Finding(about, Effect(len(mild), largest, math.nan, math.nan, math.nan), "number", given=given)]


# Noise


def l1_is_mostly_noise(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        for dataset in evidence.datasets if len(at.evidence.probes) else ():
            own = by_seed(at.evidence, dataset, BASELINE, "self_cosine/l1/all")
            if len(own):
                about = f"{dataset}, Baseline: cosine of L1's gradient with itself on other samples, {at.words}"
                findings.append(Finding(about, single(own), "cosine", (-math.inf, NOISY)))
    return findings


def sharing_raises_the_cosine(evidence: Evidence) -> list[Finding]:
    findings = []
    for at in at_rates(evidence):
        for dataset in evidence.datasets if len(at.evidence.probes) else ():
            shared, apart = (
                by_seed(at.evidence, dataset, BASELINE, f"{name}/all") for name in ("cosine", "cosine_disjoint")
            )
            if len(shared) and len(apart):
                about = f"{dataset}, Baseline: cosine between tasks, shared less disjoint samples, {at.words}"
                findings.append(Finding(about, paired(shared, apart), "cosine", REGIONS["higher"]))
    return findings


def trivial_beats_many(results: Path, evidence: Sequence[Evidence]) -> list[Finding]:
    """Exact, of every finished run of the largest scale that is evidence."""
    own = next((each for each in evidence if len(each.runs)), None)
    if own is None:
        return []
    best = best_trivial(results, own.scale).best_val_l1
    lost, count = int((own.runs.best_val_l1 >= own.runs.dataset.map(best)).sum()), len(own.runs)
    about = f"runs at scale {own.scale} whose best L1 a predictor without training reaches ({lost} of {count})"
    given = HOLDS if 100 * lost / count > MANY else CONTRADICTED
    return [Finding(about, Effect(count, 100 * lost / count, math.nan, math.nan, math.nan), "share", given=given)]


HYPOTHESES = (
    Hypothesis(
        "The update alone (EMA, beta1 = 0) reproduces GCond's gain at learning rate 2e-4",
        f"there is a gain, and the update alone gives at least {ABOUT_ALL:.0f} % of it; L1 and 1 - SSIM",
        f"{O1} MORE=optimizer.lr=2e-4",
        update_gives_the_gain,
    ),
    Hypothesis(
        "It at least doubles the step at equal learning rate",
        "RMS of the step over the learning rate, Baseline integrated over Baseline, mean over the run",
        O1,
        update_doubles_the_step,
    ),
    Hypothesis(
        "At a learning rate fitted to the run the gain is gone",
        f"at the scale's rate GCond stochastic is at most {MARGIN:.0f} % better than Baseline; L1 and 1 - SSIM",
        O1,
        gain_is_gone,
    ),
    Hypothesis(
        "eval mode does not produce the gain",
        f"no arm is more than {MARGIN:.0f} % better in eval mode than in train mode",
        O1,
        eval_mode_gives_no_gain,
    ),
    Hypothesis(
        "eval mode makes conflicts look stronger",
        "share of steps with a conflict, eval less train mode, percentage points",
        O1,
        eval_mode_shows_more_conflict,
    ),
    Hypothesis(
        "On CT the conflict is never critical",
        "no run of GCond (train mode) arbitrates at a cosine below -.8, ever",
        O6,
        never_critical,
    ),
    Hypothesis(
        "On CT the conflict is transient",
        "more frequent in the first fifth of the steps than after it, percentage points",
        O6,
        transient,
    ),
    Hypothesis(
        "On photographs there is no conflict",
        f"in fewer than {ABSENT:.0f} % of the steps",
        O6,
        absent_on_photographs,
    ),
    Hypothesis(
        "The conflict sits in the decoder body, not in the encoder",
        "cosine between the tasks on shared samples, decoder body less encoder, below zero",
        O10,
        in_the_decoder,
    ),
    Hypothesis(
        "In the mild zone the choice of the winner has no effect",
        "the resolver projects both by the same share there",
        "make reproduce-table1",
        elsewhere=winner_cannot_matter,
        source="the resolver",
    ),
    Hypothesis(
        "The L1 gradient is mostly noise at small windows",
        f"cosine with itself on other samples below {NOISY}, Baseline, all parameters",
        O10,
        l1_is_mostly_noise,
    ),
    Hypothesis(
        "Tasks that share their samples show a higher cosine",
        "shared less disjoint samples above zero, Baseline, all parameters",
        O10,
        sharing_raises_the_cosine,
    ),
    Hypothesis(
        "Trivial predictors beat many short runs",
        f"more than {MANY:.0f} % of the runs, at the largest scale",
        "make reproduce-o1 SCALE=sample SEEDS=10",
        elsewhere=trivial_beats_many,
        source="all runs",
    ),
)
