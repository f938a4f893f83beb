"""The runs that a figure is drawn from, and what stands around its panels: title, legend, caption."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from gcond.study import tables
from gcond.study.methods import NOT_EVIDENCE, PAPER_MODEL, RATES, dataset_label, kind, label, ordered_datasets

FAMILIES = ("photographs", "ct")


@dataclass(frozen=True)
class Chosen:
    """What a figure is drawn from. `arms`: those with runs, in the order of the figure; `missing`: sentences that name
    the runs that are not there."""

    name: str
    spec: dict[str, Any]
    folder: Path  # of results, named as the scale
    runs: pd.DataFrame
    arms: list[str]
    datasets: list[str]
    rate: str  # in words
    missing: list[str]
    static: pd.DataFrame  # of `runs`' kind: Baseline at other weights

    def log(self, run: Any, kind: str) -> pd.DataFrame:
        return tables.log(self.folder, run.log, kind)


def choose(name: str, spec: dict[str, Any], folder: Path, lr: float | str | None = None, datasets: Sequence[str] = (),
           seeds: Sequence[int] = ()) -> Chosen:  # fmt: skip
    """The finished runs of a figure in train mode at one rate (`tables.at_rate`; None: the figure's, where it was run,
    else that of most arms).

    Raises ValueError that names the command where there is none.
    """
    recorded = tables.runs(folder)
    nothing = (
        f"nothing to draw: {folder} records no finished run of {name}%s; "
        f"`gcond study run {spec.get('artefact', name)} --scale {folder.name}` makes them"
    )
    if recorded.empty:
        raise ValueError(nothing % "")
    recorded = recorded.assign(selection=tables.selection_loss(recorded, "best_val"))
    models = list(spec.get("models", [PAPER_MODEL]))
    wanted = [*spec["arms"], *spec.get("controls", ())]
    families = spec.get("datasets", FAMILIES)
    kept = recorded[
        recorded.model.isin(models)
        & (recorded.model_mode == "train")
        & np.array([one in datasets if datasets else family(one) in families for one in recorded.dataset], dtype=bool)
    ]
    kept = kept[kept.model == min(kept.model, key=models.index, default="")]
    if kind := spec.get("after"):
        kept = kept[np.array([len(tables.log(folder, run, kind)) > 0 for run in kept.log], dtype=bool)]
    methods, front = (
        np.array([fits(each, spec.get(which, usual)) for each in kept.setting], dtype=bool)
        for which, usual in (("settings", {}), ("front", None))
    )
    own, static = kept[methods & kept.strategy.isin(wanted)], kept[front & (kept.strategy == "baseline")]
    static = static[np.isclose(static.filter(regex="^lambda_").sum(axis=1), 1)]
    at_rate = recorded
    for rate in (spec.get("lr"), usual_rate(own)) if lr is None else (lr,):
        if rate is not None and own.index.isin((at_rate := _at_rate(recorded, rate)).index).any():
            break
    own, static = (each[each.index.isin(at_rate.index)] for each in (own, static))
    own, static = (each[each.seed.isin(seeds)] if seeds else each for each in (own, static))
    own, static = _at_seeds_of_all_weights(own, static)
    if spec.get("subject") == "front":
        weights = static.groupby("dataset").lambda_l1.nunique()
        own = own[own.dataset.isin(weights.index[weights > 1])]
    if own.empty:
        raise ValueError(nothing % ("" if rate is None else f" at {rate_in_words(rate)}"))
    shown = ordered_datasets(own.dataset)
    missing = absent(own, spec["arms"], shown, () if datasets else families)
    arms = [arm for arm in wanted if (own.strategy == arm).any()]
    rate = own.lr.iloc[0] if own.lr.nunique() == 1 else tables.rate(recorded, rate)
    return Chosen(name, spec, folder, own, arms, shown, rate_in_words(rate), missing, static)


def _at_seeds_of_all_weights(own: pd.DataFrame, static: pd.DataFrame) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Both, where a data set has several static weights, at the seeds that all these have."""
    each = [static[name] for name in static.filter(regex="^lambda_")]
    for dataset, weights in static.groupby("dataset"):
        seeds = [set(runs.seed) for _, runs in weights.groupby(each, dropna=False)]
        if len(seeds) > 1:
            shared = set.intersection(*seeds)
            own, static = (runs[(runs.dataset != dataset) | runs.seed.isin(shared)] for runs in (own, static))
    return own, static


def _at_rate(runs: pd.DataFrame, lr: float | str) -> pd.DataFrame:
    """`tables.at_rate`, and `all`: every rate, of the tuning seed where it ran, else of all seeds."""
    if lr != "all":
        return tables.at_rate(runs, lr)
    tuned = runs[runs.seed == tables.TUNING_SEED]
    return tuned if len(tuned) else runs


def rate_in_words(lr: float | str) -> str:
    lr = "paper" if lr == tables.PAPER_LR else lr
    return RATES.get(str(lr)) or f"learning rate {tables.written(float(lr))}"


def fits(setting: str, wanted: dict[str, Any] | None) -> bool:
    """True where `setting` (of `tables.runs`) is what is wanted; `any` stands for any value or none."""
    given = tables.overrides(setting)
    return (
        wanted is not None
        and given.keys() <= wanted.keys()
        and all(v in ("any", given.get(key)) for key, v in wanted.items())
    )


def usual_rate(runs: pd.DataFrame) -> float | None:
    """The learning rate at which most arms ran on most data sets; of equals the paper's, else the smallest."""
    runs = runs[runs.seed != tables.TUNING_SEED]
    if runs.empty:
        return None
    arms = runs.drop_duplicates(["dataset", "strategy", "lr"]).groupby("lr").size()
    return float(max(arms.index, key=lambda lr: (arms[lr], bool(np.isclose(lr, tables.PAPER_LR)), -lr)))


def absent(runs: pd.DataFrame, arms: Sequence[str], shown: list[str], families: Iterable[str]) -> list[str]:
    """The missing runs of a figure, in words."""
    found = [f"no run on {each}" for each in families if each not in map(family, shown)]
    counts = runs.groupby(["dataset", "strategy"]).seed.nunique().unstack(0).reindex(arms).fillna(0).astype(int)
    for dataset in shown:
        own, where = counts[dataset], f" on {dataset_label(dataset)}" if len(shown) > 1 else ""
        gone = [label(arm) for arm in arms if not own[arm]]
        fewer = [f"{label(arm)} ({n} of {own.max()})" for arm, n in own.items() if 0 < n < own.max()]
        found += [f"not run{where}: {', '.join(gone)}"] if gone else []
        found += [f"fewer seeds{where}: {', '.join(fewer)}"] if fewer else []
    return found


def family(dataset: str) -> str:
    """ct, or photographs, for which any other data set stands."""
    return "ct" if kind(dataset) == "ct" else "photographs"


def finish(figure: Figure, chosen: Chosen, reading: str) -> Figure:
    """Add the title, one legend below all panels, and below it the caption."""
    seeds = chosen.runs.groupby(["dataset", "strategy"]).seed.nunique()
    scale = chosen.folder.name
    where = [dataset_label(chosen.datasets[0])] if len(chosen.datasets) == 1 else []
    where += [words for name, words in chosen.spec.get("models", {}).items() if (chosen.runs.model == name).any()]
    where += [f"scale {scale}", chosen.rate, f"{seeds_in_words(seeds)} a method"]
    parts = [chosen.spec.get("caption", ""), reading]
    parts += [f"The paper: {chosen.spec['paper']}"] if "paper" in chosen.spec else []
    parts += [f"Missing: {'; '.join(chosen.missing)}."] if chosen.missing else []
    if (machines := tables.machines(chosen.runs).nunique()) > 1:
        parts.append(f"The runs come from {machines} kinds of machine: do not compare across them.")
    if scale in NOT_EVIDENCE:
        parts.append(f"Scale {scale} shows that the machinery works; it is no evidence about any method.")
    return frame(figure, chosen.spec["title"], "; ".join(where), " ".join(filter(None, parts)), map(label, chosen.arms))


def seeds_in_words(counts: pd.Series) -> str:
    fewest, most = counts.min(), counts.max()
    return f"{fewest} to {most} seeds" if fewest < most else f"{most} seed{'s' * int(most > 1)}"


def frame(figure: Figure, title: str, where: str, caption: str, order: Iterable[str] = ()) -> Figure:
    """Add title, legend (labels of `order` first) and caption; the figure grows by what they need."""
    width, height = figure.get_size_inches()
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found = {words: handle for handle, words in zip(*axes.get_legend_handles_labels(), strict=True)} | found
    first = [words for words in order if words in found]
    names = [*first, *(words for words in found if words not in first)]
    columns = max(1, min(len(names), int(width // 2.9)))
    text = textwrap.wrap(caption, int(width * 16))
    below, legend = 0.155 * len(text) + 0.1, 0.2 * -(-len(names) // columns) + 0.1
    total = height + below + legend
    figure.set_size_inches(width, total)
    figure.get_layout_engine().set(rect=(0, (below + legend) / total, 1, height / total))
    above = textwrap.wrap(title, int(width * 11.5)) + textwrap.wrap(where, int(width * 11.5))
    figure.suptitle("\n".join(above), fontsize=10.5)
    figure.text(0.008, 0.05 / total, "\n".join(text), fontsize=8, va="bottom", parse_math=False, linespacing=1.25)
    if names:
        figure.legend([found[words] for words in names], names, ncols=columns, frameon=False, fontsize=8.5,
                      handlelength=3.2, loc="center", bbox_to_anchor=(0.5, (below + legend / 2) / total))  # fmt: skip
    return figure
