"""A run's records of single steps -> at most 50 bins of them, as steps.csv keeps them.

Steps that were left out (a loss or gradient was not finite) count in no number, only in a bin's first and last step.
"""

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from statistics import fmean

from gcond.report.logged import Record
from gcond.report.records import MORE_TASKS

BINS = 50
MEANS = {  # column -> what the run logged; the mean over the bin's steps that have it
    **{f"loss_{task}": f"loss/{task}" for task in ("l1", "ssim")},
    **{f"grad_norm_{task}": f"grad_norm/{task}" for task in ("l1", "ssim")},  # lambda-weighted
    "resolved_norm": "resolved_norm",
    "cosine_mean": "cosine/all",
    **{f"cosine_{group}": f"cosine/{group}" for group in ("encoder", "body", "head")},
    **{name: name for name in ("resolved", "correction", "clipped")},
    **{f"zone_{zone}": f"zone/{zone}" for zone in ("weak", "main", "critical")},  # arbitrated pairs a step
    **{f"weight_{task}": f"weight/{task}" for task in ("l1", "ssim")},
    **{name: name for name in ("step_rms_over_lr", "cosine_step_resolved")},
    **{f"{what}_{task}": f"{what}/{task}" for what in ("loss", "grad_norm", "weight") for task in MORE_TASKS},
}
MINIMA = {  # column -> what the run logged; the smallest of the bin
    "cosine_min": "cosine/all",
    "cosine_resolved_min": "cosine_resolved/all",
    "published_cosine": "gcond/min_cosine_as_published",  # what the published code would have logged
}


def bin_steps(records: Sequence[Record], bins: int = BINS) -> list[dict[str, object]]:
    """One row per bin, in order: as many steps in each, the fewest that need no more than `bins`; the last may be
    shorter. A number that no step of the bin has is None."""
    steps = [record for record in records if record["kind"] == "step"]
    if not steps:
        return []
    jumps = _jumps(steps)
    width = math.ceil(len(steps) / bins)
    rows = []
    for start in range(0, len(steps), width):
        own = steps[start : start + width]
        taken = [step for step in own if "skipped" not in step]
        cosines = _values(taken, "cosine/all")
        row = {"bin": start // width, "first_step": own[0]["step"], "last_step": own[-1]["step"]}
        row |= {column: _over(fmean, _values(taken, name)) for column, name in MEANS.items()}
        row |= {column: _over(min, _values(taken, name)) for column, name in MINIMA.items()}
        row["norm_jump"] = _over(fmean, [jump for jump in jumps[start : start + width] if jump is not None])
        row["cosine_steps"] = len(cosines)
        row["conflicts"] = _over(fmean, [float(cosine < 0) for cosine in cosines])
        rows.append(row)
    return rows


def _jumps(steps: Sequence[Record]) -> list[float | None]:
    """|ln(norm_t / norm_t-1)| of the resolved gradient at each step; None where one of the two is missing or zero."""
    norms = [None if "skipped" in step else step.get("resolved_norm") for step in steps]
    jumps: list[float | None] = [None]
    for before, now in pairwise(norms):
        jumps.append(abs(math.log(now / before)) if now and before else None)
    return jumps


def _values(steps: Sequence[Record], name: str) -> list[float]:
    return [float(step[name]) for step in steps if step.get(name) is not None]


def _over(reduce: Callable[[list[float]], float], values: list[float]) -> float | None:
    return reduce(values) if values else None
