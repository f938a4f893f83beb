"""The figure of Table 1: effective angle, both factors and the cosine afterwards against the cosine before."""

from collections.abc import Iterator

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MultipleLocator

ANGLE, WINNER, LOSER = "#000000", "#D55E00", "#0072B2"  # Okabe and Ito's
THIN = {1.0: (0, (1, 1.2)), 3.0: (0, (5, 1.5))}  # dashes of the powers that are not the paper's
SHADES = {"critical": "0.82", "main": "0.90", "weak": "0.96"}
NAMES = {"critical": "critical", "main": "moderate", "weak": "mild"}
TOP = 1.12


def draw(samples: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(13, 7), layout="constrained")
    panels = figure.subplots(2, 3, sharex=True)
    smooth, step = samples[samples.logic == "smooth"], samples[samples.logic == "step"]
    for axes in (*panels[0], *panels[1, 1:]):
        _shade(axes, samples.iloc[0])
    _angle(panels[0, 0], smooth)
    _smooth_factors(panels[0, 1], smooth)
    _step_factors(panels[0, 2], step)
    panels[1, 0].axis("off")
    _reading(panels[1, 0])
    for axes, own, words in ((panels[1, 1], smooth, "smooth"), (panels[1, 2], step, "step")):
        _after(axes, own, words)
    for axes in (*panels[1, 1:], panels[0, 0]):
        axes.set_xlabel("cosine c of the pair")
        axes.tick_params(labelbottom=True)
    panels[0, 0].set_xlim(-1, samples.cosine.max())
    figure.suptitle("GCond's zones as the resolver has them (thresholds -0.8, -0.5, 0; remap power 2)", fontsize=12)
    return figure


def _shade(axes: Axes, settings: pd.Series) -> None:
    edges = [-1.0, settings.critical, settings.main, settings.weak]
    for (zone, shade), low, high in zip(SHADES.items(), edges, edges[1:], strict=False):
        axes.axvspan(low, high, color=shade, linewidth=0, zorder=0)
        axes.axvline(high, color="0.55", linewidth=0.7, zorder=1)
        axes.text((low + high) / 2, 0.985, NAMES[zone], ha="center", va="top", fontsize=8.5, color="0.25",
                  transform=axes.get_xaxis_transform())  # fmt: skip
    axes.xaxis.set_major_locator(MultipleLocator(0.2))


def _each_power(smooth: pd.DataFrame) -> Iterator[tuple[float, pd.DataFrame]]:
    """(power, its samples of conflicts), the paper's last so that it lies on top."""
    for power, own in sorted(smooth.groupby("remap_power"), key=lambda pair: pair[0] not in THIN):
        yield power, own[own.zone != "none"]


def _angle(axes: Axes, smooth: pd.DataFrame) -> None:
    for power, own in _each_power(smooth):
        dashes, width = (THIN[power], 1.0) if power in THIN else ("-", 2.4)
        axes.plot(own.cosine, np.degrees(own.angle), color=ANGLE, linestyle=dashes, linewidth=width,
                  label=f"remap power {power:g}" + ("" if power in THIN else " (the paper's)"))  # fmt: skip
    axes.set(title="smooth: effective angle", ylabel="angle alpha(c), degrees", ylim=(-6, 180 * TOP))
    axes.yaxis.set_major_locator(MultipleLocator(45))
    axes.legend(loc="lower left", fontsize=8.5, framealpha=1)


def _smooth_factors(axes: Axes, smooth: pd.DataFrame) -> None:
    for power, own in _each_power(smooth):
        dashes, width = (THIN[power], 1.0) if power in THIN else ("-", 2.4)
        label = None if power in THIN else "winner: s_w"
        axes.plot(own.cosine, own.s_w, color=WINNER, linestyle=dashes, linewidth=width, label=label)
        if power not in THIN:
            marks = {"marker": "o", "markersize": 4, "markevery": 12, "markerfacecolor": "white"}
            axes.plot(own.cosine, own.s_l, color=LOSER, linewidth=1.4, label="loser: s_l", **marks)
    axes.set(title="smooth: shares of the full projection", ylabel="factor")
    _factor_axis(axes)
    axes.legend(loc="lower center", fontsize=8.5, framealpha=1)


def _step_factors(axes: Axes, step: pd.DataFrame) -> None:
    """Every zone apart: a line across a threshold would draw a slope where there is a jump."""
    for zone in SHADES:
        own = step[step.zone == zone]
        last = zone == "weak"
        axes.plot(own.cosine, own.s_w, color=WINNER, linewidth=2.4, label="winner: s_w" if last else None)
        if own.loser_kept.eq(0).all():
            axes.plot(own.cosine, np.ones(len(own)), color=LOSER, linewidth=1.4, linestyle=(0, (2, 2)), marker="X",
                      markevery=8, label="loser vanishes (no factor)")  # fmt: skip
        else:
            marks = {"marker": "o", "markersize": 4, "markevery": 12, "markerfacecolor": "white"}
            axes.plot(own.cosine, own.s_l, color=LOSER, linewidth=1.4, label="loser: s_l" if last else None, **marks)
    axes.set(title="step: shares of the full projection", ylabel="factor")
    _factor_axis(axes)
    axes.legend(loc="center left", bbox_to_anchor=(0.0, 0.4), fontsize=8.5, framealpha=1)


def _factor_axis(axes: Axes) -> None:
    axes.set_ylim(-0.04, TOP)
    axes.yaxis.set_major_locator(MultipleLocator(0.25))


def _after(axes: Axes, own: pd.DataFrame, words: str) -> None:
    axes.axhline(0, color="0.4", linewidth=0.8)
    axes.plot(
        [-1, own.cosine.max()], [-1, own.cosine.max()], color="0.4", linewidth=1, linestyle=":", label="unchanged"
    )
    for power, part in own.groupby("remap_power", dropna=False):
        if power in THIN:
            axes.plot(part.cosine, part.cosine_after, color=ANGLE, linestyle=THIN[power], linewidth=1.0)
            continue
        for zone in [*SHADES, "none"]:
            piece = part[part.zone == zone] if words == "step" else part
            label = "after one iteration" if zone == "none" else None
            axes.plot(piece.cosine, piece.cosine_after, color=ANGLE, linewidth=2.2, label=label)
    axes.set(title=f"{words}: cosine of the pair afterwards", ylabel="cosine after", ylim=(-1.05, 1.05))
    axes.yaxis.set_major_locator(MultipleLocator(0.5))
    axes.legend(loc="lower right", fontsize=8.5, framealpha=1)


def _reading(axes: Axes) -> None:
    words = (
        "Both gradients are projected at once, each by its\nshare s of the full projection; a share of 1 makes\n"
        "it orthogonal to the other's old value.\n\nThick: the paper's power. Thin: remap powers\n"
        "1 (dotted) and 3 (dashed).\n\n"
        "Two full projections (s_w = s_l = 1) overshoot:\na pair of cosine c leaves with cosine -c.\n"
        "In the step logic's critical zone the loser is\nzero, and has no cosine."
    )
    axes.text(0.0, 0.85, words, fontsize=9.5, va="top", transform=axes.transAxes)
