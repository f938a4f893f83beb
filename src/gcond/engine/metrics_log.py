"""metrics.jsonl, the truth about a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from gcond.schema import LOG, validate

Record = dict[str, Any]
TAIL = 2**20  # bytes, far more than a record of an optimizer step takes
PICTURE = "reconstructions"  # kind of a record {"kind", "step", "path"} for loggers, which names a PNG


class MetricsLog:
    """Appends records to `path`; `size` is what a checkpoint remembers, so that a resumed run drops what came after.

    Without a path (in all but one of several processes) nothing is written.
    """

    def __init__(self, path: Path | None, size: int = 0) -> None:
        if path is None:
            self._file = open(os.devnull, "w")  # noqa: SIM115
            return
        path.touch()
        found = path.stat().st_size
        if found < size:
            raise ValueError(
                f"{path}: expected at least the {size} bytes that the checkpoint remembers, found {found}; move the "
                "run's folder away to start again"
            )
        read(path, size)
        self._file = path.open("r+")
        self._file.truncate(size)
        self._file.seek(size)

    @property
    def size(self) -> int:
        return self._file.tell()

    def write(self, record: Record) -> None:
        if record.get("kind") == PICTURE:
            return
        self._file.write(json.dumps(as_logged(record), allow_nan=False) + "\n")
        self._file.flush()

    def to_disk(self) -> None:
        """Return when all that was written would survive a power cut: before a checkpoint remembers `size`.

        Raises RuntimeError where the file is no longer what this process has written: the run's folder was moved or
        removed, or another process writes it too (on a file system that does not share locks between machines).
        """
        if self._file.name == os.devnull:
            return
        os.fsync(self._file.fileno())
        own, path = os.fstat(self._file.fileno()), Path(self._file.name)
        there = path.stat() if path.exists() else None
        if there is None or not os.path.samestat(own, there) or there.st_size != self.size:
            raise RuntimeError(
                f"{path}: expected the {self.size} bytes that this run has written, found "
                f"{'none' if there is None else there.st_size}; has the folder been moved or removed, or is another "
                "machine at work on it?"
            )

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read(path: Path, size: int | None = None, growing: bool = False) -> list[Record]:
    """The records in the first `size` bytes, or in all; in a log that is `growing` the last line may be half written.

    Raises ValueError, which names line and key, for a line that is cut or no record (`gcond.schema.LOG`).
    """
    with path.open("rb") as file:
        *lines, rest = file.read(size).split(b"\n")
    records: list[Record] = []
    try:
        for line in lines:
            records.append(_record(line))
        if rest and not growing:
            raise ValueError("expected a line that ends")
    except ValueError as error:
        line_number = len(records) + 1
        raise ValueError(f"{path}, line {line_number}: {error}; move the run's folder away to start again") from None
    return records


def steps_logged(path: Path) -> int:
    """Optimizer steps by the last whole line, after which a process may be writing another; 0 where there is none.

    Raises ValueError where that line is no record.
    """
    if not path.exists():
        return 0
    with path.open("rb") as file:
        file.seek(-min(TAIL, file.seek(0, os.SEEK_END)), os.SEEK_END)
        lines = file.read().split(b"\n")
    try:
        record = _record(lines[-2]) if len(lines) > 1 else {"step": 0, "kind": "none"}
    except ValueError as error:
        raise ValueError(f"{path}: its last line: {error}") from None
    return int(record["step"]) + (record["kind"] == "step")


def _record(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {line[:40]!r}")
    try:
        LOG.validate_python(record)
    except ValidationError:
        validate(LOG, record)  # says it in one sentence
    return record


def as_logged(value: Any) -> Any:
    """A record, or a value in it, with null for each number that is not finite: JSON knows neither nan nor infinity."""
    if isinstance(value, dict):
        return {key: as_logged(member) for key, member in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
