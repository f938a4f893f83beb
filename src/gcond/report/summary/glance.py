"""The answer in one table: GCond's gap to Baseline, and the two changes that it is the sum of."""

from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

from gcond.report.claims.evidence import METRICS, Evidence
from gcond.report.claims.factorial import changes
from gcond.report.claims.judge import Finding
from gcond.report.claims.rates import AtRate
from gcond.report.render import grid
from gcond.report.summary.gap import EVAL, TRAIN, Parts, settings
from gcond.report.summary.say import ABOVE, BELOW, FEW, bold, data, papers, place, span
from gcond.report.summary.section import best_trivial

HEAD = ["where", "loss", "GCond stochastic against Baseline", "the update alone", "resolving conflicts on top", "n"]
READING = (
    "GCond stochastic's gap to Baseline, and the two changes that it is the sum of; in percent of Baseline's loss, "
    "negative is better, bold where the interval excludes zero and n is at least 6."
)


class Row(NamedTuple):
    where: str
    title: str
    gap: Finding
    update: Finding | None
    on_top: Finding | None
    best: bool


def rows(evidence: Sequence[Evidence]) -> list[Row]:
    """Of every setting in which the gap was measured."""
    return [
        row
        for each in evidence
        for dataset in reversed(each.datasets)
        for at, (parts, mode) in product(settings(each, dataset), ((TRAIN, ""), (EVAL, ", eval mode")))
        for row in _rows(each, dataset, at, parts, mode)
    ]


def table(measured: Sequence[Row]) -> list[str]:
    lines = [HEAD, []]
    for row in measured:
        cells = [bold(found) if found else "not run" for found in (row.gap, row.update, row.on_top)]
        lines.append([row.where, row.title, *cells, str(row.gap.effect.n)])
    return [READING, grid(lines)]


def _rows(evidence: Evidence, dataset: str, at: AtRate, parts: Parts, mode: str) -> list[Row]:
    where = f"{data(dataset)}, {evidence.scale}, {at.short}{papers(at.rate)}{mode}"
    found = {title: changes(at.evidence, dataset, metric) for metric, title in METRICS.items()}
    return [
        Row(where, title, own[parts.gap], own.get(parts.update), own.get(parts.on_top), at.best)
        for title, own in found.items()
        if parts.gap in own
    ]


def answers(measured: Sequence[Row]) -> list[str]:
    """Whether GCond gains, and which of the two changes does it: counts over the settings with enough seeds."""
    own = [row for row in measured if not row.best and place(row.gap.effect) != FEW]
    if not own:
        return ["No comparison of GCond with Baseline has enough seeds for a conclusion."] if measured else []
    gains = [row for row in own if place(row.gap.effect) == BELOW]
    losses = [row for row in own if place(row.gap.effect) == ABOVE]
    size = f" ({span(row.gap for row in gains)})" if gains else ""
    first = (
        f"**Does GCond reconstruct better than Baseline?** Its stochastic mode has a lower loss in {len(gains)} of the "
        f"{len(own)} comparisons below that have enough seeds{size}, a higher one in {len(losses)}; each arm at its "
        "best rate is not counted."
    )
    alone = [row for row in gains if row.update and place(row.update.effect) == BELOW]
    tops = [place(row.on_top.effect) for row in own if row.on_top]
    smoothing = (
        f"In {len(alone)} of these {len(gains)} its way of smoothing the gradient alone has it too: *the update* (EMA "
        "inside, beta1 = 0), which looks at no task's gradient. "
    )
    second = (
        f"**Are resolved conflicts the cause?** {smoothing if gains else ''}Resolving conflicts on top of it lowers "
        f"the loss in {tops.count(BELOW)} of {len(tops)} and raises it in {tops.count(ABOVE)}."
    )
    return [first, second]


def how_good(results: Path, evidence: Sequence[Evidence]) -> list[str]:
    """How many runs have a lower L1 than the best predictor that needs no training, of each data set."""
    parts, lost = [], False
    for each in evidence:
        best = best_trivial(results, each.scale)
        for dataset in reversed(each.datasets):
            own = each.runs[each.runs.dataset == dataset]
            if dataset in best.index:
                better = [int((own[column] < best.loc[dataset, column]).sum()) for column in best.columns]
                lost |= better[1] < len(own)
                shares = " and ".join(
                    f"{count} of {len(own)} runs on {block}"
                    for count, block in zip(better, ("validation", "test"), strict=True)
                )
                parts.append(f"{shares} ({data(dataset)}, {each.scale})")
    if not parts:
        return []
    caution = " Where few do on test, what sets methods apart on validation need not hold for other images."
    words = "**How good the models are.** A lower L1 than the best predictor that needs no training:"
    return [f"{words} {'; '.join(parts)}.{caution if lost else ''}"]
