"""One run's folder -> one row of runs.csv, its trivial predictors and its validation curve."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gcond.engine.selection import selection_weights, weighted_loss
from gcond.files import read_object
from gcond.report.records import BODY_METRICS, COLUMNS, KEY, MORE_METRICS

METRICS = ("val_l1", "val_ssim", "test_l1", "test_ssim")  # "ssim" is 1 - SSIM throughout


@dataclass(frozen=True)
class Run:
    path: Path
    row: dict[str, object]
    trivial: dict[str, dict[str, float]]  # predictor -> METRICS
    curve: list[dict[str, float]]  # one dict per epoch: epoch, step and METRICS

    @property
    def folder(self) -> str:
        return self.path.name


@dataclass(frozen=True)
class Collected:
    runs: list[Run]
    superseded: list[str]  # folders of runs that were repeated later under another hash
    unfinished: list[str]  # folders with neither a report nor a failure
    nameless: dict[str, str]  # folder -> error, of runs that failed before they could write a report
    unreadable: dict[str, str]  # folder -> what is wrong with its report


def read_folders(scale_folder: Path) -> Collected:
    """Read every run below `scale_folder`; of runs with the same name the one started last counts."""
    runs: dict[tuple[object, ...], Run] = {}
    superseded, unfinished, nameless, unreadable = [], [], {}, {}
    for folder in sorted(path for path in scale_folder.glob("*") if path.is_dir()):
        if not any((folder / name).exists() for name in ("config.yaml", "report.json", "FAILED", "DONE")):
            continue  # not a run: the engine keeps shared scores beside them
        if not (folder / "report.json").exists():
            failure = folder / "FAILED"
            if (folder / "DONE").exists():
                unreadable[folder.name] = "DONE without report.json; the command that made the run makes it again"
            elif failure.exists():
                nameless[folder.name] = failure.read_text(encoding="utf-8").strip()
            else:
                unfinished.append(folder.name)
            continue
        try:
            run = read_run(folder)
        except ValueError as error:
            unreadable[folder.name] = str(error)
            continue
        key = tuple(run.row[name] for name in KEY)
        older, newer = sorted([runs.get(key, run), run], key=lambda candidate: str(candidate.row["started"]))
        if older is not newer:
            other = older.row["data_checksum"] != newer.row["data_checksum"]
            superseded.append(f"{older.folder}{' (of other data)' if other else ''}")
        runs[key] = newer
    return Collected(list(runs.values()), superseded, unfinished, nameless, unreadable)


def read_run(folder: Path) -> Run:
    """Read one finished or failed run. Raises ValueError that names the file and the key if it is malformed."""
    path = folder / "report.json"
    report = read_object(path)
    try:
        _check(report)
        row = {name: report.get(name) for name in COLUMNS}
        row["dataset_title"] = " ".join((report.get("dataset_title") or "").split())
        row["missing_packages"] = ";".join(report.get("missing_packages") or [])
        error = _error(folder, report)
        if error:
            return Run(folder, row | {"status": "failed", "error": " ".join(error.split())}, {}, [])
        weights = selection_weights(report.get("tasks") or {})
        more = [name for name in MORE_METRICS if name in report["validation"][0]]
        names = dict.fromkeys(["epoch", "step", *METRICS, *more, *(f"val_{task}" for task in weights)])
        curve = [{name: epoch[name] for name in names} for epoch in report["validation"]]
        trivial = {
            name: {metric: values[metric] for metric in (*METRICS, *(set(BODY_METRICS) & set(values)))}
            for name, values in report["trivial"].items()
        }
        return Run(folder, row | {"error": ""} | _summary(curve, weights, report.get("final")), trivial, curve)
    except KeyError as missing:
        raise ValueError(f"{path} lacks the key `{missing.args[0]}`") from None
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


NEEDED = ("dataset", "model", "strategy", "seed", "variant", "status")
KINDS: dict[object, tuple[str, Callable[[object], bool]]] = {  # of a column -> what a report has
    str: ("text", lambda value: isinstance(value, str)),
    "Int64": ("an integer", lambda value: type(value) is int),
    "boolean": ("true or false", lambda value: isinstance(value, bool)),
    "float64": ("a finite number", lambda value: _is_number(value) and math.isfinite(value)),
}
OTHER_KINDS = {
    "missing_packages": (
        "a list of text",
        lambda value: isinstance(value, list) and all(type(v) is str for v in value),
    ),
    "data_checksum": ("text by split", lambda value: isinstance(value, str | dict)),
}


def _check(report: dict[str, Any]) -> None:
    """Raise ValueError that names what does not fit a column, or is no table of numbers where one is expected."""
    if report["schema"] != 1:
        raise ValueError(f"`schema` is {report['schema']!r}, this version reads 1")
    for name, kind in COLUMNS.items():
        value, (expected, fits) = report.get(name), OTHER_KINDS.get(name) or KINDS[kind]
        if (value is None and name in NEEDED) or (value is not None and not fits(value)):
            raise ValueError(f"`{name}`: expected {expected}, found {value!r}")
    if report["status"] not in ("done", "failed"):
        raise ValueError(f"`status` is {report['status']!r}, allowed: done, failed")
    if report["status"] == "failed":
        return
    tables: dict[str, Any] = {}
    for name, optional in (("tasks", True), ("trivial", False), ("final", True)):
        values = report.get(name, {}) if optional else report[name]
        if not isinstance(values, dict):
            raise ValueError(f"`{name}`: expected values by name, found {values!r}")
        tables |= {name: values} if name == "tasks" else {f"{name}.{part}": own for part, own in values.items()}
    if not isinstance(report["validation"], list):
        raise ValueError(f"`validation`: expected a list, found {report['validation']!r}")
    tables |= {f"validation[{place}]": values for place, values in enumerate(report["validation"])}
    for name, values in tables.items():
        if not isinstance(values, dict):
            raise ValueError(f"`{name}`: expected numbers by name, found {values!r}")
        for key, value in values.items():
            whole = key in ("epoch", "step")
            if not (type(value) is int if whole else _is_number(value) or (value is None and name[0] in "vf")):
                raise ValueError(f"`{name}.{key}`: expected {'an integer' if whole else 'a number'}, found {value!r}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _error(folder: Path, report: dict) -> str:
    """Why this run yields no numbers; empty for a good one."""
    if (folder / "FAILED").exists() and not (folder / "DONE").exists():
        return (folder / "FAILED").read_text(encoding="utf-8").strip() or report.get("error") or "unknown error"
    if report["status"] == "failed":
        return report.get("error") or "unknown error"
    if not report["validation"]:
        return "no validation was recorded"
    for epoch in [*report["validation"], *report.get("final", {}).values()]:
        more = set(MORE_METRICS).difference(BODY_METRICS) & set(epoch)  # without a body there is no L1 of it
        for metric in [*METRICS, *sorted(more)]:
            if epoch[metric] is None or not math.isfinite(epoch[metric]):
                return f"`{metric}` is {epoch[metric]}, not a finite number, at epoch {epoch['epoch']}"
    return ""


def _summary(
    curve: list[dict[str, float]], weights: Mapping[str, float], final: dict[str, dict[str, float]] | None
) -> dict[str, float]:
    """The best epoch, its metrics and the last epoch's: those of the whole of validation and test, where a run has
    them; runs of before have their curve only, of which the best epoch is chosen here as the engine chooses it."""
    best = min(curve, key=lambda epoch: weighted_loss(epoch, weights))
    ends = final or {"best": best, "last": curve[-1]}
    summary = {"best_epoch": ends["best"]["epoch"]}
    for metric in [name for name in (*METRICS, *MORE_METRICS) if name in ends["best"]]:
        summary |= {f"{at}_{metric}": values[metric] for at, values in ends.items()}
    return summary
