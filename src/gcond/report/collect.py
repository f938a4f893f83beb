"""Local runs -> results/<scale>/: runs.csv, and what happened inside each run."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd

from gcond.report import logged, records
from gcond.report.folders import METRICS, Run, read_folders
from gcond.report.lineup import TRIVIAL
from gcond.report.logged import Record
from gcond.report.probes import activation_rows, group_rows, probe_rows
from gcond.report.records import COLUMNS, KEY, frame, read_csv, write_csv
from gcond.report.steps import bin_steps

TRIVIAL_TOLERANCE = 1e-4  # relative; devices differ by less, another split or another mask by far more
# Overrides that change images, masks or the measure: of such a run the trivial predictors are others.
OTHER_IMAGES = ("dataset.", "loss.reconstruction.", "loss=l1_ssim_class", "loss.labels=")
OTHER_IMAGES += tuple(f"scale.{key}" for key in ("image_size", "patch_size", "mask_ratio", "eval_images"))

Rows = Callable[[Run, Sequence[Record]], list[dict[str, object]]]
# File -> its columns, what names a row, significant digits, and a run's rows.
SERIES: dict[str, tuple[dict[str, object], list[str], int, Rows]] = {
    "curves.csv": (records.CURVE_COLUMNS, records.CURVE_KEY, 8, lambda run, own: list(run.curve)),
    "steps.csv": (records.STEP_COLUMNS, records.STEP_KEY, 6, lambda run, own: bin_steps(own)),
    "probes.csv": (records.PROBE_COLUMNS, records.PROBE_KEY, 6, lambda run, own: probe_rows(own)),
    "activations.csv": (records.ACTIVATION_COLUMNS, records.ACTIVATION_KEY, 6, lambda run, own: activation_rows(own)),
    "groups.csv": (records.GROUP_COLUMNS, records.GROUP_KEY, 5, lambda run, own: group_rows(own)),
}


def collect(runs: Path, results: Path) -> list[str]:
    """Record every finished or failed run below `runs` (one scale) in `results`; returns remarks to print.

    A run replaces the recorded one of the same name (`KEY`), in all files, and no other: seeds that another machine
    recorded stay. A failed run does not replace a done one of the same hash. Without local runs nothing changes.
    Raises ValueError where local and recorded runs of a data set disagree about a trivial predictor.
    """
    found = read_folders(runs)
    inside, broken = _inside(found.runs)
    readable = [run for run in found.runs if run.folder in inside]
    found = replace(found, unreadable=found.unreadable | broken)
    remarks = found.remarks
    if not readable:
        return [*remarks, f"no local runs in {runs}: using the recorded {results / 'runs.csv'}"]

    # Runs.
    path = results / "runs.csv"
    recorded = read_csv(path) if path.exists() else frame([])
    trivial = _trivial_rows(readable)
    _check_recorded_trivial(trivial, recorded, path)
    own, beaten = _that_replace(readable, recorded)
    remarks += beaten
    local = frame([*(run.row for run in own), *trivial])
    kept = _without(recorded, local)
    remarks.append(f"{len(own)} local runs recorded in {path}; {len(kept)} recorded rows of other runs stay")
    if found.unreadable:
        remarks.append(f"{len(found.unreadable)} local runs are unreadable and left out, see above")
    remarks += _remarks_on_origin(kept, local)
    write_csv(path, _joined(kept, local), KEY)

    # What happened inside them.
    for name, (columns, key, digits, _) in SERIES.items():
        path = results / name
        rows = [{part: run.row[part] for part in KEY} | row for run in own for row in inside[run.folder][name]]
        before = read_csv(path, columns, key) if path.exists() else frame([], columns)
        after = _joined(_without(before, local), frame(rows, columns))
        if path.exists() or len(after):
            write_csv(path, after, key, digits)
    return remarks


def _inside(runs: Sequence[Run]) -> tuple[dict[str, dict[str, list[dict[str, object]]]], dict[str, str]]:
    """Folder of a run -> file -> its rows there, none where it failed; and what is wrong with a log that is damaged."""
    inside, broken = {}, {}
    for run in runs:
        try:
            records = logged.read(run.path) if run.row["status"] == "done" else None
            inside[run.folder] = {
                name: [] if records is None else rows_of(run, records) for name, (_, _, _, rows_of) in SERIES.items()
            }
        except ValueError as error:
            broken[run.folder] = str(error)
        except KeyError as missing:
            broken[run.folder] = f"{run.path / 'metrics.jsonl'}: a record lacks `{missing.args[0]}`"
    return inside, broken


def _that_replace(runs: Sequence[Run], recorded: pd.DataFrame) -> tuple[list[Run], list[str]]:
    """All but failed runs that are recorded as done under the same hash; and a remark for each of those."""
    done = recorded[(recorded.status == "done") & (recorded.hash != "")]
    names = set(done[[*KEY, "hash"]].itertuples(index=False, name=None))
    chosen, remarks = [], []
    for run in runs:
        if run.row["status"] == "failed" and tuple(run.row[part] for part in (*KEY, "hash")) in names:
            remarks.append(f"{run.folder}: failed here, recorded as done; the record stays: {run.row['error']}")
        else:
            chosen.append(run)
    return chosen, remarks


def _without(table: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of `table` that belong to none of `runs`."""
    names = set(runs[KEY].itertuples(index=False, name=None))
    stays = [name not in names for name in table[KEY].itertuples(index=False, name=None)]
    return table[pd.Series(stays, index=table.index, dtype=bool)]


def _joined(*tables: pd.DataFrame) -> pd.DataFrame:
    return pd.concat([table for table in tables if len(table)] or tables[:1])


def _remarks_on_origin(kept: pd.DataFrame, local: pd.DataFrame) -> list[str]:
    """Where recorded rows stay beside local ones of the same data and model, made by another commit or device."""
    remarks = []
    for (dataset, model), own in local[local.model != ""].groupby(["dataset", "model"]):
        beside = kept[(kept.dataset == dataset) & (kept.model == model) & (kept.status == "done")]
        for what, width in (("commit", 10), ("device", None)):
            foreign = beside[~beside[what].isin(set(own[what]))]
            if len(foreign):
                origins = ", ".join(sorted({value[:width] or "unknown" for value in foreign[what]}))
                remarks.append(
                    f"{dataset}, {model}: {len(foreign)} recorded rows that stay are of another {what} than the local "
                    f"runs ({origins}); a table of both says so, and is no fair comparison"
                )
    return remarks


def _trivial_rows(runs: Sequence[Run]) -> list[dict[str, object]]:
    """One row per dataset and predictor. Raises ValueError if two runs of one dataset disagree about a predictor."""
    witnesses: dict[tuple[str, str], Run] = {}
    for run in runs:
        if _sees_other_images(str(run.row["variant"])):
            continue
        for name, values in run.trivial.items():
            witness = witnesses.setdefault((str(run.row["dataset"]), name), run)
            for metric in METRICS:
                expected = witness.trivial[name][metric]
                if not _agree(values[metric], expected):
                    raise ValueError(
                        f"runs of dataset `{run.row['dataset']}` disagree about the trivial predictor `{name}`: "
                        f"`{metric}` is {expected:.6g} in {witness.folder} and {values[metric]:.6g} in {run.folder}; "
                        "they did not see the same images or masks, so remove the outdated ones"
                    )
    return [_trivial_row(dataset, name, witness) for (dataset, name), witness in witnesses.items()]


def other_images(own: pd.DataFrame, recorded: pd.DataFrame) -> list[str]:
    """Data sets of which two tables of runs saw other images or masks: a trivial predictor scores differently there."""
    here, there = (
        table[table.strategy.str.startswith(TRIVIAL)].set_index(["dataset", "strategy"]) for table in (own, recorded)
    )
    return sorted({
        name[0]
        for name in here.index.intersection(there.index)
        for metric in METRICS
        if not _agree(here[f"best_{metric}"][name], there[f"best_{metric}"][name])
    })  # fmt: skip


def _sees_other_images(variant: str) -> bool:
    return any(override.startswith(OTHER_IMAGES) for override in variant.split(","))


def _agree(value: float, expected: float) -> bool:
    return math.isclose(value, expected, rel_tol=TRIVIAL_TOLERANCE)


def _trivial_row(dataset: str, name: str, witness: Run) -> dict[str, object]:
    row = dict.fromkeys(COLUMNS) | {"dataset": dataset, "strategy": TRIVIAL + name, "status": "done"}
    row |= {key: witness.row[key] for key in ("dataset_title", "missing_packages", "data_checksum")}
    for metric, value in witness.trivial[name].items():
        row |= {f"best_{metric}": value, f"last_{metric}": value}
    return row


def _check_recorded_trivial(local: Sequence[dict[str, object]], recorded: pd.DataFrame, path: Path) -> None:
    """Rows that stay beside the local ones must have seen the same images and masks."""
    for row in local:
        for before in recorded[
            (recorded.dataset == row["dataset"]) & (recorded.strategy == row["strategy"])
        ].itertuples():
            for metric in METRICS:
                here, there = float(row[f"best_{metric}"]), float(getattr(before, f"best_{metric}"))
                if not _agree(here, there):
                    raise ValueError(
                        f"local runs of dataset `{row['dataset']}` and {path} disagree about "
                        f"`{row['strategy']}`: `{metric}` is {here:.6g} here and {there:.6g} there; they did not see "
                        "the same images or masks, so record the local ones elsewhere (--results DIR, make OUT=DIR)"
                    )
