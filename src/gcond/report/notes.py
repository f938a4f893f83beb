"""The words around Table 2: title, how to read it, where its runs come from. Plain text; renderers escape it."""

from dataclasses import dataclass

import pandas as pd

from gcond.report import orderings
from gcond.report.claims.rates import written
from gcond.report.lineup import NOT_EVIDENCE, STRATEGIES
from gcond.report.table2 import Table2


@dataclass(frozen=True)
class Notes:
    title: str
    reading: list[str]
    orderings: list[str]
    origin: list[str]


def write_notes(
    scale: str, rows: pd.DataFrame, table: Table2, model: str, seeds: tuple[int, ...], rate: float | None = None
) -> Notes:
    """`rows`: the rows of runs.csv that `table` is made of. `rate`: learning rate; None: the scale's."""
    trained = rows[rows.strategy.isin(list(STRATEGIES))]
    done = trained[trained.status == "done"]
    expected = len(STRATEGIES) * len({column.dataset for column in table.columns}) * len(seeds)
    caveat = f" ({scale}, not evidence)" if scale in NOT_EVIDENCE else ""
    own_rate = f", learning rate {written(rate)}" if rate else ""
    where = f"Table 2 at scale {scale}{own_rate}{caveat}"
    title = f"{where}: {listed(done.device)}, {dates(done)}, {len(done)} of {expected} runs done"
    return Notes(
        title,
        _reading(scale, seeds),
        [*orderings.describe(table), orderings.CAVEAT],
        origin(trained, done, model),
    )


def _reading(scale: str, seeds: tuple[int, ...]) -> list[str]:
    lines = []
    if scale != "paper":
        lines.append(
            f"Numbers at scale {scale} are not comparable with the paper's: other images, sizes and training length. "
            "Only orderings are compared, below."
        )
    n, names = len(seeds), ", ".join(map(str, seeds))
    spread = f"Mean ± sample standard deviation (n - 1) over n = {n} seeds ({names})"
    if n == 1:
        spread = f"One seed ({names}), so no standard deviation"
    return [
        *lines,
        f"{spread}; a cell with fewer runs says so. Lower is better. L1 in z-normalised space, "
        "1 - SSIM in [0, 1], both on hidden patches only.",
        "Bold: the lowest mean of a column among methods with all seeds, trivial predictors aside. "
        "†: does not beat the L1 of the best trivial predictor in that column.",
        "Best epoch, of every method: smallest 0.85 L1 + 0.15 (1 - SSIM) on validation; the first on ties.",
    ]


def origin(trained: pd.DataFrame, done: pd.DataFrame, model: str) -> list[str]:
    lines = []
    if len(done):
        lines.append(
            f"Model {model}; optimizer steps per run {listed(done.steps)}, epochs {listed(done.epochs)}; "
            f"torch {listed(done.torch)}; {done.seconds.sum() / 3600:.2f} hours of runs in total."
        )
    for dataset, own in done.groupby("dataset"):
        if own.steps.nunique() > 1:
            lines.append(f"Runs of {dataset} differ in length ({listed(own.steps)} steps): do not compare them.")
    commits = [f"{commit[:10] or 'unknown'} ({count} runs)" for commit, count in _counts(done.commit)]
    if len(commits) > 1:
        lines.append(f"The runs come from several commits: {', '.join(commits)}.")
    elif commits:
        lines.append(f"Commit {commits[0]}.")
    if dirty := int(done.dirty.fillna(True).sum()):
        lines.append(f"{dirty} runs were made from a working tree with uncommitted changes.")
    for dataset, own in trained.groupby("dataset"):
        for packages, count in _counts(own.missing_packages):
            if packages:
                lines.append(f"Data of {dataset} made without: {packages.replace(';', ', ')} ({count} runs).")
    failures = trained[trained.status == "failed"].sort_values(["dataset", "strategy", "seed"])
    lines += [f"Failed: {run.strategy} on {run.dataset}, seed {run.seed}: {run.error}" for run in failures.itertuples()]
    return lines


def _counts(values: pd.Series) -> list[tuple[str, int]]:
    return sorted(values.value_counts().items())


def listed(values: pd.Series) -> str:
    return " and ".join(str(value) for value in sorted(set(values.dropna()))) or "no device"


def dates(done: pd.DataFrame) -> str:
    found = sorted({started[:10] for started in done.started if started})
    if not found:
        return "no date"
    return found[0] if len(found) == 1 else f"{found[0]} to {found[-1]}"
