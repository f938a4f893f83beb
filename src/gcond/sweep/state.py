"""How a run stands, read from its folder alone: cheaply, and without disturbing the process at work on it."""

from __future__ import annotations

import json
from pathlib import Path

BLOCK = 8192  # bytes; a record of a step takes 1 to 3 thousand


def steps_logged(metrics: Path) -> int:
    """Optimizer steps in metrics.jsonl by its last complete line; 0 where there is none.

    Raises ValueError where that is no record.
    """
    line = _last_line(metrics)
    if line is None:
        return 0
    try:
        record = json.loads(line)
        return int(record["step"]) + (record["kind"] == "step")
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{metrics}: expected a record in its last line, found {line[:40]!r}") from None


def _last_line(path: Path) -> bytes | None:
    """The last line that ends in a newline; a process may be writing the one after it."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return None
    with file:
        start = file.seek(0, 2)
        tail = b""
        while start > 0:
            size = min(BLOCK, start)
            start -= size
            file.seek(start)
            tail = file.read(size) + tail
            lines = tail.split(b"\n")
            if len(lines) > 2 or (len(lines) == 2 and start == 0):
                return lines[-2]
        return None


def steps_saved(folder: Path) -> list[tuple[int, float]]:
    """(optimizer step, time of writing) of each checkpoint, the oldest first."""
    saved = []
    for path in (folder / "checkpoints").glob("[0-9]*-*.pt"):
        try:
            saved.append((int(path.name.partition("-")[0]), path.stat().st_mtime))
        except FileNotFoundError:  # the run has just replaced it by a newer one
            continue
    return sorted(saved)


def last_line_of_error(folder: Path) -> str | None:
    """Of FAILED: "Type: message", of a message of several lines its last one; None where the run has not failed."""
    try:
        lines = [
            line.strip()
            for line in (folder / "FAILED").read_text(encoding="utf-8", errors="replace").splitlines()
            if line.strip()
        ]
    except FileNotFoundError:
        return None
    return lines[-1] if lines else "unknown error"
