"""metrics.jsonl, the truth about a run: one JSON object a line, appended."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

Record = dict[str, Any]
KINDS = ("step", "validation", "probe", "activations", "final", "groups")
TEXTS = ("kind", "at", "split")  # keys whose values are no numbers
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

    def __exit__(self, *error: object) -> None:
        self._file.close()


def read(path: Path, size: int | None = None) -> list[Record]:
    """The records in the first `size` bytes, or in all.

    Raises ValueError, which names line and key, for a line that is cut or no JSON object, an unknown kind, a step or
    epoch that is no integer, and any other value that is neither a finite number nor null.
    """
    with path.open("rb") as file:
        *lines, rest = file.read(size).split(b"\n")
    records: list[Record] = []
    try:
        for line in lines:
            records.append(_record(line))
        if rest:
            raise ValueError("expected a line that ends")
    except ValueError as error:
        line_number = len(records) + 1
        raise ValueError(f"{path}, line {line_number}: {error}; move the run's folder away to start again") from None
    return records


def _record(line: bytes) -> Record:
    try:
        record = json.loads(line)
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"expected a JSON object, found {line[:40]!r}")
    if record.get("kind") not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)} as `kind`, found {record.get('kind')!r}")
    for key, value in record.items():
        if key in ("step", "epoch") and type(value) is not int:
            raise ValueError(f"expected an integer as `{key}`, found {value!r}")
        if key not in TEXTS and not _is_number(value):
            raise ValueError(f"expected a finite number or null as `{key}`, found {value!r}")
    if "step" not in record:
        raise ValueError("expected an integer as `step`, found none")
    return record


def _is_number(value: Any) -> bool:
    """Or null, or numbers by name."""
    if isinstance(value, dict):
        return all(map(_is_number, value.values()))
    return value is None or (isinstance(value, int | float) and math.isfinite(value))


def _json_number(value: Any) -> Any:
    """JSON has no nan: an undefined number is null."""
    if isinstance(value, dict):
        return {key: _json_number(member) for key, member in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value
