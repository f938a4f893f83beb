"""How a run stands before it is started: to do, finished here, or recorded by another machine; for which data.

A run's config does not say what its data hold. So a finished run counts only where the checksum of its data is today's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from omegaconf import DictConfig

from gcond.data.checksums import checksum_of, short
from gcond.engine.folder import RunFolder
from gcond.files import read_rows


@dataclass(frozen=True)
class Standing:
    """`said`: where it is finished, why it is refused, or why what is recorded does not count. `unchecked`: why its
    data were not compared with today's, "" where they were. `row`: of runs.csv, where it is recorded."""

    state: Literal["to do", "finished", "recorded", "refused"]
    said: str = ""
    unchecked: str = ""
    row: Mapping[str, str] = field(default_factory=dict)


TO_DO = Standing("to do")
NO_REPORT = Standing("to do", "marked DONE without the report of a finished run, so it is made again")


def standing(folder: RunFolder, cfg: DictConfig, checksum: Callable[[DictConfig], Any] = checksum_of) -> Standing:
    """Of the run that `cfg` describes. `checksum` is that of a data set, and raises ValueError where it has no data."""
    try:
        report = folder.finished()
        if cfg.name is not None:  # else the folder's name tells configs apart
            folder.check(cfg)
    except (OSError, ValueError) as error:
        return Standing("refused", str(error))
    recorded = {} if cfg.recorded is None else recorded_by_data(Path(cfg.recorded), cfg.scale.name, folder.hash)
    if report is None and not recorded:
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
    if str(today) in recorded:
        return Standing("recorded", f"{where}, not repeated", row=recorded[str(today)])
    if unchecked:
        return Standing("recorded", f"{where}, not repeated", unchecked, next(iter(recorded.values())))
    if set(recorded) == {""}:
        return Standing("to do", f"{where} without the checksum of its data, so it is repeated")
    return Standing("to do", f"{where} for other data, so it is repeated")


def recorded_by_data(results: Path, scale: str, config: str) -> dict[str, dict[str, str]]:
    """The runs of `scale` with the hash `config` that are recorded as done below `results`: checksum of their data, ""
    unknown -> row of runs.csv. Raises ValueError where that file is damaged."""
    found = recorded_rows(results / scale / "runs.csv")
    return {row.get("data_checksum", ""): row for row in found if row.get("hash") == config}


def recorded_rows(path: Path) -> list[dict[str, str]]:
    """Of the finished runs in a runs.csv; none where there is no such file. Raises ValueError where it is damaged."""
    if not path.exists():
        return []
    header, rows = read_rows(path)
    found = (dict(zip(header, cells, strict=True)) for _, cells in rows)
    return [row for row in found if row.get("status", "done") == "done"]  # the queue's table has finished runs alone


def _made_with_other_data(folder: RunFolder, then: Any, today: Any) -> str:
    return (
        f"{folder.path}: finished with data of the checksum {short(then)}, expected today's {short(today)}; choose "
        f"another `runs` or `name`, or move the folder out of {folder.path.parent}"
    )
