"""Lines over training: validation curves (figures 2, 4, 5, 9), training curves (1, 3, 7, 8) and figure 12.

A row of panels per metric, a column per data set; all panels of a metric share their axis.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from gcond.report.figures import style
from gcond.report.figures.numbers import Number, last, lowest, over_steps, tail
from gcond.report.figures.select import Selection


@dataclass(frozen=True)
class Metric:
    column: str
    label: str
    logarithmic: bool = False
    limits: tuple[float, float] | None = None


_TRAINING = (
    Metric("loss_l1", "training L1"),
    Metric("loss_ssim", "training 1 - SSIM"),
    Metric("resolved_norm", "norm of the resolved gradient", logarithmic=True),
)
COSINE = Metric("cosine_min", "minimum cosine of the tasks' gradients", limits=(-1.05, 1.05))
METRICS = {
    "validation": (Metric("val_l1", "validation L1"), Metric("val_ssim", "validation 1 - SSIM")),
    "training": _TRAINING,
    "conflict": (COSINE, *_TRAINING),
}
NUMBERS = {
    "validation": [
        Number("L1, last epoch", last("val_l1")),
        Number("1 - SSIM, last epoch", last("val_ssim")),
        Number("lowest L1", lowest("val_l1")),
        Number("lowest 1 - SSIM", lowest("val_ssim")),
    ],
    "training": [
        Number("L1, last tenth", tail("loss_l1")),
        Number("1 - SSIM, last tenth", tail("loss_ssim")),
        Number("gradient norm, last tenth", tail("resolved_norm")),
        Number("norm's change a step, abs. log", over_steps("norm_jump")),
    ],
}
NUMBERS["conflict"] = [
    Number("lowest cosine", lowest("cosine_min")),
    Number("share of steps in conflict", over_steps("conflicts", "cosine_steps")),
    *NUMBERS["training"],
]
SHOWN = {
    "validation": "Scores on the validation split after every epoch, on hidden patches only; lower is better.",
    "training": "Losses on the training images, and the norm of the gradient that the method resolves to (before it is "
    "clipped and smoothed); means over bins of steps. The last column of the tables is the mean of "
    "|ln(norm / norm of the step before)|.",
    "conflict": "The minimum over each bin of the true cosine between the tasks' gradients, before they are resolved; "
    "losses and gradient norm are means over bins of steps.",
}
READING = "Thick: mean over seeds; thin: single seeds"


def draw(selection: Selection) -> Figure:
    metrics = METRICS[selection.figure.kind]
    figure, panels = _grid(len(metrics), len(selection.datasets), metrics)
    for row, metric in zip(panels, metrics, strict=True):
        for axes, dataset in zip(row, selection.datasets, strict=True):
            _panel(axes, selection, dataset, metric)
    _share(panels, metrics)
    for axes in panels[-1] if len(selection.datasets) > 1 else figure.axes:
        axes.set_xlabel("epoch" if selection.figure.kind == "validation" else "optimizer step")
    style.finish(figure, selection, READING)
    return figure


def _grid(rows: int, columns: int, metrics: tuple[Metric, ...]) -> tuple[Figure, list[list[Axes]]]:
    """[metric][data set]; with one data set the metrics stand side by side, two in a row if there are four."""
    if columns > 1:
        figure = Figure(figsize=(5.2 * columns, 2.9 * rows + 1.4), layout="constrained")
        panels = figure.subplots(rows, columns, sharex="col", squeeze=False)
        return figure, [list(row) for row in panels]
    across = 2 if rows == 4 else rows
    down = -(-rows // across)
    figure = Figure(figsize=(4.6 * across, 3.3 * down + 1.4), layout="constrained")
    panels = figure.subplots(down, across, squeeze=False)
    return figure, [[axes] for axes in panels.flat]


def _panel(axes: Axes, selection: Selection, dataset: str, metric: Metric) -> None:
    axes.set_title(selection.dataset_title(dataset), fontsize=10)
    axes.set_ylabel(metric.label)
    axes.grid(color="0.92", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    if metric.column.startswith("val_"):
        _trivial(axes, selection.trivial[selection.trivial.dataset == dataset], metric.column)
    if metric.column == "cosine_min":
        axes.axhline(0, color="0.5", linewidth=0.8)
    own = selection.records[selection.records.dataset == dataset]
    for order, strategy in enumerate(selection.strategies):
        at, table = positions(own[own.strategy == strategy], metric.column)
        if len(at):
            style.draw_mean(axes, strategy, order, at, table, style.label(strategy))
        elif dataset == selection.datasets[0]:
            axes.plot([], [], color=style.LOOKS[strategy][0], label=style.label(strategy))


def positions(own: pd.DataFrame, column: str) -> tuple[pd.Series, pd.DataFrame]:
    """(x, values [x, seed]): epochs, or the middles of the bins."""
    index = "epoch" if "epoch" in own else "bin"
    table = own.pivot(index=index, columns="seed", values=column).sort_index()
    table = table[table.notna().any(axis=1)]
    if index == "epoch":
        return pd.Series(table.index, dtype=float), table
    middle = own.assign(middle=(own.first_step + own.last_step) / 2).groupby("bin").middle.mean()
    return middle.loc[table.index].astype(float), table


def _trivial(axes: Axes, rows: pd.DataFrame, column: str) -> None:
    if len(rows):
        best = rows[f"best_{column}"].min()
        axes.axhline(best, color="0.45", linestyle=(0, (6, 3)), linewidth=1.2, label="best trivial predictor")


def _share(panels: list[list[Axes]], metrics: tuple[Metric, ...]) -> None:
    """One axis for all panels of a metric, logarithmic where it should be and can be."""
    for row, metric in zip(panels, metrics, strict=True):
        if metric.limits:
            limits = metric.limits
        else:
            if metric.logarithmic and all(_positive(axes) for axes in row):
                for axes in row:
                    axes.set_yscale("log")
                    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
                    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                    axes.yaxis.set_minor_formatter(NullFormatter())
            spans = [axes.get_ylim() for axes in row]
            limits = (min(span[0] for span in spans), max(span[1] for span in spans))
        for axes in row:
            axes.set_ylim(limits)


def _positive(axes: Axes) -> bool:
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    return all((value[np.isfinite(value)] > 0).all() for value in values)
