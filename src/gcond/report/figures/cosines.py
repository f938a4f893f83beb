"""Figure 11: the true minimum cosine per bin of steps, and beside it what the published logging would have shown."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gcond.report.figures import style
from gcond.report.figures.lines import positions
from gcond.report.figures.numbers import Number, lowest, over_steps, tail
from gcond.report.figures.select import Selection

NOTHING = 1.0  # what the published code logs where no pair lies below the weak threshold, 0
COLUMNS = {"cosine_min": "true minimum", "published": "as the published code logs it"}
SHOWN = (
    "The minimum over each bin of steps of the cosine between the tasks' gradients, before they are resolved. Left: "
    "the true one. Right: what the published logging shows, which is 1.0 wherever no pair lies below the weak "
    "threshold (0). For a method that does not log it: 1.0 where the true minimum is not negative. Sequential "
    "gradients (PCGrad) share their samples, stochastic ones (GCond) do not: their cosines are different quantities."
)
NUMBERS = [
    Number("lowest cosine", lowest("cosine_min")),
    Number("mean cosine", over_steps("cosine_mean", "cosine_steps")),
    Number("mean cosine, last tenth", tail("cosine_mean")),
    Number("share of steps in conflict", over_steps("conflicts", "cosine_steps")),
    Number("bins that the published logging shows as 1", lambda run: float((run.published == NOTHING).mean())),
]


def with_published(records: pd.DataFrame) -> pd.DataFrame:
    """Adds `published`: the logged number, or for a strategy that never has one, the one it would have logged."""
    derived = records.cosine_min.where(records.cosine_min < 0, NOTHING).where(records.cosine_min.notna())
    logs = records.groupby("strategy").published_cosine.transform(lambda values: values.notna().any())
    return records.assign(published=records.published_cosine.where(logs.astype(bool), derived))


def draw(selection: Selection) -> Figure:
    strategies = selection.strategies
    figure = Figure(figsize=(10.5, 2.35 * len(strategies) + 1.3), layout="constrained")
    panels = figure.subplots(len(strategies), len(COLUMNS), sharex=True, sharey=True, squeeze=False)
    for row, strategy in zip(panels, strategies, strict=True):
        for axes, (column, words) in zip(row, COLUMNS.items(), strict=True):
            _panel(axes, selection, strategy, column)
            axes.set_title(f"{style.label(strategy)}: {words}", fontsize=10)
        row[0].set_ylabel("minimum cosine")
    for axes in panels[-1]:
        axes.set_xlabel("optimizer step")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    style.finish(figure, selection, "Thick: mean over seeds; thin: single seeds; dotted: GCond's thresholds", False)
    return figure


def _panel(axes: Axes, selection: Selection, strategy: str, column: str) -> None:
    axes.set_ylim(-1.08, 1.08)
    axes.axhline(0, color="0.4", linewidth=0.9)
    for threshold in (-0.5, -0.8):
        axes.axhline(threshold, color="0.6", linewidth=0.8, linestyle=":")
    own = selection.records[selection.records.strategy == strategy]
    at, table = positions(own, column)
    if len(at):
        style.draw_mean(axes, strategy, 0, at, table, None)
