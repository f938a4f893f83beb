"""Recorded runs -> the numbers of Table 2: three blocks of cells, rows as in `lineup`, columns dataset x metric."""

import statistics
from dataclasses import dataclass, replace

import pandas as pd

from gcond.report.lineup import GROUPS, STRATEGIES, TRIVIAL, in_lineup

BLOCKS = {
    "best_val": "Validation, best epoch",
    "last_val": "Validation, last epoch",
    "best_test": "Test, at the best validation epoch",
}
METRIC_TITLES = {"l1": "L1", "ssim": "1 - SSIM"}
Runs = dict[tuple[str, str], pd.DataFrame]  # (strategy, dataset) -> its rows, by seed
DECIMALS = 4  # of a printed number; three seeds do not carry more


@dataclass(frozen=True)
class Column:
    dataset: str
    dataset_title: str
    metric: str  # "l1" or "ssim" (which is 1 - SSIM)


@dataclass(frozen=True)
class Cell:
    """The values of one method in one column, one per finished seed, and how many seeds gave none."""

    values: tuple[float, ...]
    failed: int
    asked: int
    best: bool = False  # lowest mean of its column among complete cells of strategies
    beaten: bool = False  # printed L1 not below that of the best trivial predictor

    @property
    def complete(self) -> bool:
        return len(self.values) == self.asked

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def deviation(self) -> float | None:
        """Sample standard deviation (n - 1); None below two values."""
        return statistics.stdev(self.values) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Line:
    strategy: str
    label: str
    cells: tuple[Cell, ...]  # one per column


@dataclass(frozen=True)
class Block:
    key: str
    title: str
    groups: dict[str, tuple[Line, ...]]  # group title -> its rows

    @property
    def lines(self) -> tuple[Line, ...]:
        return tuple(line for lines in self.groups.values() for line in lines)


@dataclass(frozen=True)
class Table2:
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]

    @property
    def complete(self) -> bool:
        return all(cell.complete for block in self.blocks for line in block.lines for cell in line.cells)


def select(recorded: pd.DataFrame, datasets: tuple[str, ...], model: str, seeds: tuple[int, ...]) -> pd.DataFrame:
    """The rows that Table 2 is made of, those of the trivial predictors included."""
    trained = in_lineup(recorded, datasets) & (recorded.model == model) & recorded.seed.isin(seeds).fillna(False)
    trivial = recorded.strategy.str.startswith(TRIVIAL) & recorded.dataset.isin(datasets)
    return recorded[trained | trivial]


def build(rows: pd.DataFrame, datasets: tuple[str, ...], asked: int) -> Table2:
    """Aggregate the selected `rows`, of which a complete table has `asked` (the number of seeds) per cell."""
    columns = tuple(Column(name, dataset_title(rows, name), metric) for name in datasets for metric in METRIC_TITLES)
    runs = dict(iter(rows.sort_values("seed").groupby(["strategy", "dataset"])))
    return Table2(columns, tuple(_block(runs, columns, key, asked) for key in BLOCKS))


def dataset_title(rows: pd.DataFrame, dataset: str) -> str:
    """As the finished runs call it; a run that failed early knows only the short name.

    Raises ValueError where they saw different data, by the data's checksum or, of older runs without one, by its title.
    """
    own = rows[(rows.dataset == dataset) & (rows.status == "done")]
    known = own[own.data_checksum != ""]
    older, titles = set(own.dataset_title[own.data_checksum == ""]), sorted(set(own.dataset_title))
    if known.data_checksum.nunique() > 1 or (older and len(titles) > 1):
        remedy = "move the folders of some away from the others, or record them elsewhere (--results DIR, make OUT=DIR)"
        raise ValueError(f"runs of `{dataset}` saw different data and cannot share a table: {_listed(own)}; {remedy}")
    return titles[0] if titles else dataset


def _listed(runs: pd.DataFrame) -> str:
    """How many runs of which data."""
    counts = runs[runs.seed.notna()].groupby(["dataset_title", "data_checksum"]).size()
    names = [f"{title} (checksum {checksum[:24] or 'unknown'})" for title, checksum in counts.index]
    return ", ".join(f"{count} runs of {name}" for name, count in zip(names, counts, strict=True))


def _block(runs: Runs, columns: tuple[Column, ...], key: str, asked: int) -> Block:
    table = {name: [_cell(runs, name, column, key, asked) for column in columns] for name in _all_methods()}
    for index, column in enumerate(columns):
        _mark_best(table, index)
        if column.metric == "l1":
            _mark_beaten(table, index)
    groups = {
        title: tuple(Line(name, label, tuple(table[name])) for name, label in methods.items())
        for title, methods in GROUPS.items()
    }
    return Block(key, BLOCKS[key], groups)


def _all_methods() -> list[str]:
    return [name for methods in GROUPS.values() for name in methods]


def _cell(runs: Runs, strategy: str, column: Column, block: str, asked: int) -> Cell:
    asked = 1 if strategy.startswith(TRIVIAL) else asked
    own = runs.get((strategy, column.dataset))
    if own is None:
        return Cell((), 0, asked)
    values = own.loc[own.status == "done", f"{block}_{column.metric}"]
    return Cell(tuple(values), int((own.status == "failed").sum()), asked)


def printed(value: float) -> str:
    return f"{value:.{DECIMALS}f}"


def _mark_best(table: dict[str, list[Cell]], index: int) -> None:
    """Mark every complete strategy cell that prints the lowest mean, if there are at least two to choose from."""
    means = {name: table[name][index].mean for name in STRATEGIES if table[name][index].complete}
    for name, mean in means.items():
        if len(means) > 1 and round(mean, DECIMALS) == round(min(means.values()), DECIMALS):
            table[name][index] = replace(table[name][index], best=True)


def _mark_beaten(table: dict[str, list[Cell]], index: int) -> None:
    trivial = [cells[index].mean for name, cells in table.items() if name.startswith(TRIVIAL) and cells[index].values]
    for name in STRATEGIES:
        cell = table[name][index]
        if cell.values and trivial and round(cell.mean, DECIMALS) >= round(min(trivial), DECIMALS):
            table[name][index] = replace(cell, beaten=True)
