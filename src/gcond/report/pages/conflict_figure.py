"""C1's figure: where each method ends on the trade-off, and how opposed the gradients are at each strength."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from gcond.report.claims.evidence import TASKS, Arm, per_run
from gcond.report.claims.tradeoff import FULL, METHODS, Regime, mean_image
from gcond.report.figures import style
from gcond.report.pages.source import Source, name

LOOKS = {strategy: (colour, marker) for strategy, (colour, _, marker) in style.LOOKS.items()}
LOOKS |= {"mgda": ("#8B4513", "p"), "upgrad": ("#800080", "h")}
READING = "Large: means over seeds; small: single seeds"
SHOWN = (
    "Losses on validation at the best epoch; lower is better in all. First: L1 to the image against L1 to the "
    "inverted image. No predictor can lie below the grey line, on which the mean image stands half way (cross); "
    "along it a method divides the trade-off, away from it, it wastes. Second: the same against 1 - SSIM. Last, "
    "where the strength was varied: smallest cosine of two tasks' gradients on probed images (both on the same), "
    "mean over a run's epochs; at strength 0 the third task is L1 itself. Large marks: means over seeds; small "
    "ones: single seeds."
)


def bound(source: Source, dataset: str, strength: float, block: str = "best_val") -> float | None:
    """The least L1 + flipped on `block`'s images: 2 s times the L1 of the mean image, which is the mean of |x|."""
    image = mean_image(source.recorded, dataset, block)
    return 2 * strength * image["l1"] if image else None


def draw(source: Source, where: Regime, there: dict[str, list[Arm]], swept: list[tuple[str, float, Arm]]) -> Figure:
    across = 3 if swept else 2
    figure = Figure(figsize=(4.6 * across, 4.0 * len(there) + 1.5), layout="constrained")
    grid = figure.subplots(len(there), across, squeeze=False)
    for row, (dataset, arms) in zip(grid, there.items(), strict=True):
        for axes, (x, y) in zip(row, (("l1", "flipped"), ("ssim", "flipped")), strict=False):
            _panel(axes, source, dataset, arms, x, y)
            axes.set_title(source.title(dataset).split(" (")[0], fontsize=9.5)
        _line(row[0], source, dataset)
        if swept:
            own = [(strength, arm) for name, strength, arm in swept if name == dataset]
            _strengths(row[2], source, dataset, own)
    handles = {}
    for axes in grid.flat:
        for line, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, line)
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2 * across, frameon=False,
                  fontsize=9)  # fmt: skip
    return figure


def _panel(axes: Axes, source: Source, dataset: str, arms: list[Arm], x: str, y: str) -> None:
    for arm in arms:
        colour, marker = LOOKS[arm.strategy]
        runs = source.evidence.by_seed(dataset, arm)
        across, up = (runs[f"best_val_{task}"].to_numpy(dtype=float) for task in (x, y))
        axes.plot(across, up, color=colour, marker=marker, markersize=3.5, alpha=0.45, linestyle="none")
        axes.plot([across.mean()], [up.mean()], color=colour, marker=marker, markersize=9, markeredgecolor="white",
                  linestyle="none", label=name(Arm(arm.strategy)))  # fmt: skip
    axes.set_xlabel(f"validation {TASKS[x]}")
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.set_ylabel(f"validation {TASKS[y]}")
    axes.grid(color="0.92", linewidth=0.6)


def _line(axes: Axes, source: Source, dataset: str) -> None:
    """L1 + flipped = bound, as far as the panel goes."""
    lowest = bound(source, dataset, FULL)
    if lowest is None:
        return
    axes.plot([lowest / 2], [lowest / 2], color="0.3", marker="x", linestyle="none", label="mean image (no training)")
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    ends = np.array([max(left, lowest - high, 0.0), min(right, lowest - low, lowest)])
    axes.plot(ends, lowest - ends, color="0.6", linewidth=1.2, zorder=0, label="least L1 + flipped")


def _strengths(axes: Axes, source: Source, dataset: str, own: list[tuple[float, Arm]]) -> None:
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.grid(color="0.92", linewidth=0.6)
    axes.set_title(f"{source.title(dataset).split(' (')[0]}: conflict", fontsize=9.5)
    axes.set_xlabel("strength s")
    axes.set_ylabel("smallest cosine, probed")
    if not own:
        axes.text(0.5, 0.6, "strength not varied", transform=axes.transAxes, ha="center", color="0.4")
    for order, strategy in enumerate(METHODS):
        colour, marker = LOOKS[strategy]
        places, means = [], []
        for strength, arm in own:
            if arm.strategy != strategy:
                continue
            probes = source.evidence.own(source.evidence.probes, dataset, arm)
            values = per_run(probes[probes.name == "cosine/all"] if len(probes) else probes, "value").to_numpy(float)
            if len(values):
                places.append(strength)
                means.append(values.mean())
                axes.plot(np.full(len(values), strength) + 0.004 * order, values, color=colour, marker=marker,
                          markersize=3, alpha=0.45, linestyle="none")  # fmt: skip
        if places:
            axes.plot(places, means, color=colour, marker=marker, markersize=7, markeredgecolor="white", linewidth=1.6,
                      label=name(Arm(strategy)))  # fmt: skip
