"""C1: where tasks do conflict, what GCond's update gains and what resolving conflicts adds."""

from collections.abc import Sequence

from gcond.report.claims.conflict import frequencies
from gcond.report.claims.evidence import TASKS, Arm, Evidence
from gcond.report.claims.judge import Finding
from gcond.report.claims.tradeoff import UNRESOLVED, arm_name, changes, delta, ran, regime, resolving
from gcond.report.render import grid
from gcond.report.summary.conflict import arbitrating
from gcond.report.summary.say import ABOVE, BELOW, FEW, OPEN, bold, data, place, with_n
from gcond.report.summary.section import Section, dataset_title, not_run

TITLE = "Where tasks do conflict"
COMMAND = "make reproduce-conflict SCALE=sample SEEDS=10"
MEASURES = {"sum": "Weighted sum", "mean": "Mean of the three losses"}
DOES = {BELOW: "lowers it", ABOVE: "raises it", OPEN: "does nothing that can be shown", FEW: "has too few seeds"}


def tradeoff(evidence: Sequence[Evidence]) -> Section:
    own = [
        (each, dataset, arms)
        for each in evidence
        for dataset in reversed(each.datasets)
        if len(arms := ran(each, dataset, regime(each).full)) > 1 and arms[0].strategy == "baseline"
    ]
    if not own:
        return not_run(TITLE, "no run with contradicting tasks at a scale that is evidence", COMMAND)
    answers = [line for each in own for line in _answer(*each)]
    return Section(TITLE, answers, [READING, *(part for each in own for part in _table(*each))])


READING = (
    "A third task wants the inverted image, against L1: its gradient opposes L1's in every pixel. Which image a model "
    "ends at is then decided by the lambdas, and a method that gives one task more takes it from another: so three "
    "measures. The weighted sum, with the lambdas, is what every method here is asked to minimise; the mean over the "
    "three losses counts them alike. In percent of the other's loss by seed, negative is better, bold where the "
    "interval excludes zero and n is at least 6. Validation, best epoch."
)


def _answer(evidence: Evidence, dataset: str, arms: Sequence[Arm]) -> list[str]:
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
    found = [(what, _measured(evidence, dataset, arm, other)) for what, arm, other in pairs]
    for measure, title in MEASURES.items():
        words.append(f"{title}: {'; '.join(_said(what, measured[measure]) for what, measured in found)}.")
    if update:
        shares = [f"{title} {with_n(found[-1][1][task])}" for task, title in TASKS.items()]
        words.append(f"Resolving moves along the trade-off: {', '.join(shares)}.")
    return [" ".join(words)]


def _said(what: str, found: Finding) -> str:
    return f"{what} {DOES[place(found.effect)]} ({with_n(found)})"


def _measured(evidence: Evidence, dataset: str, arm: Arm, other: str) -> dict[str, Finding]:
    return {
        "mean": delta(evidence, dataset, arm, other=other),
        **changes(evidence, dataset, arm, other=other),
    }


def _table(evidence: Evidence, dataset: str, arms: Sequence[Arm]) -> list[str]:
    compared = [(arm, "baseline") for arm in arms[1:]]
    compared += [(arm, UNRESOLVED) for arm in resolving(evidence, dataset, arms[0].variant)]
    lines = [["method", "against", *TASKS.values(), *MEASURES.values(), "n"], []]
    for arm, other in compared:
        found = _measured(evidence, dataset, arm, other)
        cells = [bold(found[key]) for key in (*TASKS, *MEASURES)]
        lines.append([arm_name(arm), Arm(other).label, *cells, str(found["mean"].effect.n)])
    link = f"{evidence.scale}/tables/conflict.md"
    return [
        f"*{dataset_title(evidence, dataset)}, scale {evidence.scale}* ([all numbers]({link}))",
        grid(lines),
    ]
