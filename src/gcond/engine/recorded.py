"""Runs that another machine has finished: their hashes, as results/<scale>/runs.csv keeps them."""

from __future__ import annotations

import csv
from pathlib import Path


def recorded_hashes(results: Path, scale: str) -> frozenset[str]:
    """Hashes of the runs of `scale` that are recorded as done below `results`."""
    path = results / scale / "runs.csv"
    if not path.exists():
        return frozenset()
    with path.open(newline="") as file:
        return frozenset(row["hash"] for row in csv.DictReader(file) if row["status"] == "done" and row["hash"])
