"""Which epoch of a run is its best: the one with the smallest weighted validation loss, the first on ties."""

from __future__ import annotations

from collections.abc import Mapping

PAPER_WEIGHTS = {"l1": 0.85, "ssim": 0.15}


def selection_weights(tasks: Mapping[str, float]) -> Mapping[str, float]:
    """The paper's weights whatever a run's own are, so that all choose alike; its own where it has other tasks."""
    return tasks if set(tasks) - set(PAPER_WEIGHTS) else PAPER_WEIGHTS


def weighted_loss(scores: Mapping[str, float], weights: Mapping[str, float]) -> float:
    """Of validation scores, "val_<task>"."""
    return sum(weight * scores[f"val_{task}"] for task, weight in weights.items())
