"""Recorded validation curves -> one figure: a row of panels per dataset, a column per metric, a line per strategy."""

from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gcond.files import write_atomically
from gcond.report.lineup import STRATEGIES, TRIVIAL
from gcond.report.table2 import dataset_title

# Okabe and Ito's colours, safe for colour-blind readers; an olive in place of their yellow, which is too pale.
LOOKS = {
    "baseline": ("#000000", "-", "o"),
    "baseline_integrated": ("#000000", "--", "o"),
    "cagrad": ("#E69F00", "-", "s"),
    "graddrop": ("#999999", "-", "s"),
    "gradnorm": ("#CC79A7", "-", "s"),
    "pcgrad": ("#7A7A1E", "-", "s"),
    "gcond_sequential": ("#0072B2", "-", "^"),
    "gcond_stochastic": ("#D55E00", "-", "^"),
    "gcond_pure": ("#56B4E9", "-", "v"),
    "gcond_lion": ("#009E73", "-", "v"),
}
METRICS = {"val_l1": "validation L1", "val_ssim": "validation 1 - SSIM"}


def draw(curves: pd.DataFrame, recorded: pd.DataFrame, datasets: tuple[str, ...], title: str, path: Path) -> None:
    """Mean over seeds (thick), single seeds (thin) and the best trivial predictor (dashed grey) -> PNG at `path`."""
    size = (5.5 * len(METRICS), 3.6 * len(datasets) + 1.2)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(datasets), len(METRICS), squeeze=False)
    for row, dataset in zip(panels, datasets, strict=True):
        for axes, (metric, label) in zip(row, METRICS.items(), strict=True):
            own = recorded[recorded.dataset == dataset]
            axes.set_title(dataset_title(own, dataset), parse_math=False)
            axes.set_xlabel("epoch")
            axes.set_ylabel(f"{label} (lower is better)")
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            _draw_trivial(axes, own, metric)
            _draw_strategies(axes, curves[curves.dataset == dataset], metric)
    handles = {
        label: line for axes in panels.flat for line, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    where, _, origin = title.partition(": ")
    figure.suptitle(f"{where}\n{origin}\nthick: mean over the finished seeds; thin: single seeds", fontsize=11)
    write_atomically(path, lambda to: figure.savefig(to, dpi=120, metadata={"Software": None}))


def _draw_strategies(axes: Axes, curves: pd.DataFrame, metric: str) -> None:
    for strategy, label in STRATEGIES.items():
        own = curves[curves.strategy == strategy]
        if own.empty:
            continue
        colour, dashes, marker = LOOKS[strategy]
        table = own.pivot(index="epoch", columns="seed", values=metric)
        epochs = table.index.to_numpy(dtype=int)
        if table.shape[1] > 1:
            axes.plot(epochs, table.to_numpy(dtype=float), color=colour, linestyle=dashes, linewidth=0.6, alpha=0.3)
        mean = table.mean(axis=1, skipna=False).to_numpy(dtype=float)
        axes.plot(epochs, mean, color=colour, linestyle=dashes, marker=marker, markersize=3.5, label=label)


def _draw_trivial(axes: Axes, recorded: pd.DataFrame, metric: str) -> None:
    values = recorded.loc[recorded.strategy.str.startswith(TRIVIAL), f"best_{metric}"]
    if len(values):
        axes.axhline(values.min(), color="#777777", linestyle=(0, (6, 3)), label="best trivial predictor (no training)")
