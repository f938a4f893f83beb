"""A run's metrics.jsonl: what it logged, one record a line."""

import json
from pathlib import Path
from typing import Any

Record = dict[str, Any]
"""Its "kind" is step, validation, probe, activations, final or groups; a number that is not defined is None."""


def read(folder: Path) -> list[Record]:
    """All records of the run in `folder`; none where it left no metrics.jsonl. Raises ValueError for a broken line."""
    path = folder / "metrics.jsonl"
    if not path.exists():
        return []
    records = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError as broken:
            raise ValueError(f"{path}, line {number} is not JSON: {broken}") from None
    return records
