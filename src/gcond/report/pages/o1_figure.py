"""O1's interaction plot: resolution on x, a line per update, panels for model mode and metric, a row for each learning
rate, seeds as dots."""

from collections.abc import Sequence
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.report.claims.evidence import METRICS, MODE, Arm, Evidence
from gcond.report.claims.factorial import LEVELS, arm, micro_batch_arm
from gcond.report.claims.rates import AtRate
from gcond.report.pages.source import Source

LOOKS = {  # update -> label, colour, dashes, marker, side of the dots
    "adamw": ("AdamW (.9, .95)", "#000000", "-", "o", -1),
    "ema": ("EMA inside, beta1 = 0", "#D55E00", (0, (5, 2)), "^", 1),
}
PLACES = {"none": 0, "sequential": 1, "stochastic": 2}
MICRO_BATCH = 3  # place on x
TICKS = ["none", "sequential", "stochastic", "sequential,\nper micro-\nbatch"]
READING = "Large: means over seeds; small: single seeds. Level lines: resolving does nothing"
SHOWN = (
    "Validation losses at the best epoch, lower is better: how conflicts are resolved (x), the update (lines) and "
    "the model's mode while its gradients are taken (panels). Large marks: mean over seeds; small ones: single "
    "seeds. Parallel lines mean that the two factors do not interact, level ones that resolving does nothing. "
    "Hollow: resolved at every micro-batch instead of once a window. Panels of a row that show the same loss "
    "share their axis."
)


def draw(source: Source, settings: Sequence[AtRate]) -> Figure:
    """A row for each data set and learning rate; each arm's best is left out: its lines would join different rates."""
    arms = [arm(dict(zip(LEVELS, levels, strict=True))) for levels in product(*LEVELS.values())]
    rows = [
        (dataset, setting)
        for dataset in source.datasets
        for setting in settings
        if not setting.best and any(setting.evidence.ran(dataset, own) for own in arms)
    ]
    ran = [own for dataset, setting in rows for own in arms if setting.evidence.ran(dataset, own)]
    modes = ["train", *(["eval"] if any(MODE in own.variant for own in ran) else [])]
    panels = [(metric, mode) for metric in METRICS for mode in modes]
    figure = Figure(figsize=(max(7.0, 3.2 * len(panels)), 3.4 * len(rows) + 1.3), layout="constrained")
    grid = figure.subplots(len(rows), len(panels), squeeze=False)
    for row, (dataset, setting) in zip(grid, rows, strict=True):
        for axes, (metric, mode) in zip(row, panels, strict=True):
            _panel(axes, setting.evidence, dataset, metric, mode)
            where = "" if setting.own and len(rows) == len(source.datasets) else f"\n{setting.short}"
            axes.set_title(f"{_short(source.title(dataset))}, {mode} mode{where}", fontsize=9.5)
        for first in range(0, len(panels), len(modes)):
            own = row[first : first + len(modes)]
            spans = [axes.get_ylim() for axes in own if axes.has_data()]
            for axes in own if spans else ():
                axes.set_ylim(min(low for low, _ in spans), max(high for _, high in spans))
    for axes in grid[-1]:
        axes.set_xlabel("resolution of conflicts")
    handles = dict(zip(*reversed(grid[0][0].get_legend_handles_labels()), strict=True))
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=2, frameon=False, handlelength=3.2
    )
    return figure


def _panel(axes: Axes, evidence: Evidence, dataset: str, metric: str, mode: str) -> None:
    for update, (label, colour, dashes, marker, side) in LOOKS.items():
        places, means = [], []
        for resolution, place in PLACES.items():
            values = _values(evidence, dataset, metric, arm({"mode": mode, "update": update, "resolution": resolution}))
            if len(values):
                places.append(place + 0.07 * side)
                means.append(values.mean())
                _dots(axes, place + 0.22 * side, values, colour, marker)
        if means:
            axes.plot(places, means, color=colour, linestyle=dashes, marker=marker, markersize=7, linewidth=1.7,
                      markeredgecolor="white", label=label)  # fmt: skip
        values = _values(evidence, dataset, metric, micro_batch_arm(mode, update))
        if len(values):
            _dots(axes, MICRO_BATCH + 0.22 * side, values, colour, marker)
            axes.plot([MICRO_BATCH + 0.07 * side], [values.mean()], color=colour, marker=marker, markersize=7,
                      markerfacecolor="white", markeredgewidth=1.5, linestyle="none")  # fmt: skip
    if not axes.has_data():
        axes.text(0.5, 0.5, "not run", transform=axes.transAxes, ha="center", color="0.4")
    axes.set_xticks([*PLACES.values(), MICRO_BATCH], TICKS, fontsize=8)
    axes.set_xlim(-0.4, MICRO_BATCH + 0.4)
    axes.set_ylabel(f"validation {METRICS[metric]}, best epoch")
    axes.grid(color="0.92", linewidth=0.6, axis="y")


def _dots(axes: Axes, place: float, values: np.ndarray, colour: str, marker: str) -> None:
    spread = np.linspace(-0.05, 0.05, len(values)) if len(values) > 1 else np.zeros(len(values))
    axes.plot(place + spread, values, color=colour, marker=marker, markersize=3, alpha=0.45, linestyle="none")


def _values(evidence: Evidence, dataset: str, metric: str, own: Arm) -> np.ndarray:
    return evidence.by_seed(dataset, own)[f"best_val_{metric}"].dropna().to_numpy(dtype=float)


def _short(title: str) -> str:
    return title.split(" (")[0]
