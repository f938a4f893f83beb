"""O6: how often there is a conflict, how often a method changes anything, and by how much."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from gcond.report.claims.conflict import FREQUENCIES, frequencies, trained
from gcond.report.claims.evidence import Arm
from gcond.report.claims.judge import Finding, number
from gcond.report.figures import style
from gcond.report.figures.lines import positions
from gcond.report.pages.page import Page, command, finish, numbers, table
from gcond.report.pages.source import Run, Source, load, name, nothing

TITLE = "O6: how often GCond changes anything"
COLUMNS = {
    "steps with a conflict": "steps with a conflict",
    "steps that were resolved": "steps resolved",
    "median correction": "median correction",
    "mean correction": "mean correction",
    "times in the weak zone": "zone weak",
    "times in the main zone": "zone main",
    "times in the critical zone": "zone critical",
}
READING = (
    "Mean over n seeds, with a 95 % t-interval over seeds. Zones: GCond's alone. A dash: this method does not "
    "have the number, or it was not recorded. Methods that weight tasks at every step (GradNorm) count every step "
    "as resolved."
)
KINDS = (
    "**Three quantities, not one.** Baseline and the sequential GCond: the cosine of gradients accumulated over "
    "the window, both tasks on the same images, whose common noise raises it. Stochastic GCond (GCond pure and "
    "lion too): accumulated as well, but on different images for each task. CAGrad, GradDrop, GradNorm and PCGrad "
    "resolve every micro-batch: a step of theirs has a conflict if any of its micro-batches has one, which single "
    "noisy micro-batches do often, and `resolved` is the share of micro-batches. Compare within one kind only; "
    "the figure has a row for each."
)
PANELS = {  # of the figure: like with like
    "same images for both tasks, accumulated": ("baseline", "baseline_integrated", "gcond_sequential"),
    "different images for each task, accumulated": ("gcond_stochastic", "gcond_pure", "gcond_lion"),
    "same images, any micro-batch of the step": ("cagrad", "graddrop", "gradnorm", "pcgrad"),
}
FIGURE_BINS = 25
SHOWN = (
    "Share of the measured steps at which the gradients of the two tasks conflict (cosine below zero), over "
    "training. Thick: mean over seeds; thin: single seeds. Rows: methods whose tasks share their images, "
    "accumulated over the window; those whose tasks have different images; and those that resolve every "
    "micro-batch, where one conflicting micro-batch counts. Their cosines are different quantities."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o6", scale, results, asked, ("photos", "ct"))
    there = [run for run in trained(source.evidence, source.evidence.steps) if run[0] in source.datasets]
    found = {run: frequencies(source.evidence, *run) for run in there}
    if not any(found.values()):
        raise nothing(source, f"no run on {' or '.join(source.datasets)} has its steps recorded")
    parts, rows = [READING, KINDS, FREQUENCIES, "![share of conflicts](../figures/o6.png)"], []
    for dataset in source.datasets:
        own = [run for run in there if run[0] == dataset]
        parts += [f"## {source.title(dataset)}", _table(source, own, found, rows) if own else "Not run."]
    runs = source.rows(there)
    drawing = draw(source, there)
    finish(drawing, TITLE, source, runs, "Thick: mean over seeds; thin: single seeds")
    lacking = source.gaps_of_table2(source.evidence.steps, "steps.csv")
    return Page(source, TITLE, parts, rows, runs, drawing, SHOWN, lacking, command(source, asked))


def _table(source: Source, runs: list[Run], found: dict[Run, dict[str, Finding]], rows: list[dict[str, object]]) -> str:
    lines = [["method", "n", *COLUMNS.values()], []]
    for dataset, arm in runs:
        own = found[dataset, arm]
        n = source.evidence.own(source.evidence.steps, dataset, arm).seed.nunique()
        cells = [number(own[key].effect, own[key].unit) if key in own else "-" for key in COLUMNS]
        lines.append([name(arm), str(n), *cells])
        rows += [
            {"scale": source.scale, "dataset": dataset, "strategy": arm.strategy, "number": key}
            | {"unit": "times a step" if own[key].unit == "number" else "percent"}
            | numbers(own[key].effect)
            for key in COLUMNS
            if key in own
        ]
    return table(lines)


def draw(source: Source, there: list[Run]) -> Figure:
    datasets = [dataset for dataset in source.datasets if any(run[0] == dataset for run in there)]
    ran = {arm.strategy for _, arm in there}
    shown = {words: strategies for words, strategies in PANELS.items() if ran & set(strategies)}
    figure = Figure(figsize=(max(7.0, 5.6 * len(datasets)), 2.9 * len(shown) + 1.6), layout="constrained")
    panels = figure.subplots(len(shown), len(datasets), sharex="col", sharey=True, squeeze=False)
    for row, (words, strategies) in zip(panels, shown.items(), strict=True):
        for axes, dataset in zip(row, datasets, strict=True):
            axes.set_title(f"{source.title(dataset)}\n{words}", fontsize=9.5)
            for order, strategy in enumerate(strategies):
                _line(axes, source, dataset, strategy, order)
            axes.grid(color="0.92", linewidth=0.6)
            axes.set_ylim(-0.03, 1.03)
            axes.yaxis.set_major_formatter(PercentFormatter(1.0))
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        row[0].set_ylabel("steps with a conflict")
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
    handles = {}
    for axes in panels.flat:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, fontsize=9,
                  ncols=max(2, 2 * len(datasets)), handlelength=3.2)  # fmt: skip
    return figure


def _line(axes: Axes, source: Source, dataset: str, strategy: str, order: int) -> None:
    rows = source.evidence.own(source.evidence.steps, dataset, Arm(strategy))
    if rows.empty or not rows.conflicts.notna().any():
        return
    at, values = positions(coarse(rows), "conflicts")
    style.draw_mean(axes, strategy, order, at, values, style.label(strategy))


def coarse(rows: pd.DataFrame, bins: int = FIGURE_BINS) -> pd.DataFrame:
    """Neighbouring bins together, so that at most `bins` are left; shares weighted by the steps measured."""
    width = -(-int(rows.bin.max() + 1) // bins)
    weight = rows.cosine_steps.fillna(0).astype(float).where(rows.conflicts.notna(), 0.0)
    own = rows.assign(bin=rows.bin // width, weight=weight, hits=rows.conflicts.fillna(0.0) * weight)
    found = own.groupby(["seed", "bin"]).agg(
        first_step=("first_step", "min"), last_step=("last_step", "max"), weight=("weight", "sum"), hits=("hits", "sum")
    )
    found["conflicts"] = found.hits / found.weight.where(found.weight > 0, np.nan)
    return found.reset_index()
