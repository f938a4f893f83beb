"""GCond's zones (Table 1 of arXiv 2509.07252), sampled from the resolver: zones.csv and thresholds.csv.

Two unit gradients with cosine c meet in `GCond.resolve`, without history, for one iteration. With C its coefficients, w
the winner and l the loser, equations 5 and 6 say C_wl = -s_w c and C_lw = -s_l c: both factors are read off the answer.
Settings: those of experiment=table1. Nothing here knows an equation of Table 1.
"""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from gcond.config import build
from gcond.files import write_text
from gcond.strategy import GCond
from gcond.strategy.conflict import Conflict
from gcond.sweep.plan import plan

STEP = 0.005  # of the cosine between two samples
HIGHEST = 0.2  # cosine; above the weak threshold nothing happens
SIDES = {"below": -1e-6, "at": 0.0, "above": 1e-6}  # of a threshold; wider than the resolver's conflict margin


def sample(config: Any, cosine: float) -> dict[str, object]:
    """What the resolver makes of two unit gradients with this cosine in one iteration.

    `loser_kept`: the share of the loser that is left of itself. `cosine_after`: of both; empty where the loser is gone.
    """
    resolver: GCond = build(OmegaConf.merge(config, {"projection_max_iters": 1}))
    gram, ones = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    answer = resolver.resolve(Conflict(("a", "b"), gram, torch.zeros_like(gram), {}, ones, ones, 0, torch.Generator()))
    zone = next((name for name in ("weak", "main", "critical") if answer.metrics[f"zone/{name}"]), "none")
    winner = 1 if answer.metrics["wins/b"] else 0
    loser = 1 - winner
    c: Any = answer.coefficients
    after = c @ gram @ c.T
    length = (after[0, 0] * after[1, 1]).clamp(min=0).sqrt().item()
    row = {"cosine": _short(cosine), "zone": zone, "angle": "", "s_w": 0.0, "s_l": 0.0}
    row |= {"loser_kept": _short(c[loser, loser].item())}
    row |= {"cosine_after": _short(after[0, 1].item() / length) if length > 1e-9 else ""}
    if zone != "none":
        row["angle"] = _short(resolver.effective_angle(cosine)) if resolver.smooth else ""
        row["s_w"] = _short(-c[winner, loser].item() / cosine)
        row["s_l"] = _short(-c[loser, winner].item() / cosine) if row["loser_kept"] else ""
    return row


def _short(value: float) -> float:
    """Round to nine decimals, without a minus before zero."""
    return round(value, 9) + 0.0


def write(folder: Path) -> None:
    """zones.csv, over all cosines, and thresholds.csv, every threshold from below, at it and from above, in `folder`.

    Each power of the smooth logic is sampled, and the step logic, which has none, once.
    """
    configs = [run.cfg.strategy.conductor.resolver for run in plan(["experiment=table1"])]
    smooth = [config for config in configs if config.smooth]
    step = [config for config in configs if not config.smooth][:1]
    cosines = [round(index * STEP - 1, 6) for index in range(round((HIGHEST + 1) / STEP) + 1)]
    zones, sides = [], []
    for config in [*smooth, *step]:
        about = {
            "logic": "smooth" if config.smooth else "step",
            "remap_power": config.remap_power if config.smooth else "",
        }
        about |= zip(("critical", "main", "weak"), config.thresholds, strict=True)
        zones += [about | sample(config, cosine) for cosine in cosines]
        for threshold, (side, offset) in product(config.thresholds, SIDES.items()):
            sides.append(about | {"threshold": threshold, "side": side} | sample(config, threshold + offset))
    for name, rows in (("zones", zones), ("thresholds", sides)):
        write_text(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))
