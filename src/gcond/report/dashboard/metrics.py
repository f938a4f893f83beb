"""metrics.jsonl of one run -> arrays, and arrays -> a few hundred points to draw."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gcond.report.logged import KINDS

POINTS = 200  # a line on the page has at most this many
PREFIXES = ("loss/", "cosine/", "cosine_resolved/", "zone/")
SINGLE = ("correction", "resolved")
VALIDATION = ("val_l1", "val_ssim")


@dataclass(frozen=True)
class Metrics:
    """`steps`: key -> (optimizer steps [N], values [N]; nan where undefined). `validation`: records as logged."""

    steps: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)
    validation: list[dict[str, Any]] = field(default_factory=list)
    reached: int = 0  # optimizer steps, skipped ones too
    skipped: int = 0  # for what was not finite
    notes: tuple[str, ...] = ()


def read_metrics(path: Path) -> Metrics:
    """Read what is drawn. The last line may be half written; raises ValueError with the line's number for any other."""
    lines = path.read_bytes().split(b"\n")
    columns: dict[str, tuple[list[int], list[float]]] = {}
    validation: list[dict[str, Any]] = []
    reached, skipped, notes = 0, 0, []
    for number, line in enumerate(lines, start=1):
        if number == len(lines) and not line:
            break
        try:
            record = json.loads(line)
            kind, step = record["kind"], int(record["step"])
            if kind == "validation":
                validation.append({"step": step, **{key: _number(record.get(key)) for key in ("epoch", *VALIDATION)}})
            elif kind == "step":
                reached = max(reached, step + 1)
                skipped += "skipped" in record
                for key, value in record.items():
                    if is_drawn(key):
                        at, values = columns.setdefault(key, ([], []))
                        at.append(step)
                        values.append(np.nan if (found := _number(value)) is None else found)
            elif kind not in KINDS:
                raise ValueError(f"`kind` is {kind!r}, allowed: {', '.join(KINDS)}")
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines):
                notes.append(f"the last line of {path.name} is half written and left out")
                break
            raise ValueError(f"{path.name}, line {number}: {type(error).__name__}: {error}") from None
    steps = {key: (np.array(at), np.array(values)) for key, (at, values) in columns.items()}
    return Metrics(steps, validation, reached, skipped, tuple(notes))


@functools.cache
def is_drawn(key: str) -> bool:
    return key in SINGLE or (key.startswith(PREFIXES) and "+" not in key)  # "loss/l1+ssim": the sum that Joint takes


def bin_width(steps: int, points: int = POINTS) -> int:
    """Optimizer steps per point, so that `steps` of them make at most `points`."""
    return max(1, -(-steps // points))


def bin_means(at: np.ndarray, values: np.ndarray, width: int) -> dict[int, float]:
    """Bin -> mean of its defined values (nan if there is none), for every bin in which something was logged."""
    bins, where = np.unique(at // width, return_inverse=True)
    defined = np.isfinite(values)
    counts = np.bincount(where, weights=defined, minlength=len(bins))
    sums = np.bincount(where, weights=np.where(defined, values, 0), minlength=len(bins))
    with np.errstate(invalid="ignore"):
        return dict(zip(bins.tolist(), (sums / counts).tolist(), strict=True))


def short(value: object) -> float | int | None:
    """A number with 4 significant digits, as JSON takes it; None for anything that is not a finite number."""
    number = _number(value)
    if number is None or isinstance(number, int):
        return number
    rounded = float(f"{number:.4g}")
    return int(rounded) if rounded.is_integer() and abs(rounded) < 1e9 else rounded


def _number(value: object) -> float | int | None:
    """None unless `value` is a finite number; numpy's and pandas's scalars become Python's."""
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value
