"""One run's folder -> one row of runs.csv, its trivial predictors and its validation curve."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gcond.engine.run_folder import read_report
from gcond.engine.run_state import selection_weights, weighted_loss
from gcond.report.records import BODY_METRICS, COLUMNS, KEY, MORE_METRICS

MEASURES = [name for name in COLUMNS if name.startswith("train_")]
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

    @property
    def remarks(self) -> list[str]:
        """What is left out, and why."""
        remarks = [f"{name}: unfinished, left out" for name in self.unfinished]
        remarks += [f"{name}: repeated later, left out" for name in self.superseded]
        remarks += [f"{name}: failed without a report, left out: {error}" for name, error in self.nameless.items()]
        return remarks + [f"{name}: unreadable, left out: {error}" for name, error in self.unreadable.items()]


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
    report = read_report(folder, "dataset", "model", "strategy", "seed", "variant")
    try:
        row = {name: report.get(name) for name in COLUMNS}
        for name in MEASURES:
            if not isinstance(row[name], int | float | None):
                raise ValueError(f"{folder / 'report.json'}: `{name}`: expected a number, found {row[name]!r}")
        row["dataset_title"] = _one_line(report.get("dataset_title") or "")
        row["missing_packages"] = ";".join(report.get("missing_packages") or [])
        error = _error(folder, report)
        if error:
            return Run(folder, row | {"status": "failed", "error": _one_line(error)}, {}, [])
        weights = selection_weights(report.get("tasks", {}))
        more = [name for name in MORE_METRICS if name in report["validation"][0]]
        names = dict.fromkeys(["epoch", "step", *METRICS, *more, *(f"val_{task}" for task in weights)])
        curve = [{name: epoch[name] for name in names} for epoch in report["validation"]]
        trivial = {
            name: {metric: values[metric] for metric in (*METRICS, *(set(BODY_METRICS) & set(values)))}
            for name, values in report["trivial"].items()
        }
        return Run(folder, row | {"error": ""} | _summary(curve, weights, report.get("final")), trivial, curve)
    except KeyError as missing:
        raise ValueError(f"{folder / 'report.json'} lacks the key `{missing.args[0]}`") from None


def _one_line(text: str) -> str:
    """Without what UTF-8 cannot hold."""
    return " ".join(text.encode(errors="replace").decode().split())


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
            if epoch[metric] is None:
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
