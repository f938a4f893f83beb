"""Figures that need no training run: the toy problems, and GCond's zones (Table 1). Okabe and Ito's colours."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from gcond.study.figure_runs import frame
from gcond.study.methods import facts
from gcond.study.toy_page import ON_FRONT
from gcond.toy.problem import F1_SCALE, evaluate, front

STARTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
KINDS = {
    ("sequential", 0.0): ("#E69F00", "s", "sequential, tasks' noise unrelated"),
    ("sequential", 0.3): ("#0072B2", "o", "sequential, both tasks see the same samples (correlation 0.3)"),
    ("stochastic", 0.3): ("#009E73", "^", "stochastic, disjoint samples (half of K per task)"),
}
COLUMNS = 6
WINNER, LOSER = "#D55E00", "#0072B2"
THIN_POWERS = {1.0: (0, (1, 1.2)), 3.0: (0, (5, 1.5))}  # dashes of the remap powers that are not the paper's
SHADES = {"critical": "0.82", "moderate": "0.90", "mild": "0.96"}
EXTENT = (-10.0, 10.0, -10.0, 10.0)


def toy(folder: Path) -> dict[str, Figure]:
    """Name -> figure of the records in results/toy. Raises ValueError, naming the file, where one is missing."""
    for name in ("endpoints", "noise", "tradeoff"):
        if not (folder / f"{name}.csv").exists():
            raise ValueError(f"expected {folder / name}.csv, which does not exist; `make reproduce-toy` makes it")
    ends, noise, tradeoff = (pd.read_csv(folder / f"{name}.csv") for name in ("endpoints", "noise", "tradeoff"))
    paths = {name: pd.read_csv(folder / "trajectories" / f"{name}.csv") for name in ends.method.unique()}
    return {
        "trajectories": trajectories(ends, paths),
        "noise": noise_by_k(noise),
        "tradeoff": tradeoff_by_alpha(tradeoff),
    }


def trajectories(ends: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> Figure:
    """One panel per method; the last panel of the grid is the legend."""
    labels = dict(zip(ends.method, ends.label, strict=True))
    rows = -(-(len(labels) + 1) // COLUMNS)
    figure = Figure(figsize=(2.35 * COLUMNS, 2.5 * rows + 1.1), layout="constrained")
    panels = figure.subplots(rows, COLUMNS, sharex=True, sharey=True, squeeze=False)
    surface = _surface()
    for axes, (method, label) in zip(panels.flat, labels.items(), strict=False):
        _draw_panel(axes, surface, ends[ends.method == method], paths[method])
        axes.set_title(label, fontsize=9.5)
    for axes in panels.flat[len(labels) :]:
        axes.axis("off")
    panels.flat[-1].legend(handles=_trajectory_legend(ends), loc="center", frameon=False, fontsize=9)
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
    cosines = sorted(noise.cosine.unique())
    figure = Figure(figsize=(11, 8.2), layout="constrained")
    panels = figure.subplots(2, 2).flat
    for axes, columns, own in [
        (panels[0], "variance", noise[noise.cosine == cosines[0]]),
        *((panels[i + 1], "wrong", noise[noise.cosine == cosine]) for i, cosine in enumerate(cosines)),
    ]:
        _draw_against_k(axes, own, columns)
    panels[0].set_yscale("log", base=2)
    panels[0].yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"1/{1 / value:.0f}" if value < 1 else "1"))
    panels[0].set_title("Variance of an accumulated gradient")
    panels[0].set_ylabel("variance / variance of one micro-batch")
    for axes, cosine in zip(panels[1:], cosines, strict=True):
        axes.set_title(f"True cosine {cosine:+.1f}: the tasks " + ("conflict" if cosine < 0 else "agree"))
        axes.set_ylabel("share of wrong conflict signs")
        axes.set_ylim(-0.03, 1.03)
        axes.axhline(0.5, color="#999999", linewidth=0.8, linestyle=":")
    first = noise.iloc[0]
    rhos = sorted(noise.rho.unique())
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=text) for c, m, text in KINDS.values()]
    handles += [
        Line2D([], [], color="#444444", linestyle=style, label=f"correlation between micro-batches {rho:g}")
        for rho, style in zip(rhos, ("-", "--"), strict=True)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False, fontsize=10)
    figure.suptitle(
        f"A noisy quadratic with known conflict ({first.dimensions:.0f} dimensions, signal to noise {first.snr:g} per "
        f"micro-batch, {first.trials:.0f} windows per point)\nPoints: measured, with 95 % intervals. Lines: predicted.",
        fontsize=12,
    )
    return figure


def tradeoff_by_alpha(tradeoff: pd.DataFrame) -> Figure:
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_front_by_alpha(left, tradeoff[tradeoff.problem == "two-dimensional"])
    _draw_shares(right, tradeoff[tradeoff.problem == "regressions"])
    figure.suptitle("GradOPS re-weighted by alpha (formula unverified; alpha = 0 is the published sum)", fontsize=12)
    return figure


def _draw_panel(axes: Axes, surface: tuple[np.ndarray, ...], ends: pd.DataFrame, points: pd.DataFrame) -> None:
    axes.contour(*surface, levels=14, colors=[str(g) for g in np.linspace(0.55, 0.9, 14)], linewidths=0.6)
    axes.plot(*front().T, color="black", linewidth=3.0, zorder=3, solid_capstyle="butt")
    for start, colour in enumerate(STARTS):
        own = points[points.start == start]
        axes.plot(own.x1, own.x2, color=colour, linewidth=1.6, zorder=4)
        axes.plot(own.x1.iloc[:1], own.x2.iloc[:1], "o", color=colour, markersize=5, markeredgecolor="white", zorder=5)
    for end in ends.itertuples():
        marker, size = ("*", 11) if end.to_front <= ON_FRONT else ("X", 8)
        axes.plot(end.x1, end.x2, marker, color=STARTS[end.start], markersize=size, markeredgecolor="black", zorder=6)
    axes.set(xlim=EXTENT[:2], ylim=EXTENT[2:], xticks=[-7, 0, 7], yticks=[-8, 0, 8])
    axes.tick_params(labelsize=8)


def _trajectory_legend(ends: pd.DataFrame) -> list[Line2D]:
    starts = ends.drop_duplicates("start").sort_values("start")
    handles = [
        Line2D([], [], color=STARTS[row.start], marker="o", label=f"from ({row.start_x1:g}, {row.start_x2:g})")
        for row in starts.itertuples()
    ]
    plain = {"color": "#BBBBBB", "markeredgecolor": "black", "linestyle": "none"}
    handles += [Line2D([], [], marker="*", markersize=11, label="ends on the front", **plain)]
    handles += [Line2D([], [], marker="X", markersize=8, label="does not reach it", **plain)]
    return [*handles, Line2D([], [], color="black", linewidth=3, label="Pareto front")]


def _surface() -> tuple[np.ndarray, ...]:
    x1, x2 = np.linspace(*EXTENT[:2], 160), np.linspace(*EXTENT[2:], 160)
    values = [[evaluate(a, b)[0] for a in x1.tolist()] for b in x2.tolist()]
    return x1, x2, np.array(values) @ (F1_SCALE, 1.0)


def _draw_against_k(axes: Axes, noise: pd.DataFrame, what: str) -> None:
    rhos = sorted(noise.rho.unique())
    for (estimator, tau), (colour, marker, _) in KINDS.items():
        for rho, style, fill in zip(rhos, ("-", "--"), ("full", "none"), strict=True):
            own = noise[(noise.estimator == estimator) & (noise.tau == tau) & (noise.rho == rho)]
            values = own[what].to_numpy()
            bars = np.abs(own[[f"{what}_low", f"{what}_high"]].to_numpy().T - values)
            axes.plot(own.micro_batches, own[f"{what}_theory"], color=colour, linestyle=style, linewidth=1.3)
            axes.errorbar(
                own.micro_batches, values, bars, color=colour, marker=marker, fillstyle=fill, linestyle="none"
            )
    axes.set_xscale("log", base=2)
    axes.set_xticks(sorted(noise.micro_batches.unique()))
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("K, micro-batches in a window")
    axes.grid(alpha=0.25)


def _draw_front_by_alpha(axes: Axes, ends: pd.DataFrame) -> None:
    """Where on the front each start ends; an end off the front is a cross at the top."""
    table = ends.pivot_table(index=["alpha", "run"], columns="task", values="value").reset_index()
    on = (table.f1 < -0.03) & (table.f2 < -0.3)
    for start, colour in enumerate(STARTS):
        own = table[table.run == start].assign(share=table.f2 / -20)
        reached = own.share.where(on)
        axes.plot(own.alpha, reached, "o-", color=colour, markersize=5, label=f"start {start + 1}")
        axes.plot(own.alpha[reached.isna()] + 0.12 * (start - 2), np.full(reached.isna().sum(), 1.1), "x", color=colour)
    axes.set(xlabel="alpha", ylabel="share of the second loss's best value", ylim=(-0.04, 1.2))
    missed = f"crosses: {(~on).sum()} of {len(table)} ends off the front"
    axes.set_title(f"Two-dimensional problem: where on the front five starts end\n({missed})", fontsize=10)
    axes.legend(fontsize=9, frameon=False, loc="lower left", ncols=2)


def _draw_shares(axes: Axes, shares: pd.DataFrame) -> None:
    looks = zip(("#0072B2", "#E69F00", "#009E73"), "osv", ("longest target", "middle", "shortest target"), strict=True)
    for (task, own), (colour, marker, words) in zip(shares.groupby("task"), looks, strict=True):
        axes.plot(own.alpha, own.value, marker, color=colour, alpha=0.35, markersize=5)
        axes.plot(own.groupby("alpha").value.mean(), color=colour, marker=marker, label=f"task {task} ({words})")
    total = shares.groupby(["alpha", "run"]).value.sum().groupby("alpha").mean()
    axes.plot(total, color="black", linestyle="--", linewidth=1.2, label="sum of the three (1: on the front)")
    axes.set(
        xlabel="alpha (negative favours the tasks that progress least)", ylabel="unexplained share", ylim=(-0.04, 1.25)
    )
    axes.set_title("Three regressions that share two features\nfaint: seeds; lines: their mean", fontsize=10)
    axes.legend(fontsize=9, frameon=False, loc="upper center", ncols=2)


# Table 1.


def zones(folder: Path) -> dict[str, Figure]:
    """Of the resolver itself: shares of the full projection, and the cosine afterwards, against the cosine before."""
    path = folder / "zones.csv"
    if not path.exists():
        raise ValueError(f"nothing to draw: {path} does not exist; `make reproduce-table1` makes it")
    samples = pd.read_csv(path)
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
    frame(figure, spec["title"], "thresholds -0.8, -0.5 and 0; remap power 2", spec["caption"])
    return {"zones": figure}


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
