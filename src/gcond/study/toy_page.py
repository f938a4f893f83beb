"""The numbers of results/toy/toy.md: where descents end, what noise does to a cosine, GradOPS's trade-off.

References (study/toy_references.csv) are end points from separate float64 code, run before this package was written:
35,000 steps of Adam at 1e-3 on (0.1 f_1, f_2), FAMO 50,000. They agree with what the methods' papers show.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from gcond.study import tables
from gcond.study.methods import STUDY
from gcond.toy.problem import distance_to_front

ON_FRONT = 0.05  # largest distance to the Pareto front of what counts as on it
AGREES = 0.02  # largest distance to a reference on the front


def read(folder: Path) -> tuple[pd.DataFrame, dict[str, pd.DataFrame], pd.DataFrame, pd.DataFrame]:
    """End points, paths by method, noise and trade-off, as gcond.toy recorded them in `folder`."""

    def table(name: str) -> pd.DataFrame:
        return tables.read_csv(folder / f"{name}.csv", "toy")

    ends, noise, tradeoff = map(table, ("endpoints", "noise", "tradeoff"))
    return ends, {name: table(f"trajectories/{name}") for name in ends.method.unique()}, noise, tradeoff


def content(ends: pd.DataFrame, paths: dict[str, pd.DataFrame], noise: pd.DataFrame, tradeoff: pd.DataFrame
            ) -> dict[str, Any]:  # fmt: skip
    """What toy.md.j2 shows. Raises ValueError where a method has no end point from some start."""
    places = ends.pivot(index="method", columns="start", values="x1")
    if places.isna().any(axis=None):
        lacking = ", ".join(places.index[places.isna().any(axis=1)])
        raise ValueError(
            f"endpoints.csv has no end point from some start of {lacking}; run `gcond study run toy` again"
        )
    ends = against_references(ends)
    single = ends[ends.on_front & ends.x1.abs().sub(7).abs().lt(0.1)]  # the minimum of one task alone
    within = [noise[f"{name}_theory"].between(noise[f"{name}_low"], noise[f"{name}_high"]).mean()
              for name in ("variance", "wrong")]  # fmt: skip
    return {
        "methods": dict(iter(ends.groupby("method", sort=False))),
        "starts": ends.drop_duplicates("start").sort_values("start"),
        "steps": int(ends.steps.mode().iloc[0]),
        "crept": _crept(ends, paths),
        "single": single.groupby("method").size().reindex(ends.method.unique(), fill_value=0),
        "noise": noise,
        "noise_within": within,
        "tradeoff": tradeoff,
        "agrees": AGREES,
        "near": ON_FRONT,
    }


def against_references(ends: pd.DataFrame) -> pd.DataFrame:
    """`on_front`, and of methods with a reference its `x1_ref`, `x2_ref`, `on_front_ref`, and the `distance` where both
    lie on the front: where a descent stalls in a valley is chaotic in detail."""
    ends = ends.assign(on_front=ends.to_front <= ON_FRONT)
    found = ends.merge(pd.read_csv(STUDY / "toy_references.csv"), "left", ["method", "start"], suffixes=("", "_ref"))
    distance = np.hypot(found.x1 - found.x1_ref, found.x2 - found.x2_ref)
    alike = found.on_front == found.on_front_ref
    return found.assign(distance=distance.where(alike & found.on_front), alike=alike.where(found.x1_ref.notna()))


def _crept(ends: pd.DataFrame, paths: dict[str, pd.DataFrame]) -> pd.Series:
    """By label: the largest distance along x1 between a descent's first point on the front and its end."""
    crept = {}
    for method, own in ends.groupby("method", sort=False):
        path = paths[method]
        near = [distance_to_front(*place) <= ON_FRONT for place in zip(path.x1, path.x2, strict=True)]
        arrivals = path[near].drop_duplicates("start").set_index("start").x1
        moved = (own.set_index("start").x1 - arrivals).abs()
        crept[own.label.iloc[0]] = 0.0 if moved.isna().all() else moved.max()
    return pd.Series(crept)
