"""Tables 5 and 6 of edition B, reconstruction and classification together, of the recorded runs of one scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.study import tables
from gcond.study.judge import ACCURACIES, compare
from gcond.study.methods import facts, kind, label, ordered
from gcond.study.table2 import Printed, effect

NAMES = ("b-table5", "b-table6")
EPOCHS = {"best_val": "val", "best_test": "test"}  # -> its split
HIGHER = ("auc", *ACCURACIES)  # is better; compared by difference
SETTING = ["model", "setting", "steps", "data_checksum"]
GUESS = "best guess without training"


@dataclass(frozen=True)
class TableB(Printed):
    """`cells`: a row for each data set, method, epoch and measure (accuracies in percent): mean, sd, n; `effect` to
    Baseline with `low` and `high`, paired by seed; the paper's `paper` and `paper_effect`.
    `left_out`: how many others have labels, at other rates or settings."""

    left_out: int

    @property
    def complete(self) -> bool:
        """Every method of the paper ran, and has as many seeds as any other."""
        own = self.cells[self.cells.paper.notna() | (self.cells.n > 0)]
        return bool((own[own.method != GUESS].n == own.n.max()).all())

    def printed(self, dataset: str, epoch: str = "best_val") -> list[list[list[str]]]:
        """Values, then changes against Baseline; on validation each beside the paper's."""
        own = self.cells[(self.cells.dataset == dataset) & (self.cells.epoch == epoch)]
        lines = {str(method): cells.to_dict("records") for method, cells in own.groupby("method", sort=False)}

        def row(method: str, *columns: Callable[[dict[str, Any]], str]) -> list[str]:
            shown = columns if epoch == "best_val" else columns[:1]
            return [column(cell) for cell in lines[method] for column in shown]

        heading, rest = "baseline", [method for method in lines if method not in ("baseline", GUESS)]
        values = [["method", "learning rate", *row(heading, lambda cell: cell["title"], lambda _: "paper")]]
        values += [[label(method), lines[method][0]["lr"], *row(method, _value, _paper_value)] for method in lines]
        changes = [["change against Baseline", *row(heading, _change, lambda _: "paper")]]
        changes += [[label(method), *row(method, effect, _paper_effect)] for method in rest]
        return [values, changes]


def _value(cell: dict[str, Any]) -> str:
    deviation = "" if math.isnan(cell["sd"]) else f" ± {cell['sd']:{_form(cell)}}"
    return "" if math.isnan(cell["mean"]) else f"{cell['mean']:{_form(cell)}}{deviation}"


def _paper_value(cell: dict[str, Any]) -> str:
    return "" if math.isnan(cell["paper"]) else f"{cell['paper']:{_form(cell)}}"


def _form(cell: dict[str, Any]) -> str:
    return ".2f" if cell["measure"].startswith("top") else ".4f"


def _change(cell: dict[str, Any]) -> str:
    return cell["title"].removesuffix(", %") + (", difference" if cell["measure"] in HIGHER else ", %")


def _paper_effect(cell: dict[str, Any]) -> str:
    return effect(cell | {"effect": cell["paper_effect"], "low": math.nan})


def build(
    name: str, folder: Path, lr: str | float | None = None, seeds: Sequence[int] = (), datasets: Sequence[str] = ()
) -> TableB:
    """Of the runs with labels recorded in `folder`, on a data set all at one setting: that of most of them. `lr`:
    without one, each method's best. Raises ValueError where none ran."""
    every = tables.runs(folder)
    runs = every[(every.labels == "dataset") & (every.dataset.map(kind) == facts("paper")[name]["kind"])]
    runs = runs[runs.dataset.isin(datasets or runs.dataset) & runs.seed.isin(seeds or runs.seed)]
    at_rate = runs.index.isin(tables.at_rate(every, lr or "best").index)
    arms = runs.dataset + " " + runs.strategy
    chosen = runs[at_rate | (~arms.isin(arms[at_rate]) & (not lr))]  # without a best rate: at whatever it ran
    if chosen.empty:
        raise ValueError(f"nothing to report: no run of {name} in {folder}; `gcond study run {name}` makes it")
    shown = pd.concat([_at_one_setting(own) for _, own in chosen.groupby("dataset", sort=False)])
    parts = [_cells(name, folder, str(dataset), own) for dataset, own in shown.groupby("dataset", sort=False)]
    return TableB(pd.DataFrame([row for rows in parts for row in rows]), shown, len(runs) - len(shown))


def _at_one_setting(runs: pd.DataFrame) -> pd.DataFrame:
    setting = runs.groupby(SETTING, dropna=False).ngroup()
    return runs[setting == setting.mode()[0]]


def _cells(name: str, folder: Path, dataset: str, runs: pd.DataFrame) -> list[dict[str, Any]]:
    paper = facts("paper")[name]
    titles = facts("methods")["measures"] | {"top1": "top-1, %", "top5": "top-5, %"}
    titles |= {"class": "binary cross-entropy"} if "auc" in paper["columns"] else {}
    arms = dict(iter(runs.groupby("strategy")))
    guesses = tables.log(folder, runs.log.iloc[0], "trivial")
    rows = []
    for method, epoch, (place, measure) in product(
        [*ordered({*arms, *paper["rows"]}), GUESS], EPOCHS, enumerate(paper["columns"])
    ):
        own, unit = arms.get(method, runs.iloc[:0]), 100 if measure in ACCURACIES else 1
        values = unit * own.get(f"{epoch}_{measure}", pd.Series(dtype=float)).astype(float).dropna()
        row = {"dataset": dataset, "method": method, "epoch": epoch, "measure": measure, "title": titles[measure],
               "lr": " ".join(map(tables.written, sorted(set(own.lr)))), "mean": values.mean(), "sd": values.std(),
               "n": len(values), "effect": math.nan, "low": math.nan, "high": math.nan,
               "unit": "area" if measure == "auc" else "%"}  # fmt: skip
        if method == GUESS:
            guess = guesses.get(f"{EPOCHS[epoch]}_{measure}", pd.Series(dtype=float))
            row["mean"] = unit * (guess.max() if measure in HIGHER else guess.min())
        elif "baseline" in arms and method in arms and method != "baseline":
            found = compare(own, arms["baseline"], None, measure, epoch, "diff" if measure == "auc" else "percent")
            row |= {end: found[end] for end in ("effect", "low", "high")}
        theirs, base = (paper["rows"].get(each, [math.nan] * 9)[place] for each in (method, "baseline"))
        gap = theirs - base if measure in HIGHER else 100 * (theirs / base - 1)
        rows.append(row | {"paper": theirs, "paper_effect": gap})
    return rows
