"""The study's figures: study/figures.yaml says what each shows, this file knows the few ways to draw.

A figure is made of a tidy table, a row a point. A panel without points is not drawn, and the caption, which is part of
the picture, says what is missing.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Callable, Iterable, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter, NullLocator

from gcond.files import write_atomically
from gcond.study import computed_plots, judge, tables
from gcond.study.figure_runs import Chosen, choose, family, finish, frame, seeds_in_words
from gcond.study.methods import RATES, dataset_label, facts, label, look, ordered_datasets, paper_table2

NAMES = tuple(facts("figures")["figures"])
BEST, FLAT = "best predictor without training", "dataset_mean"
LINES = {  # what a line stands for, if not an arm: words and look
    "initial": ("initial weights", {"colour": "#0072B2", "dash": [4, 2], "marker": "s"}),
    "last": ("last checkpoint", {"colour": "#D55E00", "dash": [], "marker": "o"}),
    "cosine_min": ("the cosine itself", {"colour": "#000000", "dash": [], "marker": "o"}),
    "published": ("what the published code logs", {"colour": "#D55E00", "dash": [4, 2], "marker": "^"}),
}
MARKS = (  # of a forest: colour, marker, place beside the row, width of the bar, face
    ("#000000", "o", -0.12, 2.6, "#000000"),
    ("#0072B2", "s", 0.2, 1.0, "white"),
)
WIDTH = 9.0  # inches of a figure: GitHub shows about 900 pixels, at which its letters keep their size
X_LABELS = {"step": "optimizer step", "window": "K, micro-batches", "run": "learning rate"}
BANDS = (  # of activations: quantiles, shade, words
    ("0.001", "0.999", 0.16, "0.1 to 99.9 %"),
    ("0.05", "0.95", 0.34, "5 to 95 %"),
    ("0.25", "0.75", 0.62, "middle half"),
)
PROBE_LEVELS = {"untrained_test": "untrained encoder", "pixels_test": "pixels", "chance": "chance"}
NO_POINTS = pd.DataFrame({"state": pd.Series(dtype=str), "x": pd.Series(dtype=float), "y": pd.Series(dtype=float)})


def draw(
    name: str,
    results: Path,
    *,
    scale: str = "mini",
    lr: float | str | None = None,
    datasets: Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
) -> list[Path]:
    """Draw the figure `name` from results/<scale> as PNG; returns the files written.

    `lr`: a number, "own", "paper" or "best" (None: see figures.yaml). Raises ValueError where there is nothing to draw.
    """
    if name not in NAMES:
        raise ValueError(f"`name` of a figure: expected one of {', '.join(NAMES)}, found {name!r}")
    spec = facts("figures")["figures"][name]
    if spec["kind"] in APART:
        found = APART[spec["kind"]](results / name)
        return [_save(figure, results / name / "figures" / f"{each}.png") for each, figure in found.items()]
    folder = results / scale
    if spec["kind"] == "forest":
        figure = forest(name, spec, folder, lr, datasets or (), seeds or ())
    else:
        seeds = (tables.PICTURED,) if spec["kind"] == "pictures" else seeds
        figure = KINDS[spec["kind"]](choose(name, spec, folder, lr, datasets or (), seeds or ()))
    suffix = "" if lr is None else f"_lr{lr if isinstance(lr, str) else tables.written(lr)}"
    return [_save(figure, folder / "figures" / f"{name}{suffix}.png")]


def of(artefact: str) -> list[str]:
    """The figures that an artefact of the catalogue has."""
    return [name for name, spec in facts("figures")["figures"].items() if artefact in (name, spec.get("artefact"))]


def _save(figure: Figure, path: Path) -> Path:
    """Write a PNG without a date, so that the same records give the same bytes; at most 1350 pixels wide."""
    dpi = min(150, 1350 / figure.get_figwidth())
    write_atomically(path, lambda to: figure.savefig(to, dpi=dpi, metadata={"Software": None}))
    return path


# Lines.


def lines(chosen: Chosen) -> Figure:
    """Panels of lines: mean over seeds, and single seeds where there are several."""
    spec, points = chosen.spec, tidy(chosen)
    rows, columns = spec.get("rows", ["dataset"]), spec.get("columns", ["quantity"])
    apart = "arm" in rows + columns  # the arms have panels of their own
    figure, cells = _grid(points, rows, columns)
    for axes, own in cells:
        first = own.iloc[0]
        quantity = facts("figures")["quantities"][first.quantity]
        named = [label(first.arm)] if apart and len(chosen.arms) > 1 else []
        named += [quantity.get("title", "")] if spec.get("line") != "quantity" else []
        _title(axes, chosen, first.dataset, *named)
        beside = axes.get_subplotspec().colspan.start and {"limits", "shared"} & quantity.keys()  # the same axis
        axes.set(xlabel=X_LABELS.get(quantity["of"], "epoch"), ylabel="" if beside else quantity["label"])
        _references(axes, chosen, first, quantity, own)
        for order, (style, line) in enumerate(_lines(own, spec.get("line", "arm"), chosen)):
            whole = quantity["of"] == "run" and line.x.nunique() == own.x.nunique()  # every rate of the panel
            _line(axes, line, style, order, alone=apart, lowest=whole)
        _scale(axes, quantity, own, points)
    several = points.groupby(["arm", "dataset"], observed=True).seed.nunique().max() > 1
    return finish(figure, chosen, "Thick: mean over seeds; thin: single seeds." if several else "")


def tidy(chosen: Chosen) -> pd.DataFrame:
    """Points of a figure of lines: dataset, arm, seed, quantity, state (of windows), x, y."""
    known = {name: facts("figures")["quantities"][name] for name in chosen.spec["quantities"]}
    parts = []
    for run in chosen.runs.itertuples():
        logs = {kind: chosen.log(run, kind) for kind in {quantity["of"] for quantity in known.values()} - {"run"}}
        for name, quantity in known.items():
            log = pd.DataFrame([run]) if quantity["of"] == "run" else logs[quantity["of"]]
            log = binned(log, quantity.get("bins", tables.BINS)) if quantity["of"] == "step" else log
            own = _points(log, name, quantity)
            own["y"] *= 100.0 if quantity.get("percent") else 1.0
            parts.append(own.assign(dataset=run.dataset, arm=run.strategy, seed=run.seed, quantity=name))
    points = _ordered(pd.concat(parts, ignore_index=True), chosen, quantity=list(known))
    return points.sort_values(["quantity", "dataset", "arm", "seed", "state", "x"], kind="stable")


def _points(log: pd.DataFrame, name: str, quantity: dict[str, Any]) -> pd.DataFrame:
    """x, y and state of one quantity of one run."""
    if quantity["of"] == "window":
        own = log[(log["mode"] == "train") & (log.group == "all")]
        counts = [column for column in own if re.fullmatch(rf"{name}/\d+", str(column))]
        table = own.melt("state", counts, "x", "y") if counts else NO_POINTS.copy()
        table["x"] = [float(text.rpartition("/")[2]) for text in table.x]
        table = table.sort_values("x")
        if quantity.get("falls"):
            table["y"] = table.y / table.groupby("state").y.transform("first")
        return table
    if name not in log:
        return NO_POINTS.copy()
    if quantity["of"] == "step":
        x = (log.first_step + log.last_step) / 2
    else:
        x = log.lr if quantity["of"] == "run" else log.epoch
    return pd.DataFrame({"state": "", "x": x.astype(float), "y": log[name].astype(float)})


def binned(log: pd.DataFrame, bins: int) -> pd.DataFrame:
    """A run's steps as at most `bins` means; minima are averaged, conflicts weigh a bin by its steps with a cosine.

    `published` is what the published code shows as the minimum cosine: 1 wherever no pair lies below 0.
    """
    table = tables.steps(log, bins).reset_index(drop=True)
    if "cosine_min" not in table:
        return table
    derived = table.cosine_min.where(table.cosine_min < 0, 1.0).where(table.cosine_min.notna())
    table["published"] = table.published_cosine if "published_cosine" in table else derived
    if len(table) <= bins:
        return table
    place = table.index // math.ceil(len(table) / bins)
    merged = table.groupby(place).mean(numeric_only=True)
    merged["first_step"] = table.first_step.groupby(place).min()
    merged["last_step"] = table.last_step.groupby(place).max()
    weight = table.cosine_steps.where(table.conflicts.notna())
    merged["conflicts"] = (table.conflicts * weight).groupby(place).sum() / weight.groupby(place).sum()
    return merged


def _ordered(points: pd.DataFrame, chosen: Chosen, **orders: list[str]) -> pd.DataFrame:
    """Drop gaps, and order groups as the figure does."""
    for name, order in {"dataset": chosen.datasets, "arm": chosen.arms, **orders}.items():
        points[name] = pd.Categorical(points[name], order, ordered=True)
    return points[points.x.notna() & points.y.notna()]


def _grid(points: pd.DataFrame, rows: list[str], columns: list[str]) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """A panel for each pair of a row and a column that has points; a single column of panels goes across."""
    if points.empty:
        raise ValueError("nothing to draw: these runs have no records of what the figure shows")
    down, across = ([key for key, _ in points.groupby(names, observed=True)] for names in (rows, columns))
    n = len(rows)
    placed = {
        (down.index(key[:n]), across.index(key[n:])): own
        for key, own in points.groupby([*rows, *columns], observed=True)
    }
    shape = (len(down), len(across))
    if len(across) == 1 and len(down) > 1:
        wide = 2 if len(down) in (2, 4) else 3
        placed = {divmod(row, wide): own for (row, _), own in placed.items()}
        shape = (-(-len(down) // wide), wide)
    width, height = {1: (7.2, 4.2), 2: (WIDTH, 3.4)}.get(shape[1], (WIDTH, 2.9))
    figure = Figure(figsize=(width, height * shape[0]), layout="constrained")
    grid = figure.add_gridspec(*shape)
    return figure, [(figure.add_subplot(grid[place]), own) for place, own in sorted(placed.items())]


def _title(axes: Axes, chosen: Chosen, dataset: str, *words: str, second: str = "") -> None:
    """Set a panel's title. It names the data set only where the figure has several."""
    width = int(10.5 * axes.figure.get_figwidth() / axes.get_gridspec().ncols)
    named = textwrap.wrap(", ".join(filter(None, words)), width)
    named += [dataset_label(dataset).partition(" (")[0]] if len(chosen.datasets) > 1 else []
    axes.set_title("\n".join([*named, *filter(None, [second])]), fontsize=9.5, parse_math=False)
    axes.grid(color="0.92", linewidth=0.6)


def _lines(own: pd.DataFrame, line: str, chosen: Chosen) -> Iterable[tuple[dict[str, Any], pd.DataFrame]]:
    """The look and the points of each line of a panel, in order."""
    for value, points in own.groupby(line, observed=True):
        name = str(value)
        words, style = LINES[name] if line != "arm" else (label(name), look(name, chosen.arms))
        dash = (0, tuple(style["dash"])) if style["dash"] else "-"
        yield {"label": words, "color": style["colour"], "linestyle": dash, "marker": style["marker"]}, points


def _line(
    axes: Axes, points: pd.DataFrame, style: dict[str, Any], order: int, alone: bool = False, lowest: bool = False
) -> None:
    """Draw a mean over seeds. Baseline is wide, below the others: a method that resolves nothing lies exactly on it.

    alone: no other line lies below it; lowest: ring its lowest point.
    """
    table = points.pivot_table(values="y", index="x", columns="seed")
    wide = style["label"] == label("baseline") and not alone
    if table.shape[1] > 1:
        thin = {"linewidth": 0.6, "alpha": 0.3, "color": style["color"], "linestyle": style["linestyle"]}
        axes.plot(table.index, table.to_numpy(), zorder=1.5, **thin)
    every = max(1, len(table) // 8)
    marks = {"markersize": 5, "markevery": (order % every, every), "markeredgecolor": "white", "markeredgewidth": 0.4}
    thick = {"linewidth": 3.4, "zorder": 2} if wide else {"linewidth": 1.7, "zorder": 3}
    axes.plot(table.index, table.mean(axis=1, skipna=False), **thick, **style, **marks)
    if lowest:
        best = table.mean(axis=1).idxmin()
        ring = {"markersize": 12, "markerfacecolor": "none", "markeredgewidth": 1.8, "zorder": 4}
        axes.plot([best], [table.mean(axis=1)[best]], "o", color=style["color"], **ring)


def _references(axes: Axes, chosen: Chosen, first: Any, quantity: dict[str, Any], own: pd.DataFrame) -> None:
    """Draw what to compare with: the best predictor without training, levels that mean something, 1/K."""
    for level in quantity.get("levels", ()):
        axes.axhline(level, color="0.45", linewidth=0.9, linestyle="-" if level == 0 else ":")
    if quantity.get("falls"):
        counts = np.array(sorted(own.x.unique()))
        axes.plot(counts, 1 / counts, color="0.6", linewidth=5, alpha=0.5, zorder=1, label="1/K")
    known = tables.predictors(chosen.folder) if quantity.get("beside") == "best" else pd.DataFrame()
    if len(known) and (known.dataset == first.dataset).any():
        known = known.assign(selection=tables.selection_loss(known, "val"))
        best = known[known.dataset == first.dataset][first.quantity].min()
        axes.axhline(best, color="0.45", linestyle=(0, (6, 3)), linewidth=1.3, label=BEST)
    if quantity["of"] == "run":
        axes.axvline(tables.PAPER_LR, color="#D55E00", linewidth=6, alpha=0.25, zorder=0, label="the paper's rate")


def _scale(axes: Axes, quantity: dict[str, Any], own: pd.DataFrame, points: pd.DataFrame) -> None:
    if "limits" in quantity:
        axes.set_ylim(quantity["limits"])
    if quantity.get("shared"):  # of the means: single seeds may leave the panel
        alike = [name for name, other in facts("figures")["quantities"].items() if other["label"] == quantity["label"]]
        keys = ["quantity", "dataset", "arm", "x"]
        means = points[points.quantity.isin(alike)].groupby(keys, observed=True).y.mean()
        low, high = min(means.min(), 0), max(means.max(), 0)
        axes.set_ylim(low - 0.1 * (high - low), high + 0.1 * (high - low))
    if quantity.get("log") and (own.y > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if quantity["of"] in ("window", "run"):
        counts = sorted(own.x.unique())
        axes.set_xscale("log")
        axes.set_xticks(counts, [f"{count:g}" if count >= 1 else tables.written(count) for count in counts])
        axes.xaxis.set_minor_locator(NullLocator())
    else:
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))


# Clouds of runs.


def scatter(chosen: Chosen) -> Figure:
    """Small marks are runs, large ones a method's mean; a line joins the means of static weights."""
    probed = "losses" not in chosen.spec
    figure, cells = _grid((_probed if probed else _losses)(chosen), ["dataset", "row"], ["column"])
    for axes, own in cells:
        first = own.iloc[0]
        _title(axes, chosen, first.dataset, first["row"])
        axes.set(xlabel=first.x_label, ylabel=first.y_label)
        axes.xaxis.set_major_locator(MaxNLocator(5))
        for style, runs in _lines(own[~own.front], "arm", chosen):
            style = style | {"linestyle": "none"}
            axes.plot(runs.x, runs.y, markersize=4, alpha=0.4, **style | {"label": None})
            axes.plot([runs.x.mean()], [runs.y.mean()], markersize=9, markeredgecolor="white", **style)
        if probed:
            _probe_levels(axes, first)
            continue
        _front(axes, own, named=first.column == 0)
        if "flipped" in chain(*chosen.spec["losses"]):
            _mean_image(axes, *chosen.spec["losses"][first.column], first.dataset, chosen)
    weights = "Grey: a weighted sum at other fixed weights." if len(chosen.static) else ""
    return finish(figure, chosen, f"Large: mean over seeds; small: single seeds. {weights}")


def _front(axes: Axes, points: pd.DataFrame, named: bool) -> None:
    """Join the means of static weights in the order `along`; write the weights beside each where `named`. One loss
    alone may lie outside."""
    means = points[points.front].groupby("weights")[["x", "y", "along"]].mean().sort_values("along")
    if len(means) < 2:
        return
    look = {"color": "0.55", "markersize": 5, "markerfacecolor": "white", "zorder": 1}
    axes.plot(means.x, means.y, "o-", label="static weights", **look)
    for index, (weights, point) in enumerate(means.iterrows() if named else ()):
        left = index < len(means) / 2  # keep inside the panel, and clear of the neighbours
        offset = {"ha": "left" if left else "right", "xytext": (7 if left else -7, 3 if index % 2 else -8)}
        axes.annotate(weights, point[["x", "y"]], textcoords="offset points", fontsize=7, color="0.35", **offset)
    inside = points[~points.front | ~points.alone]
    for name in "xy":
        low, high = inside[name].min(), inside[name].max()
        if high > low:
            axes.set(**{f"{name}lim": (low - 0.12 * (high - low), high + 0.12 * (high - low))})


def _losses(chosen: Chosen) -> pd.DataFrame:
    """Pairs of losses on test at the best validation epoch, a column a pair: of the methods, and of static weights
    (`front`), Baseline's own among them. `weights`: all but the last, as they sum to 1; `alone`: trained with one loss;
    `along`: what static weights are joined by, the first weight of two, else x."""
    measures = facts("methods")["measures"]
    points = pd.concat([chosen.runs.assign(front=False), chosen.static.assign(front=True)], ignore_index=True)
    lambdas = points[[f"lambda_{loss}" for loss in dict.fromkeys(chain(*chosen.spec["losses"]))]].fillna(0.0)
    weights = lambdas.iloc[:, :-1].apply(
        lambda run: " ".join(f"{weight:g}".removeprefix("0") or "0" for weight in run), axis="columns"
    )
    points = points.assign(arm=points.strategy, weights=weights, alone=lambdas.max(axis="columns") == 1, row="")
    first = lambdas.iloc[:, 0] if lambdas.shape[1] == 2 else None
    pairs = [points.assign(column=column, x=points[f"best_test_{x}"], y=points[f"best_test_{y}"],
                           along=points[f"best_test_{x}"] if first is None else first,
                           x_label=f"test {measures[x]}", y_label=f"test {measures[y]}")
             for column, (x, y) in enumerate(chosen.spec["losses"])]  # fmt: skip
    return _ordered(pd.concat(pairs, ignore_index=True), chosen, column=list(range(len(pairs))))


def _probed(chosen: Chosen) -> pd.DataFrame:
    """Loss on test after the last epoch, and the linear probe's score."""
    parts = []
    for run in chosen.runs.itertuples():
        log = chosen.log(run, "linear_probe")
        loss = run.lambda_l1 * run.last_test_l1 + run.lambda_ssim * run.last_test_ssim
        parts.append(log.assign(dataset=run.dataset, arm=run.strategy, seed=run.seed, x=loss, y=log.test_score,
                                front=False, row=log.task, column=0, x_label="reconstruction loss, test, last epoch",
                                y_label="probe: " + log.measure))  # fmt: skip
    points = pd.concat(parts, ignore_index=True)
    return _ordered(points, chosen, row=list(points["row"].unique()))


def _probe_levels(axes: Axes, first: Any) -> None:
    for column, words in PROBE_LEVELS.items():
        thick = column == "untrained_test"
        style = {"color": "0.35", "linewidth": 2.6 if thick else 1.2, "linestyle": "-" if thick else ":", "zorder": 0}
        axes.axhline(first[column], **style)
        axes.text(
            1, first[column], f"{words} ", fontsize=8, transform=axes.get_yaxis_transform(), ha="right", va="bottom"
        )


def _mean_image(axes: Axes, x: str, y: str, dataset: str, chosen: Chosen) -> None:
    """Mark the mean image, which has learnt nothing, and the bound of L1 + inverted L1, on which it lies.

    The third target is (1 - 2 s) times the image, in z-space, where the mean is 0.
    """
    known = tables.predictors(chosen.folder)
    flat = known[(known.dataset == dataset) & (known.predictor == FLAT)]
    if flat.empty:
        return
    test, strength = flat.iloc[0], float(chosen.spec["settings"].get("loss.reconstruction.flip_strength", 1))
    loss = float(test.test_l1)
    place = [[abs(1 - 2 * strength) * loss if name == "flipped" else test[f"test_{name}"]] for name in (x, y)]
    cross = {"color": "black", "markersize": 13, "markerfacecolor": "none", "markeredgewidth": 1.6, "zorder": 5}
    axes.plot(*place, "X", label="mean image, nothing learnt", linestyle="none", **cross)
    if {x, y} == {"l1", "flipped"}:
        (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
        least = 2 * strength * loss  # from the image to the third target
        ends = np.array([max(left, least - high, 0.0), min(right, least - low, least)])
        axes.plot(ends, least - ends, color="0.35", linewidth=0.8, zorder=0, label="least sum of both")


# Distributions of activations.


def bands(chosen: Chosen) -> Figure:
    """A panel for each method: quantiles by epoch, all on one axis."""
    names = [f"quantiles.{end}" for low, high, *_ in BANDS for end in (low, high)]
    logs = [chosen.log(run, "activations").assign(dataset=run.dataset, arm=run.strategy, seed=run.seed)
            for run in chosen.runs.itertuples()]  # fmt: skip
    points = pd.concat(logs, ignore_index=True).reindex(columns=["dataset", "arm", "epoch", "quantiles.0.5", *names])
    points = _ordered(points.assign(x=points.epoch, y=points["quantiles.0.5"]), chosen)
    figure, cells = _grid(points, ["dataset"], ["arm"])
    most = points[names].abs().max().max() * 1.05
    for axes, own in cells:
        mean = own.groupby("epoch")[["y", *names]].mean()
        for low, high, alpha, words in BANDS:
            ends = mean[f"quantiles.{low}"], mean[f"quantiles.{high}"]
            axes.fill_between(mean.index, *ends, color="0.35", alpha=alpha, linewidth=0, label=words)
        axes.plot(mean.index, mean.y, "o-", color="black", linewidth=1.8, markersize=4, label="median")
        width = mean[names[1]].iloc[-1] - mean[names[0]].iloc[-1]
        _title(axes, chosen, own.dataset.iloc[0], label(own.arm.iloc[0]),
               second=f"last epoch: width {width:,.0f}")  # fmt: skip
        axes.set(xlabel="epoch", ylabel="activation", ylim=(-most, most))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return finish(figure, chosen, "Width: from the lowest to the highest quantile. All panels share their axis.")


# Forests: findings with their intervals, and the paper's effect beside them.


def forest(name: str, spec: dict[str, Any], folder: Path, lr: float | str | None, datasets: Sequence[str],
           seeds: Sequence[int]) -> Figure:  # fmt: skip
    """A row of panels for each data set, a panel for each learning rate, a row for each comparison; all on one axis.

    `lr` as in claims.yaml (None: those of the figure, else own). Raises ValueError where nothing of it was run.
    """
    runs = tables.of_paper_model(tables.runs(folder))
    runs = runs[runs.seed.isin(seeds)] if seeds else runs
    runs = runs[runs.dataset.isin(datasets)] if datasets else runs
    for rates in (spec["rates"], ["own"]) if lr is None else ([str(lr)],):
        if parts := [found for rate in rates if len(found := effects(spec, runs, rate, folder))]:
            break
    else:
        raise ValueError(
            f"nothing to draw: {folder} records no comparison of {name} at learning rate {' or '.join(rates)}; "
            f"`gcond study run {spec.get('artefact', name)} --scale {folder.name}` makes the runs"
        )
    found = pd.concat(parts)
    figure = _forest_panels(found, spec)
    caption = [spec["caption"]]
    if gone := [row["says"].strip(" -") for place, row in enumerate(spec["rows"]) if place not in set(found.place)]:
        caption.append(f"Missing, not run: {'; '.join(gone)}.")
    where = f"scale {folder.name}; {seeds_in_words(found[found.group == ''].n)} a comparison"
    return frame(figure, spec["title"], where, " ".join(caption))


def effects(spec: dict[str, Any], runs: pd.DataFrame, rate: str, folder: Path) -> pd.DataFrame:
    """Findings of the figure's rows at one rate, with a row's `place`, what it `says`, and the `paper`'s effect."""
    known = [spec["contrast"]] if "contrast" in spec else [
        each for claim in spec["claims"] for each in facts("claims")[claim]["contrasts"]
    ]  # fmt: skip
    known = [{"lr": ["own"]} | each for each in known
             if each.get("label", "") in {row.get("label", "") for row in spec["rows"]}]  # fmt: skip
    marks = [{"measure": spec.get("measure")} | mark for mark in spec["marks"]]
    narrow = {name: list(dict.fromkeys(mark[name] for mark in marks)) for name in ("measure", "epoch")}
    narrow |= {"mode": "train"}
    contrasts = [each | narrow | {"lr": rate} for each in known if isinstance(each["lr"], list)]
    contrasts += [  # of one rate: the paper's, or, beside the best ones, another
        each | narrow for each in known
        if not isinstance(each["lr"], list) and rate == ("paper" if each["lr"] == "paper" else "best")
    ]  # fmt: skip
    judged = judge.judge({"": {"contrasts": contrasts}}, runs, folder)
    parts = []
    for place, row in enumerate(spec["rows"]):
        if rate not in row.get("rates", [rate]):
            continue
        for mark, where in enumerate(marks):
            wanted = {"label": "", "mode": "train"} | {key: row[key] for key in row if key not in ("says", "rates")}
            wanted |= {name: where[name] for name in ("measure", "group", "epoch")}
            same = np.logical_and.reduce([judged[key] == value for key, value in wanted.items()])
            parts.append(judged[same].assign(place=place, says=row["says"], mark=mark))
    found = pd.concat(parts).dropna(subset="effect")
    return found.assign(paper=[_paper(one) for one in found.itertuples()], rate=rate)


def _paper(one: Any) -> float:
    """The change in percent in the paper: validation loss against Baseline at 2e-4, BatchNorm frozen in GCond."""
    paper = paper_table2(one.dataset, one.measure)
    comparable = one.lr == "paper" and one.epoch in ("best_val", "best_test") and one.theirs == "baseline" != one.ours
    return paper[one.ours].gap if comparable and one.ours in paper else math.nan


def _forest_panels(found: pd.DataFrame, spec: dict[str, Any]) -> Figure:
    datasets, rates = ordered_datasets(found.dataset), list(found.rate.unique())
    says = {dataset: found[found.dataset == dataset].groupby("place").says.first() for dataset in datasets}
    heights = [len(rows) + 1 for rows in says.values()]
    figure = Figure(figsize=(WIDTH, 0.34 * sum(heights) + 0.7 * len(datasets)), layout="constrained")
    grid = figure.add_gridspec(len(datasets), len(rates), height_ratios=heights)
    ends = pd.concat([found.low, found.high])  # of few seeds they are wide: no further than twice the largest effect
    ends = ends[ends.abs() <= 2 * found.effect.abs().max()]
    values = pd.concat([ends, found.effect, found.paper.dropna(), pd.Series([0.0])])
    room = 0.05 * (values.max() - values.min())
    limits = values.min() - room, values.max() + room
    beside = {"fontsize": 8.5, "va": "center"}
    for (dataset, rate), own in found.groupby(["dataset", "rate"]):
        rows, across = says[dataset], rates.index(rate)
        leftmost = rate == next(each for each in rates if each in set(found.rate[found.dataset == dataset]))
        axes = figure.add_subplot(grid[datasets.index(dataset), across])
        axes.axvline(0, color="0.35", linewidth=1)
        axes.grid(color="0.92", linewidth=0.6, axis="x")
        for one in own.itertuples():
            _mark(axes, one, spec["marks"][one.mark]["says"], rows.index.get_loc(one.place), *limits)
        for place, first in own.sort_values("mark").groupby("place").effect.first().items():
            y, words = rows.index.get_loc(place), f"{round(first, 1) + 0:+.1f}"
            axes.text(1.02, y, words, transform=axes.get_yaxis_transform(), **beside)
        axes.set_yticks(range(len(rows)), rows.str.removeprefix("- ") if leftmost else [""] * len(rows), fontsize=9)
        for place, text in enumerate(axes.get_yticklabels()):
            if not rows.iloc[place].startswith("-"):  # not a part of the row above
                text.set_fontweight("bold")
                axes.axhline(place - 0.5, color="0.8", linewidth=0.8)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=limits, xlabel=spec["x"])
        axes.set_title(f"{dataset_label(dataset)}\n{RATES.get(rate, f'learning rate {rate}')}", fontsize=9.5)
    return figure


def _mark(axes: Axes, one: Any, words: str, place: int, low: float, high: float) -> None:
    colour, marker, shift, width, face = MARKS[one.mark]
    y = place + shift
    if one.n > 1:
        axes.plot(np.clip([one.low, one.high], low, high), [y, y], color=colour, linewidth=width)
        for end, arrow in ((one.low, "<"), (one.high, ">")):
            if not low <= end <= high:
                axes.plot([np.clip(end, low, high)], [y], color=colour, marker=arrow, markersize=5, clip_on=False)
    look = {"color": colour, "markersize": 6.5, "markerfacecolor": face, "linestyle": "none"}
    axes.plot([one.effect], [y], marker, label=words, **look)
    if not math.isnan(one.paper):
        look = {"color": "#D55E00", "markersize": 17, "markeredgewidth": 3.2, "zorder": 4}
        axes.plot([one.paper], [place], "|", label="the paper's result (validation)", **look)


# Pictures.


def pictures(chosen: Chosen) -> Figure:
    """Held-out photographs, never of patients: a row an image; original, masked, and as each method fills it in.

    The records (`tables.pictures`) hold `original`, `masked`, `pasted` (uint8 [n, C, S, S]), `hidden` [n, H], the
    places of hidden patches, row-major, and `patch_size`.
    """
    if patients := [dataset for dataset in chosen.datasets if family(dataset) == "ct"]:
        raise ValueError(f"`datasets`: expected photographs, found {', '.join(patients)}: patients are never drawn")
    runs = chosen.runs.assign(path=[tables.pictures(chosen.folder, log) for log in chosen.runs.log])
    runs = runs[[path.exists() for path in runs.path]]
    if runs.empty:
        raise ValueError(f"nothing to draw: {chosen.folder / 'pictures'} has none of {chosen.rate}; those of seed "
                         f"{tables.PICTURED} are recorded with its runs")  # fmt: skip
    paths = runs.set_index("strategy").path
    own = {arm: dict(np.load(paths[arm], allow_pickle=False)) for arm in chosen.arms if arm in paths}
    first = next(iter(own.values()))
    for arm, other in own.items():
        if any(not np.array_equal(first[part], other[part]) for part in ("original", "masked", "hidden")):
            raise ValueError(f"{paths[arm]}: expected the images and masks of the other runs, found others; "
                             "remove the outdated runs")  # fmt: skip
    original, size = first["original"].astype(float), int(first["patch_size"])
    across = original.shape[-1] // size
    patches = np.stack([np.isin(np.arange(across**2), places) for places in first["hidden"]])  # [n, N], true: hidden
    mask = np.kron(patches.reshape(-1, across, across), np.ones((size, size))).astype(bool)[:, None]
    visible = np.where(mask, np.nan, original)
    flat = np.where(mask, np.nanmean(visible, axis=(2, 3), keepdims=True), original)

    def error(guess: np.ndarray) -> float:
        """Mean absolute error over the hidden pixels, in [0, 1]; the guess is right elsewhere."""
        return float(np.abs(guess - original).mean() / 255 / mask.mean())

    columns = {"original\n\n": first["original"], f"masked\nflat guess\n{error(flat):.3f}": first["masked"]}
    for arm, each in own.items():
        words = textwrap.fill(label(arm), 11)
        columns[f"{words}{chr(10) * (2 - words.count(chr(10)))}{error(each['pasted']):.3f}"] = each["pasted"]
    figure = Figure(figsize=(WIDTH, WIDTH / len(columns) * len(original) + 0.6), layout="constrained")
    panels = figure.subplots(len(original), len(columns), squeeze=False)
    for (image, column), axes in np.ndenumerate(panels):
        words = list(columns)[column]
        pixels = np.moveaxis(columns[words][image], 0, -1)
        axes.imshow(np.repeat(pixels, 3, -1) if pixels.shape[-1] == 1 else pixels, interpolation="nearest")
        axes.set(xticks=[], yticks=[])
        axes.spines[:].set_visible(False)
        axes.set_title(words if image == 0 else "", fontsize=8)
        for y, x in np.argwhere(~patches[image].reshape(across, across)) * size if column else ():
            axes.add_patch(Rectangle((x - 0.5, y - 0.5), size, size, fill=False, edgecolor="#00C000", linewidth=0.9))
    chosen.missing.extend(f"{label(arm)}: no pictures recorded" for arm in chosen.arms if arm not in own)
    return finish(figure, chosen, f"Seed {tables.PICTURED}, after the last epoch.")


KINDS: dict[str, Callable[[Chosen], Figure]] = {
    "lines": lines,
    "scatter": scatter,
    "bands": bands,
    "pictures": pictures,
}
APART: dict[str, Callable[[Path], dict[str, Figure]]] = {"zones": computed_plots.zones, "toy": computed_plots.toy}
