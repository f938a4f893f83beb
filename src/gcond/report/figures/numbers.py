"""The numbers of a caption: one per run, then mean and sample deviation over the seeds."""

from collections.abc import Callable
from dataclasses import dataclass

import pandas as pd

from gcond.report.figures.select import Selection

TAIL = 0.1  # of a run's steps: "the last tenth of training"


@dataclass(frozen=True)
class Number:
    """`of_run` turns a run's records, in order, into one number (nan: it has none)."""

    title: str
    of_run: Callable[[pd.DataFrame], float]


def last(column: str) -> Callable[[pd.DataFrame], float]:
    return lambda run: float(run[column].iloc[-1])


def lowest(column: str) -> Callable[[pd.DataFrame], float]:
    return lambda run: float(run[column].min())


def tail(column: str) -> Callable[[pd.DataFrame], float]:
    """Mean over the bins that begin in the last tenth of the run; the last bin at least."""

    def of_run(run: pd.DataFrame) -> float:
        late = run[run.first_step > (1 - TAIL) * run.last_step.max()]
        return float((late if len(late) else run.iloc[-1:])[column].mean())

    return of_run


def over_steps(column: str, count: str | None = None) -> Callable[[pd.DataFrame], float]:
    """Mean over the run, each bin weighted by its steps (or by its `count`)."""

    def of_run(run: pd.DataFrame) -> float:
        weight = run[count] if count else run.last_step - run.first_step + 1
        known = run[column].notna() & weight.notna()
        total = float(weight[known].sum())
        return float((run[column][known] * weight[known]).sum() / total) if total else float("nan")

    return of_run


def table(selection: Selection, dataset: str, wanted: list[Number]) -> list[list[str]]:
    """Rows for `render.grid`: a method per row, a number per column, "0.1234 ± 0.0056"."""
    rows = [["method", "n", *[number.title for number in wanted]], []]
    own = selection.records[selection.records.dataset == dataset]
    for strategy in selection.strategies:
        runs = [run for _, run in own[own.strategy == strategy].groupby("seed", sort=True)]
        if runs:
            cells = [_cell([number.of_run(run) for run in runs]) for number in wanted]
            rows.append([strategy, str(len(runs)), *cells])
    return rows


def _cell(values: list[float]) -> str:
    known = pd.Series([value for value in values if value == value], dtype=float)
    if known.empty:
        return "none"
    spread = f" ± {known.std():.4f}" if len(known) > 1 else ""
    remark = f" (n = {len(known)})" if len(known) < len(values) else ""
    return f"{known.mean():.4f}{spread}{remark}"
