"""The overview figure: every change of O1 with its interval, at each learning rate, on one axis."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from gcond.report.claims.evidence import METRICS, Evidence
from gcond.report.claims.factorial import changes
from gcond.report.claims.judge import Finding
from gcond.report.claims.rates import AtRate
from gcond.report.statistics import FEWEST
from gcond.report.summary.gap import NAMED, SHOWN, settings

LOOKS = (("#000000", "o"), ("#D55E00", "^"), ("#0072B2", "s"), ("#009E73", "D"))
READING = (
    "Large, with its 95 % t-interval: mean over seeds; small: single seeds; hollow: fewer than six seeds. Left of the "
    "line: lower loss. What the intervals leave open is open."
)


def draw(evidence: Sequence[Evidence]) -> Figure | None:
    """Of the first scale that has any; a row of panels for each data set, a panel for each loss."""
    for each in evidence:
        datasets = [dataset for dataset in reversed(each.datasets) if settings(each, dataset)]
        if datasets:
            return _draw(each, datasets)
    return None


def _draw(evidence: Evidence, datasets: list[str]) -> Figure:
    found = {dataset: settings(evidence, dataset) for dataset in datasets}
    shown = {dataset: _shown(own, dataset) for dataset, own in found.items()}
    rates = dict.fromkeys(each.short for own in found.values() for each in own)
    looks = dict(zip(rates, cycle(LOOKS), strict=False))
    height = sum(0.55 * len(own) for own in shown.values()) + 1.0 * len(datasets) + 1.3
    figure = Figure(figsize=(11.5, height), layout="constrained")
    ratios = [len(own) + 1 for own in shown.values()]
    grid = figure.subplots(len(datasets), len(METRICS), squeeze=False, sharey="row", height_ratios=ratios)
    for row, dataset in zip(grid, datasets, strict=True):
        for axes, (metric, title) in zip(row, METRICS.items(), strict=True):
            _panel(axes, found[dataset], dataset, metric, shown[dataset], looks)
            axes.set_title(f"{dataset}: {title}", fontsize=10)
    marks = [Line2D([], [], color=colour, marker=marker, linewidth=1.6) for colour, marker in looks.values()]
    figure.legend(marks, looks, loc="outside lower center", ncols=len(looks), frameon=False, fontsize=9)
    devices = " and ".join(sorted(set(evidence.runs.device) - {""}))
    figure.suptitle(
        f"What each change does to the loss, scale {evidence.scale}; {evidence.model}; {devices}\n"
        "change in percent of Baseline's loss at the same learning rate, validation, best epoch",
        fontsize=10,
    )
    return figure


def _shown(own: list[AtRate], dataset: str) -> list[str]:
    there = [changes(each.evidence, dataset, "l1") for each in own]
    return [name for name in SHOWN if any(NAMED[name] in found for found in there)]


def _panel(
    axes: Axes, own: list[AtRate], dataset: str, metric: str, names: list[str], looks: Mapping[str, tuple[str, str]]
) -> None:
    """`looks`: colour and marker of each learning rate, the same in all panels."""
    axes.axvline(0, color="0.4", linewidth=0.9)
    axes.grid(color="0.92", linewidth=0.6, axis="x")
    width = 0.7 / len(own)
    for place, each in enumerate(own):
        colour, marker = looks[each.short]
        found = changes(each.evidence, dataset, metric)
        for row, name in enumerate(names):
            if NAMED[name] in found:
                _mark(axes, found[NAMED[name]], row + width * (place - (len(own) - 1) / 2), colour, marker)
    axes.set_yticks(range(len(names)), [SHOWN[name] for name in names], fontsize=9)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_xlabel("percent of Baseline", fontsize=9)
    _limit(axes, [found for each in own for change, found in changes(each.evidence, dataset, metric).items()
                  if change.name in names])  # fmt: skip


def _mark(axes: Axes, found: Finding, place: float, colour: str, marker: str) -> None:
    effect = found.effect
    axes.plot(effect.values, np.full(len(effect.values), place), color=colour, marker=marker, markersize=2.5,
              alpha=0.4, linestyle="none")  # fmt: skip
    if not np.isnan(effect.low):
        axes.plot([effect.low, effect.high], [place, place], color=colour, linewidth=1.6)
    axes.plot([effect.mean], [place], color=colour, marker=marker, markersize=6, linestyle="none",
              markerfacecolor=colour if effect.n >= FEWEST else "white")  # fmt: skip


def _limit(axes: Axes, found: list[Finding]) -> None:
    """All seeds; of intervals what lies within twice the largest difference: few seeds make them endless."""
    seeds = [value for each in found for value in each.effect.values] or [0.0]
    most = 2 * max(map(abs, seeds))
    ends = [end for each in found for end in (each.effect.low, each.effect.high) if abs(end) <= most]
    low, high = min([*seeds, *ends, -0.1]), max([*seeds, *ends, 0.1])
    room = 0.06 * (high - low)
    axes.set_xlim(low - room, high + room)
