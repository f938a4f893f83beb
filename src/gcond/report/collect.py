"""Local runs -> results/<scale>/runs.csv and curves.csv."""

import math
from pathlib import Path

import pandas as pd

from gcond.report.folders import METRICS, Run, read_folders
from gcond.report.lineup import TRIVIAL, choose_model, in_lineup
from gcond.report.records import COLUMNS, CURVE_COLUMNS, CURVE_KEY, KEY, frame, read_csv, write_csv

TRIVIAL_TOLERANCE = 1e-4  # relative; devices differ by less, another split or another mask by far more


def collect(runs: Path, results: Path, datasets: tuple[str, ...], asked_model: str | None) -> list[str]:
    """Record the runs below `runs` (one scale) in `results`; returns remarks to print.

    If any local run belongs to Table 2, all recorded rows of Table 2 give way to the local ones, and so do the
    curves; recorded rows of other runs stay unless a local run has the same name. Without local runs nothing changes.
    """
    found = read_folders(runs)
    remarks = [f"{name}: unfinished, left out" for name in found.unfinished]
    remarks += [f"{name}: repeated later, left out" for name in found.superseded]
    remarks += [f"{name}: failed without a report, left out: {error}" for name, error in found.nameless.items()]
    if not found.runs:
        return [*remarks, f"no local runs in {runs}: using the recorded {results / 'runs.csv'}"]

    rows = frame([run.row for run in found.runs])
    model = asked_model or choose_model(rows, datasets)
    members = [run for run, belongs in zip(found.runs, _is_member(rows, datasets, model), strict=True) if belongs]
    local = frame([*rows.to_dict("records"), *_trivial_rows(members)])

    recorded = results / "runs.csv"
    kept = read_csv(recorded) if recorded.exists() else frame([])
    if members:
        outdated = _is_member(kept, datasets, model) | _is_trivial(kept, datasets)
        remarks.append(f"Table 2: {len(members)} local runs replace {outdated.sum()} recorded rows")
        kept = kept[~outdated]
    else:
        remarks.append(f"no local run in {runs} belongs to Table 2: its recorded rows stay")
    names = set(local[KEY].itertuples(index=False, name=None))
    kept = kept[[name not in names for name in kept[KEY].itertuples(index=False, name=None)]]
    merged = frame([*kept.to_dict("records"), *local.to_dict("records")])
    if members and not asked_model and choose_model(merged, datasets) != model:
        raise ValueError(f"`--model` must be named: local runs are of {model}, recorded ones of other models too")
    write_csv(recorded, merged, KEY)
    if members:
        curves = [_curve_row(run, epoch) for run in members for epoch in run.curve]
        write_csv(results / "curves.csv", frame(curves, CURVE_COLUMNS), CURVE_KEY)
    return remarks


def _is_member(runs: pd.DataFrame, datasets: tuple[str, ...], model: str) -> pd.Series:
    return in_lineup(runs, datasets) & (runs.model == model)


def _is_trivial(runs: pd.DataFrame, datasets: tuple[str, ...]) -> pd.Series:
    return runs.strategy.str.startswith(TRIVIAL) & runs.dataset.isin(datasets)


def _curve_row(run: Run, epoch: dict[str, float]) -> dict[str, object]:
    return {name: run.row[name] for name in ("dataset", "strategy", "seed")} | epoch


def _trivial_rows(members: list[Run]) -> list[dict[str, object]]:
    """One row per dataset and predictor. Raises ValueError if two runs of one dataset disagree about a predictor."""
    witnesses: dict[tuple[str, str], Run] = {}
    for run in members:
        for name, values in run.trivial.items():
            witness = witnesses.setdefault((str(run.row["dataset"]), name), run)
            for metric in METRICS:
                expected = witness.trivial[name][metric]
                if not math.isclose(values[metric], expected, rel_tol=TRIVIAL_TOLERANCE):
                    raise ValueError(
                        f"runs of dataset `{run.row['dataset']}` disagree about the trivial predictor `{name}`: "
                        f"`{metric}` is {expected:.6g} in {witness.folder} and {values[metric]:.6g} in {run.folder}; "
                        "they did not see the same images or masks, so remove the outdated ones"
                    )
    return [_trivial_row(dataset, name, witness) for (dataset, name), witness in witnesses.items()]


def _trivial_row(dataset: str, name: str, witness: Run) -> dict[str, object]:
    row = dict.fromkeys(COLUMNS) | {"dataset": dataset, "strategy": TRIVIAL + name, "status": "done"}
    row |= {key: witness.row[key] for key in ("dataset_title", "missing_packages")}
    for metric in METRICS:
        row |= {f"best_{metric}": witness.trivial[name][metric], f"last_{metric}": witness.trivial[name][metric]}
    return row
