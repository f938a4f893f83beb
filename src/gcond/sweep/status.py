"""What the runs on this disk are doing: python -m gcond.sweep.status [--runs DIR] [--scale NAME]

Read from their folders alone, so it works beside a sweep and on a cluster's login node. A run that waits in a queue has
no folder yet: `make plan` counts what is missing.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml

from gcond.engine.folder import finished_report
from gcond.engine.lock import running
from gcond.output import output_may_be_lost
from gcond.sweep import words
from gcond.sweep.state import last_line_of_error, steps_logged, steps_saved

MARKS = ("config.yaml", ".lock", "DONE", "FAILED")  # one of them makes a folder a run's
STATES = ("running", "failed", "interrupted", "unreadable", "done")  # in the order in which they are listed


@dataclass(frozen=True)
class Status:
    """`steps` and `total` are optimizer steps; `eta` is the seconds that a running one still takes, None if unknown."""

    folder: Path
    state: str
    steps: int
    total: int | None
    detail: str
    eta: float | None = None


def statuses(scales: Sequence[Path], now: float) -> list[Status]:
    """Of every run below `scales` (runs/<scale>), the ones that need a look first."""
    folders = [path for scale in scales for path in sorted(scale.iterdir()) if path.is_dir()]
    found = [status(path, now) for path in folders if any((path / mark).exists() for mark in MARKS)]
    found = [status for status in found if status.folder.exists()]  # the others have been deleted meanwhile
    return sorted(found, key=lambda status: STATES.index(status.state))


def status(folder: Path, now: float) -> Status:
    try:
        return _status(folder, now)
    except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
        return Status(folder, "unreadable", 0, None, f"{type(error).__name__}: {' '.join(str(error).split())}")


def _status(folder: Path, now: float) -> Status:
    if (report := finished_report(folder)) is not None:
        return Status(folder, "done", report["steps"], report["steps"], f"took {words.duration(report['seconds'])}")
    logged = steps_logged(folder / "metrics.jsonl")
    total = _total_steps(folder)
    if running(folder):
        eta = _eta(folder, logged, total)
        left = "not known yet" if eta is None else words.duration(eta)
        return Status(folder, "running", logged, total, f"time left {left}{_silence(folder, now)}", eta)
    error = last_line_of_error(folder)
    if error is not None:
        return Status(folder, "failed", logged, total, error)
    if (folder / "DONE").exists():
        raise ValueError("DONE without the report of a finished run; the next sweep makes it again")
    saved = steps_saved(folder)
    step = saved[-1][0] if saved else 0
    return Status(folder, "interrupted", step, total, f"goes on from step {step}" if step else "starts again")


def _total_steps(folder: Path) -> int | None:
    """By config.yaml; where an epoch is one pass over data that only the run has counted, by its first validation."""
    try:
        scale = yaml.load((folder / "config.yaml").read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))["scale"]
    except FileNotFoundError:
        return None
    per_epoch = scale["steps_per_epoch"] or _steps_to_first_validation(folder / "metrics.jsonl")
    return None if per_epoch is None else int(per_epoch) * int(scale["epochs"])


def _steps_to_first_validation(metrics: Path) -> int | None:
    if not metrics.exists():
        return None
    with metrics.open() as file:
        line = next((line for line in file if '"kind": "validation"' in line and line.endswith("\n")), None)
    return None if line is None else int(json.loads(line)["step"])


def _eta(folder: Path, logged: int, total: int | None) -> float | None:
    """At the rate since the oldest checkpoint of this attempt, or since the attempt began."""
    metrics = folder / "metrics.jsonl"
    if total is None or not metrics.exists():
        return None
    began = (folder / ".lock").stat().st_mtime  # opened for writing by each attempt
    step, since = 0, began
    for saved, written in steps_saved(folder):
        step, since = saved, max(written, began)
        if written >= began:
            break
    seconds = metrics.stat().st_mtime - since
    return (total - logged) * seconds / (logged - step) if logged > step and seconds > 0 else None


def _silence(folder: Path, now: float) -> str:
    """Said where a step takes long, or hangs."""
    metrics = folder / "metrics.jsonl"
    quiet = now - (metrics if metrics.exists() else folder / ".lock").stat().st_mtime
    return f", last step {words.duration(quiet)} ago" if quiet >= 60 else ""


def print_statuses(found: Sequence[Status]) -> None:
    counts = Counter(status.state for status in found)
    print(f"{len(found)} runs: " + ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state]))
    names = {status.folder: f"{status.folder.parent.name}/{status.folder.name}" for status in found}
    width = max(len(name) for name in names.values())
    for status in found:
        steps = f"{status.steps}/{'?' if status.total is None else status.total}"
        print(f"{status.state:<11}  {steps:>11}  {names[status.folder]:<{width}}  {status.detail}")


@output_may_be_lost()
def main(words: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m gcond.sweep.status", description=__doc__.split("\n\n")[0])
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of local runs (default: runs)")
    parser.add_argument("--scale", help="only the runs of this scale (default: all)")
    arguments = parser.parse_args(words)
    scales = sorted(path for path in arguments.runs.glob(arguments.scale or "*") if path.is_dir())
    found = statuses(scales, time.time())
    if found:
        print_statuses(found)
    else:
        print(f"no runs in {arguments.runs / (arguments.scale or '')}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
