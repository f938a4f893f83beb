"""A run's metrics.jsonl: what it logged, one record a line."""

import math
from pathlib import Path
from typing import Any

from gcond.engine import metrics_log

Record = dict[str, Any]
"""Its "kind" is one of KINDS; a number that is not defined is None."""
KINDS = ("step", "validation", "probe", "activations", "final", "groups")
WORDS = ("kind", "at", "split")  # keys of text
AGAIN = "move the run's folder away to make it again"


def read(folder: Path) -> list[Record]:
    """All records of the run in `folder`; none where it left no metrics.jsonl.

    Raises ValueError, which names line and key, where one is damaged.
    """
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = metrics_log.read(path)
    if not records:
        raise ValueError(f"{path}: expected the records of a run, found none; {AGAIN}")
    for line, record in enumerate(records, 1):
        try:
            _check(record)
        except ValueError as error:
            raise ValueError(f"{path}, line {line}: {error}; {AGAIN}") from None
    return records


def _check(record: Record) -> None:
    if record.get("kind") not in KINDS:
        raise ValueError(f"expected one of {', '.join(KINDS)} as `kind`, found {record.get('kind')!r}")
    for key in ("step", "epoch"):
        if type(record.get(key)) is not int and (key in record or key == "step"):
            raise ValueError(f"expected an integer as `{key}`, found {record.get(key)!r}")
    for key, value in record.items():
        if key not in WORDS and not _is_number(value):
            raise ValueError(f"expected a finite number or null as `{key}`, found {value!r}")


def _is_number(value: Any) -> bool:
    """Or null, or numbers by name."""
    if isinstance(value, dict):
        return all(map(_is_number, value.values()))
    return value is None or (isinstance(value, int | float) and math.isfinite(value))
