"""The recorded runs that a page is made of, and what of them is missing."""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pandas as pd

from gcond.report.claims.evidence import Arm, Evidence, overrides, read
from gcond.report.figures.lineup import LABELS
from gcond.report.figures.select import standing_for
from gcond.report.lineup import STRATEGIES, TRIVIAL
from gcond.report.records import read_csv
from gcond.report.table2 import Cell, dataset_title

Run = tuple[str, Arm]  # data set and arm


@dataclass(frozen=True)
class Source:
    """`recorded`: every row of runs.csv of the page's model, failed runs too, and the trivial predictors."""

    name: str
    scale: str
    evidence: Evidence
    recorded: pd.DataFrame
    datasets: tuple[str, ...]

    @property
    def make(self) -> str:
        """The command that makes the runs and the page."""
        return f"make reproduce-{self.name} SCALE={self.scale}"

    def title(self, dataset: str) -> str:
        return dataset_title(self.recorded, dataset)

    def rows(self, arms: Iterable[Run]) -> pd.DataFrame:
        """Rows of runs.csv of these arms, failed ones too."""
        wanted = {(dataset, arm.strategy, arm.variant) for dataset, arm in arms}
        runs = self.recorded[~self.recorded.strategy.str.startswith(TRIVIAL)]
        names = zip(runs.dataset, runs.strategy, runs.variant, strict=True)
        return runs[[name in wanted for name in names]]

    def cell(self, dataset: str, arm: Arm, column: str) -> Cell:
        """Of the finished seeds; `beaten` for an L1 that the best trivial predictor reaches."""
        values = tuple(self.evidence.by_seed(dataset, arm)[column].dropna().astype(float))
        cell = Cell(values, 0, len(values))
        best = self.trivial(dataset, column)
        beaten = column.endswith("l1") and bool(values) and best is not None and round(cell.mean, 4) >= round(best, 4)
        return Cell(values, 0, len(values), beaten=beaten)

    def trivial(self, dataset: str, column: str) -> float | None:
        """The best predictor that needs no training."""
        own = self._trivial[self._trivial.dataset == dataset][column].dropna()
        return float(own.min()) if len(own) else None

    @cached_property
    def _trivial(self) -> pd.DataFrame:
        return self.recorded[self.recorded.strategy.str.startswith(TRIVIAL)]

    def gaps(self, arms: Iterable[Run], seeds: Iterable[int] = ()) -> list[str]:
        """Arms, and of arms that ran the `seeds`, that are not on record as done."""
        lines = []
        for dataset, arm in arms:
            own = self.rows([(dataset, arm)])
            done, failed = (set(own.seed[own.status == status].dropna()) for status in ("done", "failed"))
            where = f"{name(arm)} on {dataset}"
            if not done:
                lines.append(f"{where}: {'failed' if failed else 'not run'}")
            elif absent := sorted((set(seeds) | failed) - done):
                words = "failed" if set(absent) <= failed else "not run or failed" if failed else "not run"
                lines.append(f"{where}, seed {', '.join(map(str, absent))}: {words}")
        return lines

    def gaps_of_table2(self, records: pd.DataFrame, file: str) -> list[str]:
        """Methods of Table 2 without a run, failed seeds, and runs without `records`."""
        wanted: list[Run] = [(dataset, Arm(strategy)) for dataset in self.datasets for strategy in STRATEGIES]
        lines = self.gaps(wanted)
        for dataset, arm in wanted:
            there = set(self.evidence.own(records, dataset, arm).seed) if len(records) else set()
            if without := sorted(set(self.evidence.by_seed(dataset, arm).index) - there):
                lines.append(f"{name(arm)} on {dataset}, seed {', '.join(map(str, without))}: nothing in {file}")
        return lines


def load(page: str, scale: str, results: Path, asked: tuple[str, ...] | None, kinds: tuple[str, ...]) -> Source:
    """`kinds`: the data sets that belong on the page, of which "photos" may be ImageNet. Raises ValueError, naming the
    command, where no run is recorded."""
    path = results / scale / "runs.csv"
    make = f"make reproduce-{page} SCALE={scale}"
    if not path.exists():
        raise ValueError(f"nothing to report: {path} does not exist; `{make}` makes the runs")
    recorded = read_csv(path)
    evidence = read(results, scale)
    datasets = asked or tuple(standing_for(kind, scale, recorded) for kind in kinds)
    own = recorded[(recorded.model == evidence.model) | recorded.strategy.str.startswith(TRIVIAL)]
    return Source(page, scale, evidence, own, datasets)


def nothing(source: Source, what: str) -> ValueError:
    return ValueError(f"nothing to report: {what}; `{source.make}` makes the runs")


def name(arm: Arm) -> str:
    """ "GCond stochastic, eval mode": an arm as a reader knows it."""
    label = LABELS.get(arm.strategy, Arm(arm.strategy).label).split(" (")[0]
    return ", ".join([label, *(READABLE.get(part, part) for part in filter(None, _parts(arm)))])


def _parts(arm: Arm) -> list[str]:
    return [f"{key.removeprefix('strategy.')}={value}" for key, value in overrides(arm.variant).items()]


READABLE = {
    "model_mode=eval": "eval mode",
    "conductor.estimator.resolve_every=micro_batch": "per micro-batch",
}
