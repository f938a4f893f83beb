"""The figures of results/toy. Colours: Okabe and Ito's, safe for colour-blind readers."""

from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, NullFormatter, ScalarFormatter

from gcond.files import write_atomically
from gcond.study.toy_page import ON_FRONT
from gcond.toy.problem import F1_SCALE, evaluate, front

STARTS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00")
KINDS = {
    ("sequential", 0.0): ("#E69F00", "s", "sequential, tasks' noise unrelated"),
    ("sequential", 0.3): ("#0072B2", "o", "sequential, both tasks see the same samples (correlation 0.3)"),
    ("stochastic", 0.3): ("#009E73", "^", "stochastic, disjoint samples (half of K per task)"),
}
COLUMNS = 6
EXTENT = (-10.0, 10.0, -10.0, 10.0)


def draw_trajectories(ends: pd.DataFrame, paths: dict[str, pd.DataFrame], path: Path) -> None:
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
    _save(figure, path)


def draw_noise(noise: pd.DataFrame, path: Path) -> None:
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
    _save(figure, path)


def draw_tradeoff(tradeoff: pd.DataFrame, path: Path) -> None:
    figure = Figure(figsize=(11.5, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2)
    _draw_front_by_alpha(left, tradeoff[tradeoff.problem == "two-dimensional"])
    _draw_shares(right, tradeoff[tradeoff.problem == "regressions"])
    figure.suptitle("GradOPS re-weighted by alpha (formula unverified; alpha = 0 is the published sum)", fontsize=12)
    _save(figure, path)


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
    curve = np.array([evaluate(*point)[0] for point in front().tolist()]) * (F1_SCALE, 1.0)
    axes.plot(*curve.T, color="black", linewidth=1.5, label="Pareto front")
    table = ends.pivot_table(index=["alpha", "run"], columns="task", values="value").reset_index()
    on = table[(table.f1 < -0.03) & (table.f2 < -0.3)]
    colours = _alpha_colours(sorted(table.alpha.unique()))
    for index, (alpha, own) in enumerate(table.groupby("alpha")):
        below = own[own.index.isin(on.index)]
        axes.plot(below.f1, below.f2, "o", color=colours[alpha], markersize=4 + 1.2 * index, fillstyle="none",
                  markeredgewidth=1.8, label=f"alpha = {alpha:g}")  # fmt: skip
    axes.set(xlabel="$0.1\\,f_1$ (lower is better)", ylabel="$f_2$ (lower is better)")
    outside = f"{len(table) - len(on)} of {len(table)} ends lie outside the frame"
    axes.set_title(f"Two-dimensional problem: ends from five starts\n({outside})", fontsize=10)
    axes.legend(fontsize=9, frameon=False)


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


def _alpha_colours(alphas: list[float]) -> dict[float, tuple[float, ...]]:
    scale = LinearSegmentedColormap.from_list("alpha", ["#0072B2", "#56B4E9", "#555555", "#E69F00", "#D55E00"])
    return {alpha: scale(i / max(1, len(alphas) - 1)) for i, alpha in enumerate(alphas)}


def _save(figure: Figure, path: Path) -> None:
    write_atomically(path, lambda to: figure.savefig(to, dpi=100, metadata={"Software": None}))
