"""Which epoch of a run is its best: the one with the smallest weighted validation loss, the first on ties."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

PAPER_WEIGHTS = {"l1": 0.85, "ssim": 0.15}


def selection_weights(tasks: Mapping[str, float]) -> Mapping[str, float]:
    """The paper's weights whatever a run's own are, so that all choose alike; its own where it has other tasks."""
    return tasks if set(tasks) - set(PAPER_WEIGHTS) else PAPER_WEIGHTS


def weighted_loss(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Of validation scores, "val_<task>"."""
    return sum(weight * scores[f"val_{task}"] for task, weight in weights.items())


def objective(report: Mapping[str, Any]) -> float:
    """The weighted validation loss at the best epoch of a finished run, by its report.json: what a sweeper minimises.

    nan where the run has no such number.
    """
    weights = selection_weights(report.get("tasks") or {})
    scores = [report["final"]["best"]] if report.get("final") else report["validation"]
    measured = [each for each in scores if all(each[f"val_{task}"] is not None for task in weights)]
    return min((weighted_loss(each, weights) for each in measured), default=math.nan)


def recorded_objective(row: Mapping[str, str], tasks: Mapping[str, float]) -> float:
    """The same by a run's row of runs.csv, whose own tasks are `tasks`."""
    weights = selection_weights(tasks)
    return weighted_loss({f"val_{task}": float(row[f"best_val_{task}"]) for task in weights}, weights)
