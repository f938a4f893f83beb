"""How a run stands: by its folder alone (`state_of`), or before it is started (`standing`); and its best epoch.

A run's config does not say what its data hold. So a finished run counts only where the checksum of its data is today's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig

from gcond.data.checksums import checksum_of, short
from gcond.engine.metrics_log import read, steps_logged
from gcond.engine.run_folder import RunFolder, error_of, finished_report, running
from gcond.files import read_rows
from gcond.output import duration


@dataclass(frozen=True)
class Standing:
    """What is known of a run. `said`: the folder of a finished one, or the reason why it is refused or repeated.
    `unchecked`: why its data were not compared with today's, else "". `row`: of runs.csv, where it is recorded."""

    state: Literal["to do", "done", "recorded", "refused"]
    said: str = ""
    unchecked: str = ""
    row: Mapping[str, str] = field(default_factory=dict)


TO_DO = Standing("to do")


def standing(folder: RunFolder, cfg: DictConfig, checksum: Callable[[DictConfig], Any] = checksum_of) -> Standing:
    """Of the run that `cfg` describes. `checksum` is that of a data set, and raises ValueError where it has no data."""
    try:
        report = folder.finished()
        if cfg.name is not None:  # else the folder's name tells configs apart
            folder.check(cfg)
    except (OSError, ValueError) as error:
        return Standing("refused", str(error))
    table = None if cfg.recorded is None else Path(cfg.recorded) / cfg.scale.name / "runs.csv"
    rows = [] if table is None else [row for row in recorded_rows(table) if row.get("hash") == folder.hash]
    if report is None and not rows:
        again = "marked DONE without the report of a finished run, so it is made again"
        return Standing("to do", again) if folder.done else TO_DO
    try:
        today, unchecked = checksum(cfg.dataset), ""
    except (OSError, ValueError) as error:
        today, unchecked = None, str(error)
    if report is not None:
        if today in (None, then := report["data_checksum"]):
            return Standing("done", f"finished earlier, see {folder.path}", unchecked)
        return Standing(
            "refused",
            f"{folder.path}: finished with data of the checksum {short(then)}, expected today's {short(today)}; choose "
            f"another `runs` or `name`, or move the folder out of {folder.path.parent}",
        )
    if alike := [row for row in rows if unchecked or row.get("data_checksum") == str(today)]:
        return Standing("recorded", f"recorded in {table}, not repeated", unchecked, alike[0])
    return Standing("to do", f"recorded in {table} for other or unknown data, so it is repeated")


def recorded_rows(path: Path) -> list[dict[str, str]]:
    """Of the finished runs in a runs.csv; none where there is no such file. Raises ValueError where it is damaged."""
    rows = read_rows(path) if path.exists() else []
    return [row for row in rows if row.get("status", "done") == "done"]  # the queue's table has finished runs alone


MARKS = ("config.yaml", ".lock", "DONE", "FAILED")  # one of them makes a folder a run's
STATES = ("running", "failed", "interrupted", "unreadable", "done")  # in the order in which they are listed


@dataclass(frozen=True)
class RunState:
    """`steps` and `total` are optimizer steps; `eta` is the seconds that a running one still takes, None if unknown."""

    folder: Path
    state: str
    steps: int
    total: int | None
    detail: str
    eta: float | None = None


def states_of(scales: Sequence[Path], now: float) -> list[RunState]:
    """Of every run below `scales` (runs/<scale>), the ones that need a look first."""
    folders = [path for scale in scales for path in sorted(scale.iterdir()) if path.is_dir()]
    found = [state_of(path, now) for path in folders if any((path / mark).exists() for mark in MARKS)]
    found = [status for status in found if status.folder.exists()]  # the others have been deleted meanwhile
    return sorted(found, key=lambda status: STATES.index(status.state))


def state_of(folder: Path, now: float) -> RunState:
    """`now` is a time as files have it."""
    try:
        return _state_of(folder, now)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        return RunState(folder, "unreadable", 0, None, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _state_of(folder: Path, now: float) -> RunState:
    if (report := finished_report(folder)) is not None:
        return RunState(folder, "done", report["steps"], report["steps"], f"took {duration(report['seconds'])}")
    logged, total, saved = steps_logged(folder / "metrics.jsonl"), _total_steps(folder), _saved(folder)
    if running(folder):
        eta = _eta(folder, logged, total, saved)
        said = f"time left {'not known yet' if eta is None else duration(eta)}"
        log = folder / "metrics.jsonl"
        quiet = now - (log if log.exists() else folder / ".lock").stat().st_mtime
        said += f", last step {duration(quiet)} ago" if quiet >= 60 else ""  # a step takes long, or hangs
        return RunState(folder, "running", logged, total, said, eta)
    if (error := error_of(folder)) is not None:
        return RunState(folder, "failed", logged, total, error.rpartition("\n")[2].strip() or "unknown error")
    if (folder / "DONE").exists():
        raise ValueError("DONE without the report of a finished run; the next sweep makes it again")
    step = saved[-1][0] if saved else 0
    return RunState(folder, "interrupted", step, total, f"goes on from step {step}" if step else "starts again")


def _total_steps(folder: Path) -> int | None:
    """By config.yaml; where an epoch is one pass over data that only the run has counted, by its first validation."""
    config, metrics = folder / "config.yaml", folder / "metrics.jsonl"
    if not config.exists():
        return None
    scale = yaml.load(config.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["scale"]
    records = read(metrics, growing=True) if scale["steps_per_epoch"] is None and metrics.exists() else []
    validations = [record["step"] for record in records if record["kind"] == "validation"]
    per_epoch = scale["steps_per_epoch"] or next(iter(validations), None)
    return None if per_epoch is None else int(per_epoch) * int(scale["epochs"])


def _saved(folder: Path) -> list[tuple[int, float]]:
    """(optimizer step, time of writing) of each checkpoint, the oldest first."""
    saved = []
    for path in (folder / "checkpoints").glob("[0-9]*-*.pt"):
        try:
            saved.append((int(path.name.partition("-")[0]), path.stat().st_mtime))
        except FileNotFoundError:  # the run has just replaced it by a newer one
            continue
    return sorted(saved)


def _eta(folder: Path, logged: int, total: int | None, saved: Sequence[tuple[int, float]]) -> float | None:
    """At the rate since the oldest checkpoint of this attempt, or since the attempt began."""
    metrics = folder / "metrics.jsonl"
    if total is None or not metrics.exists():
        return None
    began = (folder / ".lock").stat().st_mtime  # opened for writing by each attempt
    before = saved[-1][0] if saved else 0
    step, since = next(((step, written) for step, written in saved if written >= began), (before, began))
    seconds = metrics.stat().st_mtime - since
    return (total - logged) * seconds / (logged - step) if logged > step and seconds > 0 else None


PAPER_WEIGHTS = {"l1": 0.85, "ssim": 0.15}


def selection_weights(tasks: Mapping[str, float]) -> Mapping[str, float]:
    """The paper's weights whatever a run's own are, so that all choose alike; its own where it has other tasks."""
    return tasks if set(tasks) - set(PAPER_WEIGHTS) else PAPER_WEIGHTS


def weighted_loss(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Of validation scores, "val_<task>"."""
    return sum(weight * scores[f"val_{task}"] for task, weight in weights.items())


def objective(report: Mapping[str, Any]) -> float:
    """The weighted validation loss at the best epoch of a finished run, by its report.json: what a sweeper minimises.

    nan where the run has no such number.
    """
    weights = selection_weights(report.get("tasks") or {})
    scores = [report["final"]["best"]] if report.get("final") else report["validation"]
    measured = [each for each in scores if all(each[f"val_{task}"] is not None for task in weights)]
    return min((weighted_loss(each, weights) for each in measured), default=math.nan)


def recorded_objective(row: Mapping[str, str], tasks: Mapping[str, float]) -> float:
    """The same by a run's row of runs.csv, whose own tasks are `tasks`."""
    weights = selection_weights(tasks)
    return weighted_loss({f"val_{task}": float(row.get(f"best_val_{task}") or math.nan) for task in weights}, weights)
