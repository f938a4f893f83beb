"""Folders below runs/<scale>/ -> one Entry each, whatever their state: nothing that looks like a run is left out."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from gcond.report.dashboard.metrics import Metrics, read_metrics
from gcond.report.folders import read_run
from gcond.report.lineup import STRATEGIES

STATUSES = {
    "done": "finished",
    "running": "a process on this machine holds the run's lock",
    "failed": "ended by an error",
    "unfinished": "begun, neither finished nor failed; nothing on this machine is at work on it",
    "damaged": "its files cannot be read",
    "superseded": "repeated later with the same choices; in no curve",
}
_NAME = re.compile(r"(?P<dataset>[^-]+)-(?P<model>[^-]+)-(?P<strategy>[^-]+)-seed(?P<seed>\d+)-(?P<hash>[0-9a-f]{10})")
_FILES = ("config.yaml", "report.json", "metrics.jsonl", "FAILED", "DONE", ".lock")


@dataclass
class Entry:
    """One run. `variant` is None where nobody knows it yet; `settings` names its config, less the seed."""

    folder: str
    scale: str
    status: str = "damaged"
    reason: str = ""
    dataset: str = ""
    dataset_title: str = ""
    model: str = ""
    strategy: str = ""
    label: str = ""
    seed: int | None = None
    variant: str | None = None
    settings: str = ""
    notes: list[str] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # the other columns of runs.csv
    trivial: dict[str, dict[str, float]] = field(default_factory=dict)
    metrics: Metrics = field(default_factory=Metrics)
    pictures: Path | None = None


def run_folders(runs: Path) -> list[Path]:
    """Every runs/<scale>/<run>. Raises ValueError where `runs` is no folder, or holds runs itself."""
    if runs.exists() and not runs.is_dir():
        raise ValueError(f"`--runs`: expected a folder, found the file {runs}")
    below = [path for path in sorted(runs.glob("*")) if path.is_dir()]
    if misplaced := [path for path in below if _is_run(path)]:
        raise ValueError(
            f"`--runs`: expected a folder of scales (runs/<scale>/<run>), found the run {misplaced[0].name} in {runs}; "
            f"name the folder above it: --runs {runs.parent}"
        )
    return [path for scale in below for path in sorted(scale.glob("*")) if path.is_dir() and _is_run(path)]


def _is_run(path: Path) -> bool:
    return bool(_NAME.fullmatch(path.name)) or any((path / name).exists() for name in _FILES)


def held_locks() -> set[int]:
    """Inodes of files locked on this machine, from /proc/locks; empty where there is no such file.

    Only looked up, never tried: to take a lock, however briefly, could make a run that starts just then fail. Device
    numbers beside the inodes are not compared, since overlay file systems report others.
    """
    try:
        lines = Path("/proc/locks").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {int(found[1]) for line in lines if (found := re.search(r"FLOCK .*?[0-9a-f]+:[0-9a-f]+:(\d+) ", line))}


def read_folder(folder: Path, held: set[int]) -> Entry:
    """Read one run; what cannot be read is said in `reason` or `notes`, never raised."""
    entry = Entry(f"{folder.parent.name}/{folder.name}", folder.parent.name)
    entry.pictures = folder / "reconstructions"
    if named := _NAME.fullmatch(folder.name):
        entry.dataset, entry.model, entry.strategy = named["dataset"], named["model"], named["strategy"]
        entry.seed = int(named["seed"])
    _read_config(folder / "config.yaml", entry)
    try:
        _read_outcome(folder, entry, held)
    except (ValueError, TypeError, AttributeError, OSError) as error:
        entry.status, entry.reason = "damaged", f"{error}"
    try:
        if (folder / "metrics.jsonl").exists():
            entry.metrics = read_metrics(folder / "metrics.jsonl")
    except (ValueError, OSError) as error:
        entry.notes.append(f"no curves: {error}")
    entry.notes += entry.metrics.notes
    entry.dataset_title = entry.dataset_title or entry.dataset
    entry.label = STRATEGIES.get(entry.strategy) or entry.label or entry.strategy or folder.name
    return entry


def _read_config(path: Path, entry: Entry) -> None:
    if not path.exists():
        return
    try:
        config = yaml.safe_load(path.read_text(encoding="utf-8"))
        entry.dataset, entry.model = str(config["dataset"]["name"]), str(config["model"]["name"])
        entry.strategy, entry.seed = str(config["strategy"]["name"]), int(config["seed"])
        entry.label = str(config["strategy"].get("label") or "")
        scale = config["scale"]
        if scale.get("epochs") and scale.get("steps_per_epoch"):
            entry.facts["planned"] = int(scale["epochs"]) * int(scale["steps_per_epoch"])
        rest = {key: value for key, value in config.items() if key != "seed"}
        entry.settings = hashlib.sha256(json.dumps(rest, sort_keys=True, default=str).encode()).hexdigest()[:10]
    except (ValueError, TypeError, AttributeError, KeyError, OSError, yaml.YAMLError) as error:
        entry.notes.append(f"config.yaml cannot be read: {type(error).__name__}: {' '.join(str(error).split())}")


def _read_outcome(folder: Path, entry: Entry, held: set[int]) -> None:
    """Fill in status, reason and what report.json says. Raises ValueError and its like if that is malformed."""
    has_report, failure = (folder / "report.json").exists(), folder / "FAILED"
    if _is_held(folder / ".lock", held):
        entry.status = "running"
    elif has_report:
        run = read_run(folder)
        report = json.loads((folder / "report.json").read_text(encoding="utf-8"))
        row = run.row
        for name in ("dataset", "model", "strategy", "variant"):
            setattr(entry, name, str(row[name]))
        entry.seed, entry.trivial = int(report["seed"]), run.trivial
        entry.dataset_title = str(row["dataset_title"] or "")
        entry.facts |= row | {"skipped_steps": report.get("skipped_steps")}
        entry.status, entry.reason = str(row["status"]), str(row["error"])
        if report["status"] == "failed" and not failure.exists() and not (folder / "DONE").exists():
            entry.status = "unfinished"
            entry.reason = f"begun again and stopped after it had failed with: {entry.reason}"
        elif entry.status == "failed" and failure.exists():
            entry.reason = failure.read_text(encoding="utf-8", errors="replace").strip() or entry.reason
    elif failure.exists():
        text = failure.read_text(encoding="utf-8", errors="replace").strip()
        entry.status, entry.reason = "failed", text or "FAILED is empty"
    elif (folder / "DONE").exists():
        raise ValueError("DONE is there but report.json is not")
    elif not any((folder / name).exists() for name in ("config.yaml", "metrics.jsonl")):
        raise ValueError("the folder has the name of a run but neither config.yaml nor metrics.jsonl")
    else:
        entry.status = "unfinished"
        entry.reason = "stopped, or at work on another machine: neither report.json nor FAILED"


def _is_held(lock: Path, held: set[int]) -> bool:
    return lock.exists() and lock.stat().st_ino in held


def mark_superseded(entries: Iterable[Entry]) -> None:
    """Of runs that ended with the same choices the one started last counts, as in runs.csv."""
    latest: dict[tuple[object, ...], Entry] = {}
    for entry in entries:
        if entry.status not in ("done", "failed") or entry.variant is None:
            continue
        key = (entry.scale, entry.dataset, entry.model, entry.strategy, entry.seed, entry.variant)
        other = latest.setdefault(key, entry)
        if other is entry:
            continue
        older, newer = sorted([other, entry], key=lambda candidate: str(candidate.facts.get("started")))
        older.status, older.reason = "superseded", f"repeated later as {newer.folder}"
        latest[key] = newer
