"""O7: reconstruction loss against what a linear probe reads of the frozen encoder, run by run."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.report.claims.evidence import Arm, as_table2
from gcond.report.claims.judge import Finding, number
from gcond.report.claims.representation import READING, TASKS, measured, probed
from gcond.report.figures import style
from gcond.report.pages.page import Page, command, finish, numbers, table
from gcond.report.pages.source import Source, load, name, nothing
from gcond.report.statistics import single

TITLE = "O7: reconstruction loss and linear probe"
PROBE = (
    "The probe: the last checkpoint's encoder, frozen, its last map averaged over positions, of whole images (no patch "
    "hidden); ridge regression on standardised features of the training images, its strength chosen on validation, "
    "scored on test. No patient and no scene is in two splits. Beside every number the same probe of the weights that "
    "the run began with, of the pixels (8 x 8 means a channel), and chance."
)
ASKED = {
    "class": "the label of the image; accuracy",
    "rotation": "by which of 0, 90, 180, 270 degrees the image was turned; accuracy",
    "height": "how far above its volume's middle a slice lies; rank correlation within a volume, mean over volumes",
}
LIMITS = {
    "rotation": "Rotation is a stand-in that needs no labels: it asks for the layout of the anatomy or scene, not for "
    "what a clinician would.",
    "height": "Volumes begin and end in different places of the body, so that heights compare within a volume only, "
    "and one direction that means `towards the head` from pelvis to skull need not exist.",
}
FEW = (
    "Few patients or scenes stand behind these numbers (docs/data.md): the interval is over seeds, so over "
    "trainings on the same images, and says nothing about other patients."
)
SHOWN = (
    "A mark is a run: its reconstruction loss on test after the last epoch (x, lower is better) and the score of a "
    "linear probe on its frozen encoder (y, higher is better). Filled: as in Table 2; hollow: with other settings. "
    "Lines: the same probe on untrained encoders (mean over seeds), on pixels, and chance."
)
CONTROLS = {
    "untrained_test": ("untrained", "-"),
    "pixels_test": ("pixels", (0, (5, 2))),
    "chance": ("chance", (0, (1, 1))),
}
OTHER = ("0.5", "h")  # colour and marker of a strategy without a look of its own


def build(scale: str, results: Path, asked: tuple[str, ...] | None) -> Page:
    source = load("o7", scale, results, asked, ("photos", "ct"))
    there = {
        (dataset, task): rows
        for dataset in source.datasets
        for task in TASKS
        if len(rows := probed(source.evidence, dataset, task))
    }
    if not there:
        raise nothing(source, f"no run on {' or '.join(source.datasets)} has been probed")
    parts, rows = [PROBE, READING, "![loss against score](../figures/o7.png)"], []
    for (dataset, task), own in there.items():
        found = measured(source.evidence, dataset, task)
        parts += [f"## {source.title(dataset)}: {task}", f"Asked: {ASKED[task]}."]
        parts += [_said(found), _table(source, dataset, task, own, rows)]
        parts += [LIMITS[task]] if task in LIMITS else []
        rows += [_row(source, dataset, task, "", what, each) for what, each in found.items()]
    parts.append(FEW)
    arms = [(dataset, arm) for (dataset, _), own in there.items() for arm in _arms(own)]
    runs = source.rows(dict.fromkeys(arms))
    drawing = draw(source, there)
    finish(drawing, TITLE, source, runs, "A mark is a run; hollow: other settings than Table 2's")
    return Page(source, TITLE, parts, rows, runs, drawing, SHOWN, _gaps(source, there), command(source, asked))


def _gaps(source: Source, there: dict[tuple[str, str], pd.DataFrame]) -> list[str]:
    lines = []
    for dataset in source.datasets:
        runs = source.evidence.runs
        own = (runs.dataset == dataset) & (runs.model == source.evidence.model)
        known = int((own & runs.variant.map(as_table2)).sum())
        done = max((int(rows.variant.map(as_table2).sum()) for (where, _), rows in there.items() if where == dataset),
                   default=0)  # fmt: skip
        if done < known or not known:
            lines.append(f"{done} of {known} recorded runs on {dataset} with Table 2's settings are probed")
    return lines


def _said(found: dict[str, Finding]) -> str:
    lines = [
        f"- {each.about.split(': ', 1)[1]}: {number(each.effect, each.unit)}, n = {each.effect.n}"
        for each in found.values()
    ]
    if "correlation" not in found:
        lines.append("- rank correlation of loss and score: no seed has enough runs")
    return "\n".join(lines)


def _arms(rows: pd.DataFrame) -> list[Arm]:
    pairs = rows[["strategy", "variant"]].drop_duplicates().sort_values(["variant", "strategy"])
    return [Arm(*pair) for pair in pairs.itertuples(index=False)]


def _table(source: Source, dataset: str, task: str, own: pd.DataFrame, rows: list[dict[str, object]]) -> str:
    """Best mean loss first."""
    lines = []
    for arm in _arms(own):
        runs = own[(own.strategy == arm.strategy) & (own.variant == arm.variant)].set_index("seed")
        loss, score, untrained = (single(runs[column]) for column in ("loss", "test_score", "untrained_test"))
        cells = [f"{loss.mean:.4f}", number(score, "ratio"), f"{untrained.mean:.2f}", f"{runs.pixels_test.mean():.2f}"]
        lines.append((loss.mean, [name(arm), str(score.n), *cells, f"{runs.chance.mean():.2f}"]))
        where = {
            "scale": source.scale,
            "dataset": dataset,
            "task": task,
            "strategy": arm.strategy,
            "variant": arm.variant,
        }
        rows += [where | {"number": what} | numbers(each) for what, each in
                 (("loss", loss), ("score", score), ("untrained", untrained))]  # fmt: skip
    lines.sort(key=lambda line: line[0])
    return table([["run", "n", "loss", "probe", "untrained", "pixels", "chance"], [], *(cells for _, cells in lines)])


def _row(source: Source, dataset: str, task: str, variant: str, what: str, found: Finding) -> dict[str, object]:
    where = {"scale": source.scale, "dataset": dataset, "task": task, "strategy": "", "variant": variant}
    return where | {"number": what} | numbers(found.effect)


def draw(source: Source, there: dict[tuple[str, str], pd.DataFrame]) -> Figure:
    figure = Figure(figsize=(max(7.0, 4.6 * len(there)), 5.4), layout="constrained")
    panels = figure.subplots(1, len(there), squeeze=False)[0]
    for axes, ((dataset, task), own) in zip(panels, there.items(), strict=True):
        _panel(axes, own)
        axes.set_title(f"{source.title(dataset)}\n{task}", fontsize=9.5)
        axes.set_xlabel("reconstruction loss, test, last epoch")
        axes.set_ylabel(f"probe, test: {own.measure.iloc[0]}", fontsize=9)
    handles = {}
    for axes in panels:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", frameon=False, fontsize=9,
                  ncols=max(3, 2 * len(there)))  # fmt: skip
    return figure


def _panel(axes: Axes, own: pd.DataFrame) -> None:
    for arm in _arms(own):
        runs = own[(own.strategy == arm.strategy) & (own.variant == arm.variant)]
        colour, marker = (
            (style.LOOKS[arm.strategy][0], style.LOOKS[arm.strategy][2]) if arm.strategy in style.LOOKS else OTHER
        )
        axes.plot(runs.loss, runs.test_score, linestyle="none", marker=marker, color=colour, markersize=6, alpha=0.85,
                  markerfacecolor="none" if arm.variant else colour, label=name(Arm(arm.strategy)))  # fmt: skip
    for column, (label, dashes) in CONTROLS.items():
        axes.axhline(float(np.mean(own[column])), color="0.35", linewidth=1.0, linestyle=dashes, label=label, zorder=0)
    axes.grid(color="0.92", linewidth=0.6)
