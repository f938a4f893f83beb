"""metrics.jsonl, the truth about a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import Any

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

    def write(self, record: dict[str, Any]) -> None:
        if record.get("kind") == PICTURE:
            return
        clean = {key: _json_number(value) for key, value in record.items()}
        self._file.write(json.dumps(clean, allow_nan=False) + "\n")
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

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def read(path: Path, size: int | None = None) -> list[dict[str, Any]]:
    """The records in the first `size` bytes, or in all. Raises ValueError, which names the line, where one is none."""
    with path.open("rb") as file:
        lines = file.read(size).split(b"\n")
    if lines.pop():
        raise _damaged(path, len(lines) + 1, "a line that ends")
    return [_record(path, number, line) for number, line in enumerate(lines, 1)]


def _record(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise _damaged(path, number, f"a JSON object, found {line[:40]!r}")
    return record


def _damaged(path: Path, line: int, expected: str) -> ValueError:
    return ValueError(f"{path}, line {line}: expected {expected}; move the run's folder away to start again")


def _json_number(value: Any) -> Any:
    """JSON has no nan: an undefined number is null."""
    if isinstance(value, dict):
        return {key: _json_number(member) for key, member in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
