"""How a run stands before it is started: to do, finished here, or recorded by another machine; for which data.

A run's config does not say what its data hold. So a finished run counts only where the checksum of its data is today's.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from gcond.data.checksums import checksum_of, short
from gcond.engine.folder import RunFolder


@dataclass(frozen=True)
class Standing:
    """`said`: where it is finished, why it is refused, or why what is recorded does not count. `unchecked`: why its
    data were not compared with today's, "" where they were."""

    state: Literal["to do", "finished", "recorded", "refused"]
    said: str = ""
    unchecked: str = ""


TO_DO = Standing("to do")
NO_REPORT = Standing("to do", "marked DONE without the report of a finished run, so it is made again")


def standing(folder: RunFolder, cfg: DictConfig, checksum: Callable[[DictConfig], Any] = checksum_of) -> Standing:
    """Of the run that `cfg` describes. `checksum` is that of a data set, and raises ValueError where it has no data."""
    try:
        report = folder.finished()
        if cfg.name is not None:  # else the folder's name tells configs apart
            folder.check(cfg)
    except ValueError as error:
        return Standing("refused", str(error))
    recorded = {} if cfg.recorded is None else recorded_checksums(Path(cfg.recorded), cfg.scale.name)
    if report is None and folder.hash not in recorded:
        return NO_REPORT if folder.done else TO_DO
    try:
        today, unchecked = checksum(cfg.dataset), ""
    except (OSError, ValueError) as error:
        today, unchecked = None, str(error)
    if report is not None:
        if today not in (None, report["data_checksum"]):
            return Standing("refused", _made_with_other_data(folder, report["data_checksum"], today))
        return Standing("finished", f"finished earlier, see {folder.path}", unchecked)
    where = f"recorded in {Path(cfg.recorded) / cfg.scale.name / 'runs.csv'}"
    if str(today) in recorded[folder.hash]:
        return Standing("recorded", f"{where}, not repeated")
    if unchecked:
        return Standing("recorded", f"{where}, not repeated", unchecked)
    if recorded[folder.hash] == {""}:
        return Standing("to do", f"{where} without the checksum of its data, so it is repeated")
    return Standing("to do", f"{where} for other data, so it is repeated")


def recorded_checksums(results: Path, scale: str) -> dict[str, set[str]]:
    """Of the runs of `scale` that are recorded as done below `results`: hash -> checksums of their data, "" unknown."""
    path = results / scale / "runs.csv"
    found: dict[str, set[str]] = defaultdict(set)
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["status"] == "done" and row["hash"]:
                    found[row["hash"]].add(row.get("data_checksum") or "")
    return found


def _made_with_other_data(folder: RunFolder, then: Any, today: Any) -> str:
    return (
        f"{folder.path}: finished with data of the checksum {short(then)}, expected today's {short(today)}; choose "
        "another `runs` or `name`, or move the folder away"
    )
