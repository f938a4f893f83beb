"""GCond's zones (Table 1 of arXiv 2509.07252), sampled from the resolver: zones.csv and thresholds.csv.

    python -m gcond.study.zones [--out reproduced/table1]

Two unit gradients with cosine c meet in `GCond.resolve`, without history, for one iteration. With C its coefficients, w
the winner and l the loser, equations 5 and 6 say C_wl = -s_w c and C_lw = -s_l c: both factors are read off the answer.
Settings: those of experiment=table1. Nothing here knows an equation of Table 1.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from omegaconf import OmegaConf

from gcond.config import build
from gcond.files import OWN, write_text
from gcond.strategy import GCond
from gcond.strategy.conflict import Conflict
from gcond.sweep.plan import plan

STEP = 0.005  # of the cosine between two samples
HIGHEST = 0.2  # cosine; above the weak threshold nothing happens
BESIDE = 1e-6  # distance from a threshold at which its two sides are sampled; above the resolver's conflict margin

SETTINGS = ("logic", "remap_power", "critical", "main", "weak")


def resolvers(overrides: Iterable[str] = ()) -> list[dict[str, Any]]:
    """Settings of the resolvers to sample: each power of the smooth logic, and the step logic, which has none, once."""
    configs = [run.cfg.strategy.conductor.resolver for run in plan(["experiment=table1", *overrides])]
    smooth = [config for config in configs if config.smooth]
    return [*smooth, *[config for config in configs if not config.smooth][:1]]


def sample(config: Any, cosine: float) -> dict[str, object]:
    """What the resolver makes of two unit gradients with this cosine.

    `winner_kept`, `loser_kept`: the share of a gradient that is left of itself. `cosine_after`: of both after one
    iteration; `cosine_after_all`: after as many as are configured; both empty where a gradient vanished.
    """
    resolver: GCond = build(OmegaConf.merge(config, {"projection_max_iters": 1}))
    answer = resolver.resolve(_conflict(cosine))
    zone = next((name for name in ("weak", "main", "critical") if answer.metrics[f"zone/{name}"]), "none")
    winner = 1 if answer.metrics["wins/b"] else 0
    loser = 1 - winner
    c = answer.coefficients
    assert c is not None
    kept = c[loser, loser].item()
    return {
        "cosine": _short(cosine),
        "zone": zone,
        "angle": _short(resolver.effective_angle(cosine)) if zone != "none" and resolver.smooth else "",
        "s_w": _short(-c[winner, loser].item() / cosine) if zone != "none" else 0.0,
        "s_l": (_short(-c[loser, winner].item() / cosine) if kept else "") if zone != "none" else 0.0,
        "winner_kept": _short(c[winner, winner].item()),
        "loser_kept": _short(kept),
        "cosine_after": _cosine_after(c, cosine),
        "cosine_after_all": _cosine_after(build(config).resolve(_conflict(cosine)).coefficients, cosine),
    }


def _conflict(cosine: float) -> Conflict:
    gram = torch.tensor([[1.0, cosine], [cosine, 1.0]], dtype=torch.float64)
    ones = torch.ones(2, dtype=torch.float64)
    return Conflict(("a", "b"), gram, torch.zeros_like(gram), {}, ones, ones, 0, torch.Generator())


def _cosine_after(coefficients: torch.Tensor | None, cosine: float) -> object:
    assert coefficients is not None
    gram = coefficients @ _conflict(cosine).gram @ coefficients.T
    length = (gram[0, 0] * gram[1, 1]).clamp(min=0).sqrt().item()
    return _short(gram[0, 1].item() / length) if length > 1e-9 else ""


def _short(value: float) -> float:
    """Nine decimals, and no minus before zero."""
    return round(value, 9) + 0.0


def _rows() -> Iterator[tuple[dict[str, object], Any]]:
    for config in resolvers():
        logic = "smooth" if config.smooth else "step"
        values = (logic, config.remap_power if config.smooth else "", *config.thresholds)
        yield dict(zip(SETTINGS, values, strict=True)), config


def curves() -> list[dict[str, object]]:
    count = round((HIGHEST + 1) / STEP)
    cosines = [round(index * STEP - 1, 6) for index in range(count + 1)]
    return [settings | sample(config, cosine) for settings, config in _rows() for cosine in cosines]


def sides() -> list[dict[str, object]]:
    """Every threshold from below, at it, and from above."""
    return [
        settings | {"threshold": threshold, "side": side} | sample(config, threshold + offset)
        for settings, config in _rows()
        for threshold in config.thresholds
        for side, offset in (("below", -BESIDE), ("at", 0.0), ("above", BESIDE))
    ]


def write(folder: Path) -> None:
    """zones.csv and thresholds.csv in `folder`."""
    for name, rows in (("zones", curves()), ("thresholds", sides())):
        write_text(folder / f"{name}.csv", pd.DataFrame(rows).to_csv(index=False, lineterminator="\n"))


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OWN / "table1", help=f"default: {OWN}/table1")
    folder = parser.parse_args(arguments).out
    write(folder)
    print(f"written: {folder}/{{zones,thresholds}}.csv")


if __name__ == "__main__":
    main()
