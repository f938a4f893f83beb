"""Table 2: the losses of every method over seeds, of the recorded runs of one scale, beside the paper's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gcond.study import tables
from gcond.study.judge import FEWEST, by_pair, compare
from gcond.study.methods import (
    PAPER_MODEL,
    PREDICTOR,
    dataset_label,
    facts,
    group,
    label,
    ordered,
    ordered_datasets,
    paper_table2,
)

MEASURES, EPOCHS = ("l1", "ssim"), ("best_val", "last_val", "best_test")
CELL = ["dataset", "measure", "epoch"]  # what names a column
FORMS = {"%": "+z.1f", "cosine": "+z.2f", "correlation": "+z.2f", "difference": "+z.3f", "area": "+z.4f",
         "points": "+z.1f", "ratio": ".2f", "share": "z.1f", "MB": ",.0f", "GB": ".1f", "images": ".0f"}  # fmt: skip
DECIMALS = 4  # of a printed loss; a few seeds do not carry more


@dataclass(frozen=True)
class Printed:
    """A table of recorded runs: `cells`, tidy, and the finished `runs` behind them."""

    cells: pd.DataFrame
    runs: pd.DataFrame

    @property
    def datasets(self) -> list[str]:
        return list(self.cells.dataset.unique())

    def title(self, dataset: str) -> str:
        """As the runs call their data, such as "CT (public samples, 10 patients)"."""
        titles = self.runs[self.runs.dataset == dataset].get("dataset_title", pd.Series(dtype=str)).dropna()
        return str(titles.iloc[0]) if len(titles) else dataset_label(dataset)


@dataclass(frozen=True)
class Table2(Printed):
    """`cells`: a row for each method, data set, measure and epoch: mean, sd, n, failed, best, beaten, its `gap` to
    Baseline in percent with `low` and `high`, and of the best epoch the paper's `paper`, `paper_sd` and `paper_gap`.
    `seeds`: those that were asked for."""

    failed: pd.DataFrame
    seeds: tuple[int, ...]
    model: str

    @property
    def complete(self) -> bool:
        """No method lacks a seed on a data set on which it was started."""
        started = self.cells[~self.cells.strategy.str.startswith(PREDICTOR) & (self.cells.n + self.cells.failed > 0)]
        return bool(len(started)) and bool((started.n >= len(self.seeds)).all())

    def rows(self, dataset: str, epochs: Sequence[str]) -> list[list[str]]:
        """A printed table of one data set: heading, then a row a method below the title of its group; at the best
        validation epoch with the paper's numbers."""
        own = self.cells[(self.cells.dataset == dataset) & self.cells.epoch.isin(epochs)]
        known, paper = facts("methods"), own.paper.notna().any()
        heading = ["method"]
        for epoch, measure in product(epochs, MEASURES):
            name = known["measures"][measure] + (f", {known['epochs'][epoch]}" if len(epochs) > 1 else "")
            heading += [name, "% of Baseline", *([f"paper: {name}", "paper: %"] if paper else [])]
        rows = [heading]
        for title in dict.fromkeys(known["groups"]):
            lines = own[own.group == title]
            if len(lines):
                rows.append([f"*{known['groups'][title]}*", *[""] * (len(heading) - 1)])
            for _, line in lines.groupby("strategy", sort=False):
                cells = line.set_index(["epoch", "measure"])
                row = [line.label.iloc[0]]
                for place in product(epochs, MEASURES):
                    cell = cells.loc[place]
                    row += [self.loss(cell), effect(cell, "gap", "gap_n")]
                    gap = "" if not cell.paper_gap else f"{cell.paper_gap:+.1f}".replace("+nan", "")  # Baseline's is 0
                    row += [plus_minus(cell.paper, cell.paper_sd), gap] if paper else []
                rows.append(row)
        return rows

    def loss(self, cell: pd.Series) -> str:
        """ "**0.4815 ± 0.0093**† (n = 2 of 3, 1 failed)"."""
        if not cell.n:
            return f"failed ({cell.failed} of {len(self.seeds)})" if cell.failed else "not run"
        text = plus_minus(cell["mean"], cell.sd)
        text = (f"**{text}**" if cell.best else text) + ("†" if cell.beaten else "")
        if cell.group == "predictor" or cell.n >= len(self.seeds):
            return text
        return f"{text} (n = {cell.n} of {len(self.seeds)}{f', {cell.failed} failed' if cell.failed else ''})"


def plus_minus(mean: float, deviation: float) -> str:
    if math.isnan(mean):
        return ""
    return f"{mean:.{DECIMALS}f}" + ("" if math.isnan(deviation) else f" ± {deviation:.{DECIMALS}f}")


def effect(row: Any, name: str = "effect", n: str = "n") -> str:
    """ "-3.7 [-5.3, -2.0]" in the digits of its unit; a difference is bold where the interval excludes none and n is at
    least FEWEST seeds. Without an interval the number alone, without a number nothing."""
    value, low, high = (float(row[each]) for each in (name, "low", "high"))
    form = FORMS.get(row.get("unit", "%"), "z.2g")
    if math.isnan(value) or math.isnan(low):
        return "" if math.isnan(value) else f"{value:{form}}"
    signed = form.replace("z", "")  # -0.0 says on which side of zero an interval ends
    text = f"{value:{form}} [{low + 0.0:{signed}}, {high + 0.0:{signed}}]"
    none = 1 if row.get("unit") == "ratio" else 0  # no difference
    differs = row.get("theirs", "baseline") and row.get("group") != "patients" and (low > none or high < none)
    return f"**{text}**" if row[n] >= FEWEST and differs else text


def build(folder: Path, lr: str = "own", seeds: Sequence[int] = (), datasets: Sequence[str] = ()) -> Table2:
    """Of the runs recorded in `folder`. `lr`: own (the scale's), paper, best (each arm's) or a number; no `seeds` or
    `datasets`: all that ran. Raises ValueError where none ran, and where runs cannot share a table."""
    every, recorded = tables.runs(folder), tables.read(folder)
    runs = tables.of_paper_model(every[in_lineup(every)])
    model = _only(runs.model, "model") or PAPER_MODEL
    runs = tables.at_rate(runs, lr)
    names = list(datasets) or ordered_datasets(runs.dataset)
    runs = runs[runs.dataset.isin(names) & (runs.seed.isin(seeds) if seeds else True)]
    settings = runs.groupby("strategy").setting.nunique()
    several = set(settings.index[settings > 1])
    runs = _named(runs, several)
    for dataset, own in runs.groupby("dataset"):
        _only(own.data_checksum[own.data_checksum != ""], f"data_checksum of {dataset}")
    for (dataset, strategy), own in runs.groupby(["dataset", "strategy"]):
        for name in ("model_mode", "steps"):
            _only(own[name], f"{name} of {strategy} on {dataset}")
    asked = tuple(seeds) or tuple(sorted(runs.seed.unique()))
    failed = recorded[(recorded.status == tables.FAILED) & recorded.dataset.isin(names) & recorded.seed.isin(asked)]
    failed = failed.assign(setting=[tables.setting(tables.overrides(each)) for each in failed.variant.fillna("")])
    failed = _named(failed[in_lineup(failed) & (failed.model == model)], several)
    if runs.empty and failed.empty:
        raise ValueError(f"nothing to report: no run of Table 2 in {folder} ({len(every)} of other settings, rates or "
                         "seeds); `gcond study run table2` makes it")  # fmt: skip
    shown = {
        *runs.strategy,
        *failed.strategy,
        *(name for name in facts("methods")["methods"] if group(name) == "paper"),
    }
    predictors = tables.predictors(folder)
    predictors = predictors[predictors.dataset.isin(names) & predictors.data_checksum.isin(runs.data_checksum)]
    cells = _cells(runs, predictors, failed, ordered(shown), names)
    return Table2(_marked(cells.merge(_gaps(runs), "left"), len(asked)), runs, failed, asked, model)


def in_lineup(runs: pd.DataFrame) -> pd.Series:
    """Mask of the runs with Table 2's settings; a user's method may have other ones of its strategy."""
    known = runs.strategy.isin(list(facts("methods")["methods"]))
    own = [all(key.startswith("strategy.") for key in tables.overrides(each)) for each in runs.setting]
    return ((runs.setting == "") & (runs.model_mode == "train")) | (~known & np.array(own, dtype=bool))


def _named(runs: pd.DataFrame, several: set[str]) -> pd.DataFrame:
    """A user's method that ran at several settings is several methods, each with its setting in its name."""
    names = [f"{strategy}, {setting.replace('strategy.', '')}" if setting and strategy in several else strategy
             for strategy, setting in zip(runs.strategy, runs.setting, strict=True)]  # fmt: skip
    return runs.assign(strategy=names)


def _only(values: pd.Series, what: str) -> str:
    """The one value that all have, "" of none."""
    found = sorted(set(values))
    if len(found) > 1:
        raise ValueError(f"runs cannot share a table: expected one {what}, found {'; '.join(map(str, found))}; record "
                         "some elsewhere (OUT=DIR)")  # fmt: skip
    return found[0] if found else ""


def _cells(runs: pd.DataFrame, predictors: pd.DataFrame, failed: pd.DataFrame, methods: list[str], datasets: list[str]
           ) -> pd.DataFrame:  # fmt: skip
    columns = [f"{epoch}_{measure}" for epoch in EPOCHS for measure in MEASURES]
    guesses = predictors.drop_duplicates(["dataset", "predictor"]).assign(strategy=PREDICTOR + predictors.predictor)
    guesses = guesses.assign(**{column: guesses.get(column.split("_", 1)[1]) for column in columns})
    losses = pd.concat([runs, guesses]).astype(dict.fromkeys(columns, float))
    found = losses.melt(["strategy", "dataset"], columns, "column").groupby(["strategy", "dataset", "column"]).value
    known = [PREDICTOR + name for name in facts("methods")["predictors"]]
    lines = [*methods, *(name for name in known if name in set(guesses.strategy))]
    index = pd.MultiIndex.from_product([lines, datasets, columns], names=["strategy", "dataset", "column"])
    cells = found.agg(mean="mean", sd="std", n="count").reindex(index).reset_index()
    cells[["at", "split", "measure"]] = cells.column.str.split("_", expand=True)
    run = ["strategy", "dataset", "seed"]
    lost = failed.merge(runs[run].drop_duplicates(), "left", run, indicator="made").query("made == 'left_only'")
    lost = lost.groupby(["strategy", "dataset"]).seed.nunique().rename("failed")
    cells = cells.join(lost, on=["strategy", "dataset"]).fillna({"n": 0, "failed": 0}).astype({"n": int, "failed": int})
    cells = cells.assign(label=cells.strategy.map(label), group=cells.strategy.map(group),
                         epoch=cells["at"] + "_" + cells.split).merge(_paper(datasets), "left")  # fmt: skip
    names = ["strategy", "label", "group", *CELL, "mean", "sd", "n", "failed", "paper", "paper_sd", "paper_gap"]
    return cells[names]


def _paper(datasets: list[str]) -> pd.DataFrame:
    """The paper's means, +- and percent of its Baseline."""
    rows = [(method, dataset, measure, "best_val", *loss) for dataset, measure in product(datasets, MEASURES)
            for method, loss in paper_table2(dataset, measure).items()]  # fmt: skip
    return pd.DataFrame(rows, columns=["strategy", *CELL, "paper", "paper_sd", "paper_gap"])


def _marked(cells: pd.DataFrame, asked: int) -> pd.DataFrame:
    """`best`: the lowest printed mean of a column among two or more methods with all seeds. `beaten`: an L1 that is not
    below that of the best predictor without training."""
    printed = cells["mean"].round(DECIMALS)
    guess = cells.strategy.str.startswith(PREDICTOR)
    whole = printed.where(~guess & (cells.n >= asked))
    columns = [cells[name] for name in CELL]
    best = (whole == whole.groupby(columns).transform("min")) & (whole.groupby(columns).transform("count") > 1)
    bar = printed.where(guess).groupby(columns).transform("min")
    return cells.assign(best=best, beaten=(cells.measure == "l1") & ~guess & (printed >= bar))


def _gaps(runs: pd.DataFrame) -> pd.DataFrame:
    """Each method less Baseline, in percent of Baseline, with its 95 % interval over seeds."""
    rows = []
    for dataset, own in runs.groupby("dataset"):
        arms = {str(strategy): by_pair(arm) for strategy, arm in own.groupby("strategy")}
        base = arms.pop("baseline", None)
        for (strategy, arm), measure, epoch in product(arms.items() if base is not None else (), MEASURES, EPOCHS):
            found = compare(arm, base, None, measure, epoch)
            if found["n"]:
                rows.append((strategy, dataset, measure, epoch, *map(found.get, ("effect", "n", "low", "high"))))
    return pd.DataFrame(rows, columns=["strategy", *CELL, "gap", "gap_n", "low", "high"])
