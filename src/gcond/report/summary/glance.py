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
from gcond.report.summary.say import ABOVE, BELOW, FEW, bold, data, papers, place
from gcond.report.summary.section import best_trivial

HEAD = ["where", "loss", "GCond stochastic against Baseline", "the update alone", "resolving conflicts on top", "n"]
READING = (
    "The update and what resolving adds make up the gap; in percent of Baseline's loss, negative is better, bold where "
    "the interval excludes zero."
)


class Row(NamedTuple):
    where: str
    title: str
    gap: Finding
    update: Finding | None
    on_top: Finding | None
    best: bool


def glance(results: Path, evidence: Sequence[Evidence]) -> list[str]:
    """A sentence that counts, the table, and how good the models are; nothing where no gap was measured."""
    rows = [
        row
        for each in evidence
        for dataset in reversed(each.datasets)
        for at, (parts, mode) in product(settings(each, dataset), ((TRAIN, ""), (EVAL, ", eval mode")))
        for row in _rows(each, dataset, at, parts, mode)
    ]
    if not rows:
        return []
    lines = [HEAD, []]
    for row in rows:
        cells = [bold(found) if found else "not run" for found in (row.gap, row.update, row.on_top)]
        lines.append([row.where, row.title, *cells, str(row.gap.effect.n)])
    counted = _counted([row for row in rows if not row.best and place(row.gap.effect) != FEW])
    return [counted, grid(lines), *_against_trivial(results, evidence)]


def _rows(evidence: Evidence, dataset: str, at: AtRate, parts: Parts, mode: str) -> list[Row]:
    where = f"{data(dataset)}, {evidence.scale}, {at.short}{papers(at.rate)}{mode}"
    found = {title: changes(at.evidence, dataset, metric) for metric, title in METRICS.items()}
    return [
        Row(where, title, own[parts.gap], own.get(parts.update), own.get(parts.on_top), at.best)
        for title, own in found.items()
        if parts.gap in own
    ]


def _counted(rows: Sequence[Row]) -> str:
    if not rows:
        return f"No comparison has enough seeds for a conclusion. {READING}"
    gains = [row for row in rows if place(row.gap.effect) == BELOW]
    alone = [row for row in gains if row.update and place(row.update.effect) == BELOW]
    tops = [place(row.on_top.effect) for row in rows if row.on_top]
    sentences = [
        f"GCond stochastic has a lower loss than Baseline in {len(gains)} of the {len(rows)} comparisons below that "
        "have enough seeds (each arm at its best rate not counted)."
    ]
    if gains:
        sentences.append(
            f"In {len(alone)} of these {len(gains)} its way of smoothing alone has it too: *the update* (EMA inside, "
            "beta1 = 0), which looks at no task's gradient."
        )
    sentences.append(
        f"Resolving conflicts on top of it lowers the loss in {tops.count(BELOW)} of {len(tops)} and raises it in "
        f"{tops.count(ABOVE)}."
    )
    return " ".join([*sentences, READING])


def _against_trivial(results: Path, evidence: Sequence[Evidence]) -> list[str]:
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
