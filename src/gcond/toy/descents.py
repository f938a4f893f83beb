"""All strategies from all starts, in several processes; a descent that is finished is not repeated.

A descent's part is `parts`/METHOD-START-SETTINGS.csv, at full precision. What is recorded in `out` is put together from
the parts: endpoints.csv and, thinned, trajectories/METHOD.csv. Recorded methods that are not asked for stay as they are
if their settings are still the same.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from tqdm import tqdm

from gcond.files import write_text
from gcond.toy.lineup import Method
from gcond.toy.problem import F1_SCALE, STARTS, distance_to_front, evaluate
from gcond.toy.trajectories import TASKS, Point, follow

COLUMNS = (
    "method",
    "label",
    "start",
    "start_x1",
    "start_x2",
    "steps",
    "x1",
    "x2",
    "f1",
    "f2",
    "to_front",
    "stopped",
    "settings",
)


class Part(NamedTuple):
    """A finished descent, and why its resolver gave up before the last step ("" if it did not)."""

    points: list[Point]
    stopped: str


def descend(methods: Sequence[Method], parts: Path, jobs: int) -> list[str]:
    """Run what has no part yet; returns what failed, one line each. Failures do not stop the rest."""
    todo = [
        (method, start)
        for method in methods
        for start in range(len(STARTS))
        if not _part(parts, method, start).exists()
    ]
    failures: list[str] = []
    if not todo:
        return failures
    # Fresh processes: forking one that has used torch's threads may hang.
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        running = {
            pool.submit(_run, method, start, parts): f"{method.name} from {STARTS[start]}" for method, start in todo
        }
        bar = tqdm(as_completed(running), total=len(running), desc="descents", unit="descent", disable=None)
        for future in bar:
            error = future.exception()
            if error is not None:
                failures.append(f"{running[future]}: {type(error).__name__}: {error}")
                bar.write(failures[-1])
    return failures


def record(methods: Sequence[Method], asked: Iterable[str], parts: Path, out: Path) -> None:
    """Write endpoints.csv and trajectories/ of `methods`, from parts where asked for, else from the record."""
    recorded = _recorded(out / "endpoints.csv")
    asked, rows = set(asked), []
    for method in methods:
        found = {
            start: _read(_part(parts, method, start))
            for start in range(len(STARTS))
            if method.name in asked and _part(parts, method, start).exists()
        }
        if found:
            _write_trajectories(out / "trajectories" / f"{method.name}.csv", found)
            rows += [_row(method, start, part) for start, part in found.items()]
        else:
            rows += [row for row in recorded if row["method"] == method.name and row["settings"] == method.settings]
    write_csv(out / "endpoints.csv", COLUMNS, [[row[key] for key in COLUMNS] for row in rows])


def end_point(method: Method, start: int, parts: Path) -> dict[str, float] | None:
    """The losses at the end, as the strategy sees them, by task; None if the descent is not finished."""
    path = _part(parts, method, start)
    if not path.exists():
        return None
    (f1, f2), _ = evaluate(*_read(path).points[-1][1:])
    return dict(zip(TASKS, (F1_SCALE * f1, f2), strict=True))


def _run(method: Method, start: int, parts: Path) -> None:
    torch.set_num_threads(1)
    points, stopped = [], ""
    try:
        for point in follow(method.descent(), STARTS[start], method.steps):
            points.append(point)
    except RuntimeError as error:  # a solver that found no weights: the descent ends there, and the tables say so
        stopped = str(error).split("; Gram")[0]
        print(f"{method.name} from {STARTS[start]} stopped: {error}", file=sys.stderr)
    rows = [(*point, stopped if point is points[-1] else "") for point in points]
    write_csv(_part(parts, method, start), ("step", "x1", "x2", "stopped"), rows)


def _part(parts: Path, method: Method, start: int) -> Path:
    return parts / f"{method.name}-{start}-{method.settings}.csv"


def _read(path: Path) -> Part:
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    return Part([(int(row["step"]), float(row["x1"]), float(row["x2"])) for row in rows], rows[-1]["stopped"])


def _row(method: Method, start: int, part: Part) -> dict[str, object]:
    step, x1, x2 = part.points[-1]
    stopped = f"step {step}: {part.stopped}" if part.stopped else ""
    (f1, f2), _ = evaluate(x1, x2)
    numbers = {"x1": x1, "x2": x2, "f1": f1, "f2": f2, "to_front": distance_to_front(x1, x2)}
    named = {"method": method.name, "label": method.label, "start": start, "steps": method.steps}
    place = {
        "start_x1": STARTS[start][0],
        "start_x2": STARTS[start][1],
        "stopped": stopped,
        "settings": method.settings,
    }
    return {**named, **place, **{key: f"{value:.5f}" for key, value in numbers.items()}}


def _recorded(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def _write_trajectories(path: Path, found: dict[int, Part]) -> None:
    lines = [(start, step, f"{x1:.2f}", f"{x2:.2f}") for start, part in found.items() for step, x1, x2 in part.points]
    write_csv(path, ("start", "step", "x1", "x2"), lines)


def write_csv(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(rows)
    write_text(path, buffer.getvalue())
