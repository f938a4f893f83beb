"""Figure 6: how the activations of the last encoder layer are distributed, by epoch."""

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gcond.report.figures import style
from gcond.report.figures.numbers import Number, last
from gcond.report.figures.select import Selection

BANDS = (
    ("q0.001", "q0.999", 0.16, "0.1 to 99.9 %"),
    ("q0.05", "q0.95", 0.34, "5 to 95 %"),
    ("q0.25", "q0.75", 0.62, "middle half"),
)
SHOWN = (
    "Quantiles of the last encoder layer's map on fixed validation images, after every epoch, in eval mode and with "
    "masked inputs. Bands: means over seeds. Thin lines: the 0.1 and 99.9 % quantiles of single seeds. The extremes "
    "are not drawn."
)
NUMBERS = [
    Number("standard deviation, last epoch", last("std")),
    Number("width of the 99.8 % band", lambda run: float(run["q0.999"].iloc[-1] - run["q0.001"].iloc[-1])),
    Number("lowest", last("q0")),
    Number("highest", last("q1")),
    Number("share of zeros", last("zero_share")),
]


def draw(selection: Selection) -> Figure:
    """One panel per strategy and data set, all with the same axes."""
    strategies = selection.strategies
    figure = Figure(figsize=(4.9 * len(strategies), 3.6 * len(selection.datasets) + 1.5), layout="constrained")
    panels = figure.subplots(len(selection.datasets), len(strategies), sharex=True, sharey=True, squeeze=False)
    for row, dataset in zip(panels, selection.datasets, strict=True):
        for axes, strategy in zip(row, strategies, strict=True):
            own = selection.records[(selection.records.dataset == dataset) & (selection.records.strategy == strategy)]
            _panel(axes, strategy, own)
            axes.set_title(f"{style.label(strategy)}, {selection.dataset_title(dataset)}", fontsize=10)
            axes.set_xlabel("epoch")
        row[0].set_ylabel("activation")
    style.finish(figure, selection, "Bands: mean over seeds; thin: single seeds")
    return figure


def widths(selection: Selection) -> list[str]:
    """How wide the 99.8 % band of the last epoch is beside Baseline's, paired by seed."""
    ends = selection.records.sort_values("epoch").groupby(["dataset", "strategy", "seed"]).last()
    width = ends["q0.999"] - ends["q0.001"]
    lines = []
    for dataset in selection.datasets:
        for strategy in [name for name in selection.strategies if name != "baseline"]:
            if {(dataset, strategy), (dataset, "baseline")} <= set(width.index.droplevel("seed")):
                ratios = (width[dataset, strategy] / width[dataset, "baseline"]).dropna()
                lines.append(
                    f"Width of the 99.8 % band of {style.label(strategy)} over Baseline's, {dataset}: "
                    f"{', '.join(f'{ratio:.2f}' for ratio in ratios)} (one number per seed that both have)."
                )
    return lines


def _panel(axes: Axes, strategy: str, own: pd.DataFrame) -> None:
    colour, _, marker = style.LOOKS[strategy]
    quantiles = [name for low, high, *_ in BANDS for name in (low, high)]
    mean = own.groupby("epoch")[[*quantiles, "q0.5"]].mean()
    for low, high, alpha, words in BANDS:
        axes.fill_between(mean.index.to_numpy(dtype=float), mean[low].to_numpy(), mean[high].to_numpy(), color="0.35",
                          alpha=alpha, linewidth=0, label=words)  # fmt: skip
    axes.plot(mean.index.to_numpy(dtype=float), mean["q0.5"], color=colour, marker=marker, markersize=4.5, linewidth=2,
              markeredgecolor="white", label=f"median, {style.label(strategy)}")  # fmt: skip
    if own.seed.nunique() > 1:
        for _, run in own.groupby("seed"):
            for name in ("q0.001", "q0.999"):
                axes.plot(run.epoch.to_numpy(dtype=float), run[name], color=colour, linewidth=0.7, alpha=0.6)
    axes.axhline(0, color="0.4", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
