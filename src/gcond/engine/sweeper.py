"""The sweep that this process works for, if there is one: no further run begins when that has ended."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "GCOND_SWEEP"


def name_of(pid: int) -> str | None:
    """Of the process `pid`, and of no later one with its number; None where there is none."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *fields = stat.rpartition(")")[2].split()
    return None if state in "ZX" else f"{pid} {fields[18]}"  # the number, and when it was started


def has_ended() -> bool:
    """False where no sweep has started this process."""
    name = os.environ.get(VARIABLE)
    return name is not None and name_of(int(name.split()[0])) != name
