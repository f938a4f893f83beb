"""A run's metrics.jsonl: what it logged, one record a line."""

import math
from pathlib import Path
from typing import Any

from gcond.engine import logbook
from gcond.files import damaged

Record = dict[str, Any]
"""Its "kind" is step, validation, probe, activations, final or groups; a number that is not defined is None."""
WORDS = ("kind", "at", "split")  # keys of text


def read(folder: Path) -> list[Record]:
    """All records of the run in `folder`; none where it left no metrics.jsonl.

    Raises ValueError, which names line and key, where one is damaged.
    """
    path = folder / "metrics.jsonl"
    records = logbook.read(path) if path.exists() else []
    for line, record in enumerate(records, 1):
        _check(record, path, line)
    return records


def _check(record: Record, path: Path, line: int) -> None:
    for key, kind, expected in (("kind", str, "text"), ("step", int, "an integer"), ("epoch", int, "an integer")):
        if type(record.get(key)) is not kind and (key in record or key != "epoch"):
            raise damaged(path, line, f"{expected} as `{key}`", repr(record.get(key)))
    for key, value in record.items():
        if key not in WORDS and not _is_number(value):
            raise damaged(path, line, f"a finite number or null as `{key}`", repr(value))


def _is_number(value: Any) -> bool:
    """Or null, or numbers by name."""
    if isinstance(value, dict):
        return all(map(_is_number, value.values()))
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
