"""C1: where tasks do conflict, what GCond's update gains and what resolving conflicts adds."""

from collections.abc import Sequence
from itertools import starmap
from pathlib import Path

from gcond.report.claims.conflict import frequencies
from gcond.report.claims.evidence import TASKS, Arm, Evidence
from gcond.report.claims.judge import Finding, number
from gcond.report.claims.tradeoff import (
    LAMBDAS,
    UNRESOLVED,
    arm_name,
    mean_image,
    measures,
    ran,
    regime,
    resolving,
    weighted,
)
from gcond.report.records import read_csv
from gcond.report.render import grid
from gcond.report.summary.conflict import arbitrating
from gcond.report.summary.say import ABOVE, BELOW, FEW, OPEN, bold, data, place
from gcond.report.summary.section import Section, dataset_title, not_run

TITLE = "Where tasks do conflict"
COMMAND = "make reproduce-conflict SCALE=sample SEEDS=10"
MEASURES = {"sum": "weighted sum", "mean": "mean of the three"}
BLOCKS = {"best_val": "on validation", "best_test": "on test"}
DOES = {BELOW: "lowers it", ABOVE: "raises it", OPEN: "does nothing that can be shown", FEW: "has too few seeds"}


def tradeoff(results: Path, evidence: Sequence[Evidence]) -> Section:
    own = [
        (each, dataset, arms)
        for each in evidence
        for dataset in reversed(each.datasets)
        if len(arms := ran(each, dataset, regime(each).full)) > 1 and arms[0].strategy == "baseline"
    ]
    if not own:
        return not_run(TITLE, "no run with contradicting tasks at a scale that is evidence", COMMAND)
    answers = [line for each in own for line in _answer(results, *each)]
    return Section(TITLE, answers, [READING, *(part for each in own for part in _table(*each))])


READING = (
    "A third task wants the inverted image, against L1: its gradient opposes L1's in every pixel. Which image a model "
    "ends at is then decided by the lambdas, and a method that gives one task more takes it from another: so three "
    "measures. The weighted sum, with the lambdas, is what every method here is asked to minimise; the mean over the "
    "three losses counts them alike. In percent of the other's loss by seed, negative is better, bold where the "
    "interval excludes zero and n is at least 6. On validation and, where said, on test, at the epoch with the "
    "smallest weighted sum on validation."
)


def _answer(results: Path, evidence: Evidence, dataset: str, arms: Sequence[Arm]) -> list[str]:
    """Of stochastic GCond, and of the two parts of what it does: its update, and resolving on top of it."""
    by_name = {arm.strategy: arm for arm in arms}
    ours, update = by_name.get("gcond_stochastic"), by_name.get(UNRESOLVED)
    if not ours:
        return []
    words = [f"**And where tasks contradict each other?** {data(dataset)}, L1 against its inverted image:"]
    arbitrated = arbitrating([frequencies(evidence, dataset, ours)])
    words += [f"GCond stochastic {arbitrated}."] if arbitrated else []
    pairs = [("GCond stochastic against Baseline", ours, "baseline")]
    if update:
        pairs += [("the update alone", update, "baseline"), ("resolving conflicts on top of it", ours, UNRESOLVED)]
    for block, where in BLOCKS.items():
        found = [(what, measures(evidence, dataset, arm, block, other)["sum"]) for what, arm, other in pairs]
        words.append(f"Weighted sum, which all minimise, {where}: {'; '.join(starmap(_said, found))}.")
    if update:
        moved = measures(evidence, dataset, ours, "best_val", UNRESOLVED)
        shares = [f"{title} {number(moved[task].effect, '%')}" for task, title in TASKS.items()]
        words.append(f"Resolving moves along the trade-off: {', '.join(shares)}.")
    return [" ".join([*words, *_against_the_mean_image(results, evidence, dataset, arms)])]


def _against_the_mean_image(results: Path, evidence: Evidence, dataset: str, arms: Sequence[Arm]) -> list[str]:
    """In how many runs training was of use."""
    recorded = read_csv(results / evidence.scale / "runs.csv")
    parts = []
    for block, where in BLOCKS.items():
        image = mean_image(recorded, dataset, block)
        if image:
            runs = [evidence.by_seed(dataset, arm) for arm in arms]
            sums = [weighted({task: own[f"{block}_{task}"] for task in LAMBDAS}) for own in runs]
            better = sum(int((own < weighted(image)).sum()) for own in sums)
            parts.append(f"{better} of {sum(map(len, runs))} runs {where}")
    said = "A lower weighted sum than the mean image's, which needs no training, have"
    return [f"{said} {' and '.join(parts)}."] if parts else []


def _said(what: str, found: Finding) -> str:
    return f"{what} {DOES[place(found.effect)]} ({number(found.effect, found.unit)})"


def _table(evidence: Evidence, dataset: str, arms: Sequence[Arm]) -> list[str]:
    compared = [(arm, "baseline") for arm in arms[1:]]
    compared += [(arm, UNRESOLVED) for arm in resolving(evidence, dataset, arms[0].variant)]
    on_test = [f"test, {title}" for title in MEASURES.values()]
    lines = [["method", "against", *TASKS.values(), *MEASURES.values(), *on_test, "n"], []]
    for arm, other in compared:
        found, tested = (measures(evidence, dataset, arm, block, other) for block in BLOCKS)
        cells = [*(bold(found[key]) for key in (*TASKS, *MEASURES)), *(bold(tested[key]) for key in MEASURES)]
        lines.append([arm_name(arm), Arm(other).label, *cells, str(found["mean"].effect.n)])
    link = f"{evidence.scale}/tables/conflict.md"
    return [
        f"*{dataset_title(evidence, dataset)}, scale {evidence.scale}* ([all numbers]({link}))",
        grid(lines),
    ]
