"""O9: methods beside static runs with their time-averaged implied weights."""

from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.report.claims.evidence import METRICS, Arm
from gcond.report.claims.frozen import LEFT_OUT, READING, UPDATES, Frozen, averages, differs, kept
from gcond.report.claims.judge import Finding, compare, number
from gcond.report.claims.reconstruction import BASELINE
from gcond.report.figures import style
from gcond.report.pages.page import Page, command, finish, numbers, table
from gcond.report.pages.source import Source, load, name, nothing
from gcond.report.statistics import single

TITLE = "O9: what a method's average weights keep of it"
WEIGHTS = (
    "Weights: the factor on a task's gradient (its lambda apart) in what the method writes, mean over the steps of a "
    "run, then over n seeds, with a 95 % t-interval. Static lambdas: lambda times that mean. Frozen vs method: "
    "difference in percent of the method's loss at the best validation epoch, paired by seed; "
    "above zero the frozen run is worse."
)
SHOWN = (
    "Validation loss at the best epoch, difference to Baseline in percent, mean over seeds with a 95 % t-interval; "
    "below zero is better than Baseline. Filled: the method. Hollow: the static run with its average weights and its "
    "update. Where the two agree, resolving conflicts step by step added nothing to static weights."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o9", scale, results, asked, ("photos", "ct"))
    found = averages(source.evidence, source.datasets)
    ran = [each for each in found if _ran(source, each)]
    if not ran:
        raise nothing(source, f"no run on {' or '.join(source.datasets)} has weights and a static run beside it")
    parts, rows = [WEIGHTS, READING, LEFT_OUT, "![differences to Baseline](../figures/o9.png)"], []
    for dataset in source.datasets:
        own = [each for each in found if each.dataset == dataset]
        parts += [f"## {source.title(dataset)}", _table(source, own, rows) if own else "Not run."]
    arms = [(each.dataset, arm) for each in found for arm in (BASELINE, each.method, each.arm)]
    runs = source.rows(dict.fromkeys(arms))
    drawing = draw(source, ran)
    finish(drawing, TITLE, source, runs, "Filled: the method; hollow: its average weights, static")
    wanted = [(dataset, arm) for dataset in source.datasets for arm in (BASELINE, *UPDATES)]
    seeds = {seed for each in found for seed in each.weights.index}
    lacking = source.gaps([*wanted, *((each.dataset, each.arm) for each in found if not each.unchanged)], seeds)
    return Page(source, TITLE, parts, rows, runs, drawing, SHOWN, lacking, command(source, asked))


def _ran(source: Source, each: Frozen) -> bool:
    return source.evidence.ran(each.dataset, each.arm, each.method, BASELINE)


def _table(source: Source, found: list[Frozen], rows: list[dict[str, object]]) -> str:
    heads = [f"weight of {metric}" for metric in METRICS.values()]
    heads += ["static lambdas", "frozen as"]
    heads += [f"frozen vs method, {metric}" for metric in METRICS.values()]
    heads += [f"kept, {metric}" for metric in METRICS.values()]
    lines = [["method", "n", *heads], []]
    for each in found:
        weights = {task: single(each.weights[task]) for task in METRICS}
        cells = [number(effect, "number") for effect in weights.values()]
        cells += [", ".join(f"{value:g}" for value in each.lambdas.values()), name(Arm(each.arm.strategy))]
        results: dict[str, Finding] = {}
        if _ran(source, each):
            results |= {f"frozen vs method, {task}": differs(source.evidence, each, task) for task in METRICS}
            results |= {f"kept, {task}": kept(source.evidence, each, task) for task in METRICS}
        cells += [number(each.effect, each.unit) for each in results.values()] or ["not run"] * 2 * len(METRICS)
        lines.append([name(each.method), str(len(each.weights)), *cells])
        effects = {f"weight of {task}": effect for task, effect in weights.items()}
        effects |= {what: result.effect for what, result in results.items()}
        where = {"scale": source.scale, "dataset": each.dataset, "strategy": each.method.strategy}
        where |= {"frozen": each.arm.strategy, "variant": each.arm.variant}
        rows += [where | {"number": what} | numbers(effect) for what, effect in effects.items()]
    return table(lines)


def draw(source: Source, ran: list[Frozen]) -> Figure:
    datasets = list(dict.fromkeys(each.dataset for each in ran))
    figure = Figure(figsize=(9.5, 2.6 * len(datasets) + 1.2), layout="constrained")
    panels = figure.subplots(len(datasets), len(METRICS), squeeze=False, sharey="row")
    for row, dataset in zip(panels, datasets, strict=True):
        own = [each for each in ran if each.dataset == dataset]
        for axes, metric in zip(row, METRICS, strict=True):
            _panel(axes, source, own, metric)
            axes.set_title(f"{source.title(dataset)}: {METRICS[metric]}", fontsize=9.5)
        row[0].set_yticks(range(len(own)), [name(each.method) for each in own])
        row[0].set_ylim(len(own) - 0.4, -0.6)
    for axes in panels[-1]:
        axes.set_xlabel("difference to Baseline, %")
    return figure


def _panel(axes: Axes, source: Source, own: list[Frozen], metric: str) -> None:
    axes.axvline(0, color="0.4", linewidth=0.8)
    axes.grid(color="0.92", linewidth=0.6, axis="x")
    for place, each in enumerate(own):
        colour, _, marker = style.LOOKS[each.method.strategy]
        for arm, shift, filled in ((each.method, -0.13, True), (each.arm, 0.13, False)):
            effect = compare(source.evidence, each.dataset, arm, BASELINE, metric).effect
            ends = [[effect.mean - effect.low], [effect.high - effect.mean]]
            axes.errorbar([effect.mean], [place + shift], xerr=None if np.isnan(effect.low) else ends, color=colour,
                          marker=marker, markersize=7, capsize=3, linewidth=1.3,
                          markerfacecolor=colour if filled else "white")  # fmt: skip
