"""Figures that need no training run: the toy problems, and GCond's zones (Table 1). Okabe and Ito's colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from gcond.study import tables
from gcond.study.figure_runs import frame
from gcond.study.methods import facts
from gcond.study.toy_page import ON_FRONT, read
from gcond.toy.problem import F1_SCALE, evaluate, front

STARTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
KINDS = {  # estimator, tau -> colour, marker, words
    ("sequential", 0.0): ("#E69F00", "s", "sequential, tasks' noise unrelated"),
    ("sequential", 0.3): ("#0072B2", "o", "sequential, both tasks see the same samples (correlation 0.3)"),
    ("stochastic", 0.3): ("#009E73", "^", "stochastic, disjoint samples (half of K per task)"),
}
RHOS = ("-", "full"), ("--", "none")  # line and marker, of each correlation between micro-batches
TASKS = {"a": ("#0072B2", "o", "longest target"), "b": ("#E69F00", "s", "middle"),
         "c": ("#009E73", "v", "shortest target")}  # fmt: skip
COLUMNS = 6
WINNER, LOSER = "#D55E00", "#0072B2"
THIN_POWERS = {1.0: (0, (1, 1.2)), 3.0: (0, (5, 1.5))}  # dashes of the remap powers that are not the paper's
SHADES = {"critical": "0.82", "moderate": "0.90", "mild": "0.96"}
EXTENT = (-10.0, 10.0)


# The toy problems.


def toy(folder: Path) -> dict[str, Figure]:
    """Name -> figure of the records in results/toy. Raises ValueError, naming the file, where one is missing."""
    ends, paths, noise, tradeoff = read(folder)
    return {
        "trajectories": trajectories(ends, paths),
        "noise": noise_by_k(noise),
        "tradeoff": tradeoff_by_alpha(tradeoff),
    }


def trajectories(ends: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> Figure:
    """One panel per method; the last panel of the grid is the legend."""
    count = ends.method.nunique()
    rows = -(-(count + 1) // COLUMNS)
    figure = Figure(figsize=(2.35 * COLUMNS, 2.5 * rows + 1.1), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False).flat
    x = np.linspace(*EXTENT, 160)
    sums = np.array([[evaluate(a, b)[0] for a in x.tolist()] for b in x.tolist()]) @ (F1_SCALE, 1.0)
    levels = {"levels": 14, "colors": [str(grey) for grey in np.linspace(0.55, 0.9, 14)], "linewidths": 0.6}
    edge = {"markeredgecolor": "black", "linestyle": "none"}
    for axes, (method, own) in zip(panels, ends.groupby("method", sort=False), strict=False):
        axes.contour(x, x, sums, **levels)
        axes.plot(*front().T, color="black", linewidth=3.0, zorder=3, solid_capstyle="butt")
        for (_, path), colour in zip(paths[method].groupby("start"), STARTS, strict=True):
            axes.plot(path.x1, path.x2, color=colour, linewidth=1.6, zorder=4)
            axes.plot(
                path.x1.iloc[:1], path.x2.iloc[:1], "o", color=colour, markersize=5, markeredgecolor="white", zorder=5
            )
        for end in own.itertuples():
            marker, size = ("*", 11) if end.to_front <= ON_FRONT else ("X", 8)
            axes.plot(end.x1, end.x2, marker, color=STARTS[end.start], markersize=size, zorder=6, **edge)
        axes.set(xlim=EXTENT, ylim=EXTENT, xticks=[-7, 0, 7], yticks=[-8, 0, 8])
        axes.tick_params(labelsize=8)
        axes.set_title(own.label.iloc[0], fontsize=9.5)
    for axes in panels[count:]:
        axes.axis("off")
    starts = ends.drop_duplicates("start").sort_values("start")
    handles = [Line2D([], [], color=STARTS[row.start], marker="o", label=f"from ({row.start_x1:g}, {row.start_x2:g})")
               for row in starts.itertuples()]  # fmt: skip
    handles += [Line2D([], [], color="#BBBBBB", marker=marker, markersize=size, label=words, **edge)
                for marker, size, words in (("*", 11, "ends on the front"), ("X", 8, "does not reach it"))]  # fmt: skip
    handles += [Line2D([], [], color="black", linewidth=3, label="Pareto front")]
    panels[-1].legend(handles=handles, loc="center", frameon=False, fontsize=9)
    figure.supxlabel("$x_1$", fontsize=11)
    figure.supylabel("$x_2$", fontsize=11)
    figure.suptitle(
        "Two losses, two parameters: where each method goes from five starts\n"
        "Grey: level lines of the sum of both losses, darker is lower. Black: the Pareto front, where neither loss can "
        "fall without the other rising.",
        fontsize=11,
    )
    return figure


def noise_by_k(noise: pd.DataFrame) -> Figure:
    """Variance and wrong conflict signs against K: points are measured, lines predicted."""
    cosines, rhos = sorted(noise.cosine.unique()), sorted(noise.rho.unique())
    figure = Figure(figsize=(11, 8.2), layout="constrained")
    variance, *signs = figure.subplots(2, 2).flat
    _against_k(variance, noise[noise.cosine == cosines[0]], "variance")
    variance.set_yscale("log", base=2)
    variance.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1/{1 / value:.0f}" if value < 1 else "1"))
    variance.set(title="Variance of an accumulated gradient", ylabel="variance / variance of one micro-batch")
    for axes, cosine in zip(signs, cosines, strict=True):
        _against_k(axes, noise[noise.cosine == cosine], "wrong")
        axes.set_title(f"True cosine {cosine:+.1f}: the tasks " + ("conflict" if cosine < 0 else "agree"))
        axes.set(ylabel="share of wrong conflict signs", ylim=(-0.03, 1.03))
        axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    first = noise.iloc[0]
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=text) for c, m, text in KINDS.values()]
    handles += [Line2D([], [], color="#444444", linestyle=style, label=f"correlation between micro-batches {rho:g}")
                for rho, (style, _) in zip(rhos, RHOS, strict=True)]  # fmt: skip
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.suptitle(
        f"A noisy quadratic with known conflict ({first.dimensions:.0f} dimensions, signal to noise {first.snr:g} per "
        f"micro-batch, {first.trials:.0f} windows per point)\nPoints: measured, with 95 % intervals. Lines: predicted.",
        fontsize=12,
    )
    return figure


def _against_k(axes: Axes, noise: pd.DataFrame, what: str) -> None:
    for (estimator, tau), (colour, marker, _) in KINDS.items():
        same = noise[(noise.estimator == estimator) & (noise.tau == tau)]
        for (_, own), (style, fill) in zip(same.groupby("rho"), RHOS, strict=True):
            bars = np.abs(own[[f"{what}_low", f"{what}_high"]].to_numpy().T - own[what].to_numpy())
            axes.plot(own.micro_batches, own[f"{what}_theory"], color=colour, linestyle=style, linewidth=1.3)
            look = {"color": colour, "marker": marker, "fillstyle": fill, "linestyle": "none"}
            axes.errorbar(own.micro_batches, own[what], bars, **look)
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(noise.micro_batches.unique()))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("K, micro-batches in a window")
    axes.grid(alpha=0.25)


def tradeoff_by_alpha(tradeoff: pd.DataFrame) -> Figure:
    """Left: where on the front each start ends, an end off the front as a cross at the top; right: the regressions."""
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    ends = tradeoff[tradeoff.problem == "two-dimensional"]
    table = ends.pivot_table(index=["alpha", "run"], columns="task", values="value").reset_index()
    on = (table.f1 < -0.03) & (table.f2 < -0.3)
    for start, colour in enumerate(STARTS):
        own = table[table.run == start]
        reached = (own.f2 / -20).where(on)
        left.plot(own.alpha, reached, "o-", color=colour, markersize=5, label=f"start {start + 1}")
        left.plot(own.alpha[reached.isna()] + 0.12 * (start - 2), np.full(reached.isna().sum(), 1.1), "x", color=colour)
    left.set(xlabel="alpha", ylabel="share of the second loss's best value", ylim=(-0.04, 1.2))
    missed = f"crosses: {(~on).sum()} of {len(table)} ends off the front"
    left.set_title(f"Two-dimensional problem: where on the front five starts end\n({missed})", fontsize=10)
    left.legend(fontsize=9, frameon=False, loc="lower left", ncols=2)
    shares = tradeoff[tradeoff.problem == "regressions"]
    for task, (colour, marker, words) in TASKS.items():
        own = shares[shares.task == task]
        right.plot(own.alpha, own.value, marker, color=colour, alpha=0.35, markersize=5)
        right.plot(own.groupby("alpha").value.mean(), color=colour, marker=marker, label=f"task {task} ({words})")
    total = shares.groupby(["alpha", "run"]).value.sum().groupby("alpha").mean()
    right.plot(total, color="black", linestyle="--", linewidth=1.2, label="sum of the three (1: on the front)")
    right.set(xlabel="alpha (negative favours the tasks that progress least)", ylabel="unexplained share",
              ylim=(-0.04, 1.25))  # fmt: skip
    right.set_title("Three regressions that share two features\nfaint: seeds; lines: their mean", fontsize=10)
    right.legend(fontsize=9, frameon=False, loc="upper center", ncols=2)
    figure.suptitle("GradOPS re-weighted by alpha (formula unverified; alpha = 0 is the published sum)", fontsize=12)
    return figure


# Table 1.


def zones(folder: Path) -> dict[str, Figure]:
    """Shares of the full projection, and the cosine afterwards, against the cosine before, as the resolver has them."""
    samples = tables.read_csv(folder / "zones.csv", "table1")
    figure = Figure(figsize=(10.5, 6.4), layout="constrained")
    panels = figure.subplots(2, 2, sharex=True, sharey="row")
    for (upper, lower), logic in zip(panels.T, ("smooth", "step"), strict=True):
        own = samples[samples.logic == logic]
        upper.set_title(f"{logic} logic" + (" (the default)" if logic == "smooth" else ""), fontsize=10.5)
        for axes in (upper, lower):
            _shade(axes, own.iloc[0])
        for power, part in own.groupby("remap_power", dropna=False):
            # By zone where the step logic jumps: a line across a threshold would draw a slope.
            for piece in [rows for _, rows in part.groupby("zone")] if logic == "step" else [part]:
                _projection(upper, lower, piece, power)
        ends = [-1, own.cosine.max()]
        lower.plot(ends, ends, color="0.4", linewidth=1, linestyle=":", label="unchanged")
        lower.axhline(0, color="0.4", linewidth=0.8)
        lower.set_xlabel("cosine c of the pair")
    panels[1, 1].text(-0.9, 0.15, "the loser\nvanishes", ha="center", fontsize=8.5)
    panels[0, 0].set(ylabel="share of the full projection", ylim=(-0.04, 1.14), xlim=(-1, samples.cosine.max()))
    panels[1, 0].set(ylabel="cosine after one iteration", ylim=(-1.05, 1.05))
    spec = facts("figures")["figures"]["table1"]
    return {"zones": frame(figure, spec["title"], "thresholds -0.8, -0.5 and 0; remap power 2", spec["caption"])}


def _projection(upper: Axes, lower: Axes, piece: pd.DataFrame, power: float) -> None:
    resolved = piece[piece.zone != "none"]
    if power in THIN_POWERS:
        thin = {"linewidth": 1, "linestyle": THIN_POWERS[power]}
        upper.plot(resolved.cosine, resolved.s_w, color=WINNER, **thin)
        lower.plot(piece.cosine, piece.cosine_after, color="black", label=f"the same, remap power {power:g}", **thin)
        return
    upper.plot(resolved.cosine, resolved.s_w, color=WINNER, linewidth=2.4, label="winner: s_w")
    marks = {"marker": "o", "markersize": 4, "markevery": 12, "markerfacecolor": "white"}
    upper.plot(resolved.cosine, resolved.s_l.fillna(1), color=LOSER, linewidth=1.4, label="loser: s_l", **marks)
    lower.plot(piece.cosine, piece.cosine_after, color="black", linewidth=2.4, label="cosine afterwards")


def _shade(axes: Axes, settings: Any) -> None:
    edges = [-1.0, settings.critical, settings.main, settings.weak]
    place = {"ha": "center", "va": "top", "transform": axes.get_xaxis_transform(), "fontsize": 8.5, "color": "0.25"}
    for (zone, shade), low, high in zip(SHADES.items(), edges, edges[1:], strict=False):
        axes.axvspan(low, high, color=shade, linewidth=0, zorder=0)
        axes.text((low + high) / 2, 0.985, zone, **place)
