"""The files under results/<scale>/: runs.csv has one row per run; curves.csv, steps.csv, probes.csv, activations.csv
have what happened inside each run that is done, groups.csv its final scores by patient or class; windows.csv and
linear_probe.csv what was measured on its weights afterwards.

Columns of `OPTIONAL` belong to tasks beside L1 and SSIM or to CT, or are younger than the oldest files (`YOUNG`): a
file has them only if one of its runs has a value there.

A run is known by `KEY`. "" means not known. The numbers of runs.csv and curves.csv have 8 significant digits (a float32
metric has about 7), those of the others 6. Trivial predictors are rows of runs.csv too: strategy "trivial:<name>", no
model and no seed, the same numbers at every epoch.
"""

import math
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import pandas as pd
from pandas.api.types import is_string_dtype

from gcond.files import damaged, read_rows, write_atomically

_TEXT, _WHOLE, _TRUTH, _REAL = str, "Int64", "boolean", "float64"
EXPECTED = {_WHOLE: "a whole number", _TRUTH: "True or False", _REAL: "a finite number"}
LOSSES = ("l1", "ssim")  # that every run measures

MORE_TASKS = ("flipped", "class")
BODY_METRICS = ("val_body_l1", "test_body_l1")  # L1 over the pixels of CT that show the body
MORE_METRICS = tuple(f"{split}_{name}" for split in ("val", "test") for name in (*MORE_TASKS, "top1"))
MORE_METRICS += BODY_METRICS

COLUMNS = {
    **dict.fromkeys(["dataset", "dataset_title", "model", "strategy"], _TEXT),
    "seed": _WHOLE,
    **dict.fromkeys(["variant", "status", "error", "hash", "commit"], _TEXT),
    "dirty": _TRUTH,
    **dict.fromkeys(["device", "torch", "python", "started"], _TEXT),
    **dict.fromkeys(["seconds", "peak_memory_mb"], _REAL),
    **dict.fromkeys(["steps", "epochs", "best_epoch"], _WHOLE),
    **dict.fromkeys(["best_val_l1", "best_val_ssim", "best_test_l1", "best_test_ssim"], _REAL),
    **dict.fromkeys(["last_val_l1", "last_val_ssim", "last_test_l1", "last_test_ssim"], _REAL),
    **dict.fromkeys(["train_l1_first", "train_l1_tail", "train_ssim_first", "train_ssim_tail"], _REAL),
    **dict.fromkeys(["missing_packages", "data_checksum"], _TEXT),
    **dict.fromkeys([f"{epoch}_{metric}" for epoch in ("best", "last") for metric in MORE_METRICS], _REAL),
    **dict.fromkeys([f"train_{task}_{edge}" for task in MORE_TASKS for edge in ("first", "tail")], _REAL),
    **dict.fromkeys(["cpu_seconds", "load_start", "load_end"], _REAL),
    "tf32": _TRUTH,
}
KEY = ["dataset", "model", "strategy", "seed", "variant"]

_NAME = {name: COLUMNS[name] for name in KEY}

CURVE_COLUMNS = {
    **_NAME,
    **dict.fromkeys(["epoch", "step"], _WHOLE),
    **dict.fromkeys(["val_l1", "val_ssim", "test_l1", "test_ssim", *MORE_METRICS], _REAL),
}
CURVE_KEY = [*KEY, "epoch"]

STEP_COLUMNS = {  # one row per bin of steps; gcond.report.steps says what each is
    **_NAME,
    **dict.fromkeys(["bin", "first_step", "last_step"], _WHOLE),
    **dict.fromkeys(["loss_l1", "loss_ssim", "grad_norm_l1", "grad_norm_ssim", "resolved_norm", "norm_jump"], _REAL),
    **dict.fromkeys(["cosine_min", "cosine_mean"], _REAL),
    "cosine_steps": _WHOLE,
    **dict.fromkeys(["cosine_encoder", "cosine_body", "cosine_head", "cosine_resolved_min", "conflicts"], _REAL),
    **dict.fromkeys(["resolved", "correction", "clipped", "zone_weak", "zone_main", "zone_critical"], _REAL),
    **dict.fromkeys(["published_cosine", "weight_l1", "weight_ssim"], _REAL),
    **dict.fromkeys(["step_rms_over_lr", "cosine_step_resolved"], _REAL),
    **dict.fromkeys([f"{what}_{task}" for what in ("loss", "grad_norm", "weight") for task in MORE_TASKS], _REAL),
}
STEP_KEY = [*KEY, "bin"]

PROBE_COLUMNS = {  # one row per number of a probe, named as the run's log names it ("cosine/encoder")
    **_NAME,
    **dict.fromkeys(["epoch", "step", "micro_batches", "batch_size"], _WHOLE),
    "name": _TEXT,
    "value": _REAL,
}
PROBE_KEY = [*KEY, "epoch", "name"]

WINDOW_COLUMNS = {  # one row per number that gcond.engine.probes says of a parameter group at frozen weights
    **_NAME,
    "state": _TEXT,  # initial or last: which weights
    "step": _WHOLE,
    "mode": _TEXT,  # of the model: train or eval
    **dict.fromkeys(["micro_batches", "batch_size"], _WHOLE),
    **dict.fromkeys(["group", "name"], _TEXT),
    **dict.fromkeys(["value", "standard_error"], _REAL),  # the error is that within the run
}
WINDOW_KEY = [*KEY, "state", "mode", "group", "name"]

GROUP_MEASURES = ("l1", "ssim", *MORE_TASKS, "top1", "body_l1")
GROUP_COLUMNS = {  # one row per patient or class of validation and of test; final scores, the means of its images
    **_NAME,
    **dict.fromkeys(["split", "group"], _TEXT),
    **dict.fromkeys(["images", "body_images"], _WHOLE),  # body_images: those that body_l1 is the mean of
    **dict.fromkeys([f"{at}_{name}" for at in ("best", "last") for name in GROUP_MEASURES], _REAL),
}
GROUP_KEY = [*KEY, "split", "group"]

QUANTILES = ("0", "0.001", "0.01", "0.05", "0.25", "0.5", "0.75", "0.95", "0.99", "0.999", "1")
ACTIVATION_COLUMNS = {  # of the last encoder layer
    **_NAME,
    **dict.fromkeys(["epoch", "step"], _WHOLE),
    **dict.fromkeys(["mean", "std", "zero_share", *(f"q{quantile}" for quantile in QUANTILES)], _REAL),
}
ACTIVATION_KEY = [*KEY, "epoch"]

LINEAR_PROBE_COLUMNS = {  # one row per run and task: the last checkpoint's encoder, and the controls beside it
    **_NAME,
    **dict.fromkeys(["task", "measure", "hash", "device"], _TEXT),
    **dict.fromkeys(["step", "train", "val", "test"], _WHOLE),  # images
    **dict.fromkeys(["val_score", "test_score", "strength"], _REAL),
    **dict.fromkeys(["untrained_val", "untrained_test", "pixels_val", "pixels_test", "chance"], _REAL),
}
LINEAR_PROBE_KEY = [*KEY, "task"]


YOUNG = ("data_checksum", "cpu_seconds", "load_start", "load_end", "tf32")
OPTIONAL = frozenset(
    name
    for columns in (COLUMNS, CURVE_COLUMNS, STEP_COLUMNS, GROUP_COLUMNS)
    for name in columns
    if {*MORE_TASKS, "top1", "body"} & set(name.split("_")) or name in YOUNG
)


def frame(rows: list[dict[str, object]], columns: dict[str, object] = COLUMNS) -> pd.DataFrame:
    """Typed table of `rows`; a missing or None entry becomes "" in a text column and NA elsewhere."""
    table = pd.DataFrame(rows, columns=list(columns), dtype=object)
    table = table.where(table.notna(), None)
    for name, kind in columns.items():
        if kind is _TEXT:
            table[name] = [("" if value is None else str(value)) for value in table[name]]
    return table.astype(columns)


def plain_text(text: str) -> str:
    """A cell that a spreadsheet would take for a formula, as text."""
    return f"'{text}" if text.startswith(("=", "@", "\t", "\r")) else text


def write_csv(path: Path, table: pd.DataFrame, key: list[str], digits: int = 8) -> None:
    """Write `table` sorted by `key`, so that the same runs always give the same bytes; no empty optional columns."""
    table = table.drop(
        columns=[name for name in OPTIONAL & set(table) if (table[name].isna() | table[name].eq("")).all()]
    )
    ordered = table.sort_values(key, kind="stable", na_position="first")
    for name in ordered:
        if is_string_dtype(ordered[name]):
            ordered[name] = ordered[name].map(plain_text, na_action="ignore")
    write_atomically(path, lambda to: ordered.to_csv(to, index=False, float_format=f"%.{digits}g", lineterminator="\n"))


def read_csv(path: Path, columns: dict[str, object] = COLUMNS, key: list[str] = KEY) -> pd.DataFrame:
    """Read what `write_csv` wrote.

    Raises ValueError, which names file, line and column, for what it would not have written: other columns, a cell of
    another kind, a finished run without its numbers, two rows of the same name.
    """
    header, rows = read_rows(path)
    there = [name for name in columns if name in header or name not in OPTIONAL]
    if header != there:
        raise ValueError(f"{path} has columns {sorted(set(header) ^ set(there))} too many or too few (or misplaced)")
    _check_cells(path, header, rows, columns)
    if columns in (COLUMNS, CURVE_COLUMNS):
        _check_losses(path, header, rows)
    numbers = {name: [""] for name in there if columns[name] is not _TEXT}
    dtypes = {name: columns[name] for name in there}
    table = pd.read_csv(path, dtype=dtypes, keep_default_na=False, na_values=numbers)
    absent = {name: "" if kind is _TEXT else None for name, kind in columns.items() if name not in there}
    table = table.assign(**absent)[list(columns)].astype(columns)
    for name, kind in columns.items():
        if kind is _TEXT:
            table[name] = table[name].str.replace(r"^'(?=[=@\t\r])", "", regex=True)
    if table.duplicated(key).any():
        raise ValueError(f"{path} names a run twice: {table[table.duplicated(key)][key].iloc[0].to_dict()}")
    return table


def read_table(path: Path, text: Collection[str], columns: Collection[str], **options: Any) -> pd.DataFrame:
    """What `pd.read_csv` makes of a file of other `columns`, and perhaps more; `text` names those that hold no numbers.

    Raises ValueError, which names file, line and column, where one holds none, or where one of `columns` is absent.
    """
    header, rows = read_rows(path)
    if missing := sorted(set(columns) - set(header)):
        raise ValueError(f"{path} lacks the columns {', '.join(missing)}")
    _check_cells(path, header, rows, dict.fromkeys(set(header) - set(text), _REAL))
    return pd.read_csv(path, **options)


def _check_cells(path: Path, header: list[str], rows: list[tuple[int, list[str]]], columns: Mapping[str, Any]) -> None:
    if {"seed", "strategy"} <= set(header):
        seed, strategy = header.index("seed"), header.index("strategy")
        for line, cells in rows:
            if not cells[seed] and not cells[strategy].startswith("trivial:"):
                raise damaged(path, line, "a whole number in the column `seed`", "nothing")
    for place, name in enumerate(header):
        kind = columns.get(name, _TEXT)
        if kind is _TEXT:
            continue
        wrong = {value for value in {cells[place] for _, cells in rows} if value and not _is(kind, value)}
        for line, cells in rows if wrong else ():
            if cells[place] in wrong:
                raise damaged(path, line, f"{EXPECTED[kind]} in the column `{name}`", repr(cells[place]))


def _check_losses(path: Path, header: list[str], rows: list[tuple[int, list[str]]]) -> None:
    """Every run is done or failed, and has its losses if it is done; every epoch has them."""
    epochs = ("best_", "last_") if "status" in header else ("",)
    needed = [f"{epoch}{split}_{task}" for epoch in epochs for split in ("val", "test") for task in LOSSES]
    for line, cells in rows:
        row = dict(zip(header, cells, strict=True))
        status = row.get("status", "done")
        if status not in ("done", "failed"):
            raise damaged(path, line, "done or failed in the column `status`", repr(status))
        for name in needed:
            if status == "done" and not row[name]:
                raise damaged(path, line, f"a number in the column `{name}`", "nothing")


def _is(kind: str, value: str) -> bool:
    if kind == _REAL:
        try:
            return math.isfinite(float(value))
        except ValueError:
            return False
    return value in ("True", "False") if kind == _TRUTH else re.fullmatch(r"-?\d+", value, re.ASCII) is not None


def add_rows(path: Path, rows: pd.DataFrame, columns: dict[str, object], key: list[str]) -> pd.DataFrame:
    """Put `rows` beside what `path` holds, in the place of rows of the same name; returns all of them, as read."""
    if path.exists():
        rows = pd.concat([read_csv(path, columns, key), rows]).drop_duplicates(key, keep="last")
    write_csv(path, rows, key)
    return read_csv(path, columns, key)
