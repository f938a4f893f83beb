"""O10: how strong the conflict is beside each task's own noise, and what of its resolution survives the optimizer."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gcond.report.claims.conflict import GROUPS, cosines, probed, survival, trained
from gcond.report.claims.evidence import Arm
from gcond.report.claims.judge import Finding, number
from gcond.report.figures.style import THICK, THIN
from gcond.report.pages.page import Page, command, finish, numbers, table
from gcond.report.pages.source import Run, Source, load, name, nothing

TITLE = "O10: how strong the conflict is"
GROUP_TITLES = {"all": "all parameters", "encoder": "encoder", "body": "decoder body", "head": "output layer"}
LINES = {  # of the figure: start of a cosine's title -> label, colour, dashes, marker
    "between tasks, shared": ("between tasks, shared samples", "#000000", "-", "o"),
    "between tasks, disjoint": ("between tasks, disjoint samples", "#D55E00", (0, (5, 2)), "^"),
    "l1": ("L1 with itself on other samples", "#0072B2", (0, (2, 1)), "s"),
    "ssim": ("SSIM with itself on other samples", "#009E73", (0, (5, 1, 1, 1)), "D"),
}
DRAWN = ("baseline", "gcond_stochastic")  # in the figure: without and with resolution
READING = (
    "Cosines of mean gradients over several micro-batches, measured after each epoch at the run's own weights; "
    "means over epochs, then over n seeds, with a 95 % t-interval over seeds. Shared samples: both tasks on the "
    "same images, whose common noise raises the cosine. Disjoint: each task on another half of them. A task with "
    "itself: on two disjoint halves (split-half reliability). Between tasks on disjoint samples no more than "
    "about the square root of the product of both self-cosines can be seen, however well the tasks agree: where a "
    "self-cosine is near zero, so is every cosine with it, and its sign is noise."
)
SURVIVAL = (
    "Cosine of the resolved gradient (before it is smoothed) and the step that the optimizer took, mean over the "
    "run's steps: 1 if the optimizer followed the resolved direction, 0 if nothing of it was left."
)
SHOWN = (
    "Cosines between the tasks' mean gradients, and of each task's with itself on other samples, after every "
    "epoch, per group of parameters, for a method that resolves nothing and one that does. Thick: mean over "
    "seeds; thin: single seeds. A cosine between tasks is to be read beside the self-cosines: where those are "
    "low, it is noise."
)


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o10", scale, results, asked, ("photos", "ct"))
    evidence = source.evidence
    there = [run for run in trained(evidence, evidence.probes) if run[0] in source.datasets]
    stepped = [run for run in trained(evidence, evidence.steps) if run[0] in source.datasets]
    left = {run: found for run in stepped if (found := survival(evidence, *run))}
    if not there:
        raise nothing(source, f"no run on {' or '.join(source.datasets)} has probes recorded")
    parts, rows = [READING, "![cosines by epoch](../figures/o10.png)"], []
    for dataset in source.datasets:
        parts.append(f"## {source.title(dataset)}")
        parts += _cosines(source, [run for run in there if run[0] == dataset], rows) or ["No probes."]
    parts += ["## What of the resolved direction survives the optimizer", SURVIVAL, _survival(source, left, rows)]
    runs = source.rows(dict.fromkeys([*there, *left]))
    drawing = draw(source, there)
    finish(drawing, TITLE, source, runs, "Thick: mean over seeds; thin: single seeds")
    lacking = source.gaps_of_table2(evidence.probes, "probes.csv")
    lacking += [line for line in source.gaps_of_table2(evidence.steps, "steps.csv") if line not in lacking]
    return Page(source, TITLE, parts, rows, runs, drawing, SHOWN, lacking, command(source, asked))


def _cosines(source: Source, runs: list[Run], rows: list[dict[str, object]]) -> list[str]:
    parts = []
    for group in GROUPS:
        found = {run: cosines(source.evidence, *run, group) for run in runs}
        titles = list(dict.fromkeys(title for own in found.values() for title in own))
        if not titles:
            continue
        lines = [["method", "n", *titles], []]
        for (dataset, arm), own in found.items():
            cells = [number(own[title].effect, "cosine") if title in own else "-" for title in titles]
            n = max((each.effect.n for each in own.values()), default=0)
            lines.append([name(arm), str(n), *cells])
            rows += [_row(source, dataset, arm, group, title, each) for title, each in own.items()]
        parts += [f"### {GROUP_TITLES[group]}", table(lines)]
    return parts


def _survival(source: Source, left: dict[Run, Finding], rows: list[dict[str, object]]) -> str:
    if not left:
        return "Not recorded."
    datasets = [dataset for dataset in source.datasets if any(run[0] == dataset for run in left)]
    lines = [["method", *(part for dataset in datasets for part in (source.title(dataset), "n"))], []]
    for arm in dict.fromkeys(arm for _, arm in left):
        cells = []
        for dataset in datasets:
            own = left.get((dataset, arm))
            cells += [number(own.effect, "cosine"), str(own.effect.n)] if own else ["-", "0"]
        lines.append([name(arm), *cells])
    rows += [
        _row(source, dataset, arm, "all", "resolved gradient and step", each) for (dataset, arm), each in left.items()
    ]
    return table(lines)


def _row(source: Source, dataset: str, arm: Arm, group: str, title: str, found: Finding) -> dict[str, object]:
    where = {"scale": source.scale, "dataset": dataset, "strategy": arm.strategy, "group": group, "cosine": title}
    return where | numbers(found.effect)


def draw(source: Source, there: list[Run]) -> Figure:
    """Rows: data set and method; columns: groups of parameters; one axis."""
    runs = [run for run in there if run[1].strategy in DRAWN] or there[:1]
    names = set(source.evidence.probes.name)
    groups = [group for group in GROUPS if probed(names, group)] or ["all"]
    figure = Figure(figsize=(3.3 * len(groups) + 0.6, 2.5 * len(runs) + 1.4), layout="constrained")
    panels = figure.subplots(len(runs), len(groups), sharex="row", sharey=True, squeeze=False)
    for row, (dataset, arm) in zip(panels, runs, strict=True):
        rows = source.evidence.own(source.evidence.probes, dataset, arm)
        for axes, group in zip(row, groups, strict=True):
            _panel(axes, rows, group)
            axes.set_title(f"{name(arm)}, {source.title(dataset).split(' (')[0]}: {GROUP_TITLES[group]}", fontsize=9)
        row[0].set_ylabel("cosine")
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    handles = {}
    for axes in panels.flat:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=min(4, len(groups)),
                  frameon=False, fontsize=9, handlelength=3.2)  # fmt: skip
    return figure


def _panel(axes: Axes, rows: pd.DataFrame, group: str) -> None:
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    for title, column in probed(set(rows.name), group).items():
        start = next((start for start in LINES if title.startswith(start)), None)
        if start is None:
            continue  # a third task; it is in the table
        label, colour, dashes, marker = LINES[start]
        values = rows[rows.name == column].pivot(index="epoch", columns="seed", values="value").sort_index()
        epochs = values.index.to_numpy(dtype=float)
        if values.shape[1] > 1:
            axes.plot(epochs, values.to_numpy(dtype=float), color=colour, linestyle=dashes, **THIN)
        mean = values.mean(axis=1, skipna=False).to_numpy(dtype=float)
        axes.plot(epochs, mean, color=colour, linestyle=dashes, marker=marker, markersize=4, markeredgecolor="white",
                  markeredgewidth=0.4, label=label, **THICK)  # fmt: skip
