"""Forest plots: a claim's findings with their intervals, and the paper's effect beside them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from gcond.study import judge, tables
from gcond.study.figure_runs import frame, ordered_datasets
from gcond.study.methods import RATES, dataset_label, facts, paper_table2

LOOKS = {"l1": ("#000000", "o", -0.14), "ssim": ("#D55E00", "^", 0.14)}  # colour, marker, place beside the row


def forest(name: str, spec: dict[str, Any], folder: Path, lr: float | str | None, datasets: Sequence[str],
           seeds: Sequence[int]) -> Figure:  # fmt: skip
    """A panel for each data set and epoch, a row for each comparison, a colour for each measure; all on one axis.

    `lr` as in claims.yaml (None: the paper's, else the scale's). Raises ValueError where nothing of it was run.
    """
    runs = tables.runs(folder)
    runs = runs[runs.seed.isin(seeds)] if seeds else runs
    runs = runs[runs.dataset.isin(datasets)] if datasets else runs
    for rate in ("paper", "own") if lr is None else (str(lr),):
        found = effects(spec, runs, rate)
        if len(found):
            break
    else:
        raise ValueError(
            f"nothing to draw: {folder} records no comparison of {name} at learning rate {lr or 'paper or own'}; "
            f"`make reproduce-{spec.get('artefact', name)} SCALE={folder.name}` makes the runs"
        )
    figure = _draw(found, spec)
    caption = [spec["caption"]]
    caption += [f"Bars: 95 % intervals over seeds; hollow: fewer than {judge.FEWEST} seeds; an arrow: the bar goes on."]
    caption += ["Diamonds: the paper's Table 2."] if found.paper.notna().any() else []
    if gone := [row["says"] for place, row in enumerate(spec["rows"]) if place not in set(found.place)]:
        caption.append(f"Missing: not run at this rate: {'; '.join(gone)}.")
    where = f"scale {folder.name}; {RATES.get(rate, f'learning rate {rate}')}; up to {found.n.max()} seeds"
    frame(figure, spec["title"], where, " ".join(caption))
    return figure


def effects(spec: dict[str, Any], runs: pd.DataFrame, rate: str) -> pd.DataFrame:
    """Findings of the figure's rows at one rate, with a row's `place`, what it `says`, and the `paper`'s effect."""
    known = facts("claims")[spec["claim"]]["contrasts"]  # some are of the paper's rate alone
    contrasts = [each | {"lr": rate} for each in known if each["lr"] != "paper" or rate == "paper"]
    found = judge.judge({spec["claim"]: {"contrasts": contrasts}}, runs)
    found = found[found.measure.isin(spec["measures"]) & found.epoch.isin(spec["epochs"]) & (found.group == "")]
    parts = []
    for place, row in enumerate(spec["rows"]):
        wanted = {"label": ""} | {key: value for key, value in row.items() if key != "says"}
        same = np.logical_and.reduce([found[key] == value for key, value in wanted.items()])
        parts.append(found[same].assign(place=place, says=row["says"]))
    found = pd.concat(parts)
    return found.assign(paper=[_paper(one) for one in found.itertuples()])


def _paper(one: Any) -> float:
    """The paper's change in percent: of validation losses, against Baseline, with its BatchNorm frozen in GCond."""
    paper = paper_table2(one.dataset, one.measure)
    comparable = one.epoch == "best_val" and one.theirs == "baseline" != one.ours and one.ours in paper
    if not comparable or one.mode == "eval":
        return math.nan
    return 100 * (paper[one.ours][0] / paper["baseline"][0] - 1)


def _draw(found: pd.DataFrame, spec: dict[str, Any]) -> Figure:
    datasets = ordered_datasets(found.dataset)
    epochs = [epoch for epoch in spec["epochs"] if (found.epoch == epoch).any()]
    says = {dataset: found[found.dataset == dataset].groupby("place").says.first() for dataset in datasets}
    heights = [len(rows) + 1 for rows in says.values()]
    figure = Figure(figsize=(4 + 3 * len(epochs), 0.36 * sum(heights) + 0.6 * len(datasets)), layout="constrained")
    grid = figure.add_gridspec(len(datasets), len(epochs), height_ratios=heights)
    ends = pd.concat([found.low, found.high])  # of few seeds they are wide: no further than twice the largest effect
    ends = ends[ends.abs() <= 2 * found.effect.abs().max()]
    values = pd.concat([ends, found.effect, found.paper.dropna(), pd.Series([0.0])])
    room = 0.05 * (values.max() - values.min())
    limits = values.min() - room, values.max() + room
    for (dataset, epoch), own in found.groupby(["dataset", "epoch"]):
        rows, across = says[dataset], epochs.index(epoch)
        axes = figure.add_subplot(grid[datasets.index(dataset), across])
        axes.axvline(0, color="0.35", linewidth=1)
        axes.grid(color="0.92", linewidth=0.6, axis="x")
        for one in own.itertuples():
            _mark(axes, one, rows.index.get_loc(one.place), *limits)
        axes.set_yticks(range(len(rows)), rows if across == 0 else [""] * len(rows), fontsize=9)
        axes.set(ylim=(len(rows) - 0.5, -0.5), xlim=limits, xlabel=spec["x"])
        axes.set_title(f"{dataset_label(dataset)}\n{facts('methods')['epochs'][epoch]}", fontsize=9.5, parse_math=False)
    return figure


def _mark(axes: Axes, one: Any, place: int, low: float, high: float) -> None:
    colour, marker, shift = LOOKS[one.measure]
    words, y = facts("methods")["measures"][one.measure], place + shift
    if one.n > 1:
        axes.plot(np.clip([one.low, one.high], low, high), [y, y], color=colour, linewidth=1.6)
        for end, arrow in ((one.low, "<"), (one.high, ">")):
            if not low <= end <= high:
                axes.plot([np.clip(end, low, high)], [y], color=colour, marker=arrow, markersize=5, clip_on=False)
    face = colour if one.n >= judge.FEWEST else "white"
    axes.plot([one.effect], [y], marker, color=colour, markersize=6.5, markerfacecolor=face, label=words)
    if not math.isnan(one.paper):
        look = {"color": colour, "markersize": 6, "markerfacecolor": "none", "label": f"the paper's {words}"}
        axes.plot([one.paper], [y], "D", **look)
