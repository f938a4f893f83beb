"""Which recorded runs a figure is made of, and what is missing."""

from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from gcond.report.figures.lineup import LABELS, PHOTOS, Figure
from gcond.report.lineup import DATASETS, TRIVIAL
from gcond.report.records import KEY, read_csv


@dataclass(frozen=True)
class Asked:
    """What the command line narrows a figure down to; None: whatever is recorded."""

    seeds: tuple[int, ...] | None = None
    datasets: tuple[str, ...] | None = None
    model: str | None = None


@dataclass(frozen=True)
class Selection:
    """`runs` are the finished rows of runs.csv that are drawn, `records` what happened inside them (by KEY)."""

    figure: Figure
    scale: str
    model: str
    datasets: tuple[str, ...]
    runs: pd.DataFrame
    trivial: pd.DataFrame
    gaps: tuple[str, ...]  # of the paper's methods: the figure is incomplete
    remarks: tuple[str, ...]  # of controls: it is not
    records: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def strategies(self) -> list[str]:
        """Those that are drawn, in the order of the declaration."""
        drawn = set(self.runs.strategy)
        return [name for name in (*self.figure.strategies, *self.figure.controls) if name in drawn]

    def dataset_title(self, dataset: str) -> str:
        titles = sorted(set(self.runs.dataset_title[self.runs.dataset == dataset]) - {""})
        return titles[0] if len(titles) == 1 else dataset


def read_runs(figure: Figure, scale: str, results: Path) -> pd.DataFrame:
    """results/<scale>/runs.csv. Raises ValueError that names the command where there is none."""
    path = results / scale / "runs.csv"
    if not path.exists():
        raise ValueError(f"nothing to draw: {path} does not exist; `{figure.make(scale)}` makes the runs")
    return read_csv(path)


def select(figure: Figure, scale: str, recorded: pd.DataFrame, asked: Asked) -> Selection:
    """The finished runs of `figure` without overrides, and in words what of it is missing.

    Raises ValueError if not one run of it is there.
    """
    datasets = asked.datasets or tuple(standing_for(name, scale, recorded) for name in figure.datasets)
    model = asked.model or figure.model
    wanted = [*figure.strategies, *figure.controls]
    own = recorded[
        recorded.strategy.isin(wanted)
        & recorded.dataset.isin(datasets)
        & (recorded.model == model)
        & (recorded.variant == "")
    ]
    if asked.seeds:
        own = own[own.seed.isin(asked.seeds)]
    runs = own[own.status == "done"]
    if not runs.strategy.isin(figure.strategies).any():
        raise ValueError(
            f"nothing to draw: no finished run of {model} on {' or '.join(datasets)} by "
            f"{', '.join(figure.strategies)} is recorded; `{figure.make(scale)}` makes them"
        )
    seeds = sorted(asked.seeds or set(runs.seed))
    missing = {strategy: _missing(own, runs, strategy, datasets, seeds) for strategy in wanted}
    trivial = recorded[recorded.strategy.str.startswith(TRIVIAL) & recorded.dataset.isin(datasets)]
    gaps, remarks = (
        tuple(line for strategy in part for line in missing[strategy]) for part in (figure.strategies, figure.controls)
    )
    return Selection(figure, scale, model, datasets, runs, trivial, gaps, remarks)


def with_records(selection: Selection, path: Path, columns: dict[str, object], key: list[str]) -> Selection:
    """The selection with its rows of `path`; a run that has none there is a gap."""
    command = selection.figure.make(selection.scale)
    if not path.exists():
        raise ValueError(f"nothing to draw: {path} does not exist; `{command}` makes it")
    records = read_csv(path, columns, key).merge(selection.runs[KEY], on=KEY, how="inner")
    there = set(records[KEY].itertuples(index=False, name=None))
    has = [name in there for name in selection.runs[KEY].itertuples(index=False, name=None)]
    without, runs = selection.runs[[not one for one in has]], selection.runs[has]
    if runs.empty:
        raise ValueError(f"nothing to draw: {path} has no row of these runs; `{command}` makes them")
    lines = [f"{_label(run.strategy)} on {run.dataset}, seed {run.seed}: nothing in {path.name}"
             for run in without.itertuples()]  # fmt: skip
    return replace(selection, runs=runs, records=records, gaps=(*selection.gaps, *lines))


def standing_for(name: str, scale: str, recorded: pd.DataFrame) -> str:
    """The data set that stands for a declared one: of photographs, the only one that is recorded, else the scale's."""
    if name not in PHOTOS:
        return name
    there = [photos for photos in PHOTOS if (recorded.dataset == photos).any()]
    return there[0] if len(there) == 1 else DATASETS.get(scale, (name,))[0]


def _missing(
    own: pd.DataFrame, runs: pd.DataFrame, strategy: str, datasets: tuple[str, ...], seeds: list[int]
) -> list[str]:
    lines = []
    for dataset in datasets:
        done = set(runs.seed[(runs.strategy == strategy) & (runs.dataset == dataset)])
        failed = set(own.seed[(own.strategy == strategy) & (own.dataset == dataset) & (own.status == "failed")])
        where = f"{_label(strategy)} on {dataset}"
        if absent := [seed for seed in seeds if seed not in done]:
            words = ["failed" if seed in failed else "not run" for seed in absent]
            what = words[0] if len(set(words)) == 1 else "not run or failed"
            which = "" if len(absent) == len(seeds) else f", seed {', '.join(map(str, absent))}"
            lines.append(f"{where}{which}: {what}")
    return lines


def _label(strategy: str) -> str:
    return LABELS.get(strategy, strategy)
