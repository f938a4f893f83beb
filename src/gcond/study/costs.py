"""Findings of benchmarks (bench.csv): what a step costs, what memory is planned, what bfloat16 changes in one step.

The unit is a round, a plan or a step, not a seed. `claim`: the parameters of the claim in study/claims.yaml.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from gcond.study import bench
from gcond.study.judge import CONTRADICTED, FEWEST, HOLDS, region

Row = dict[str, Any]

BASELINE, SEQUENTIAL, STOCHASTIC = "baseline", "gcond_sequential", "gcond_stochastic"
PEERS = ("pcgrad", "cagrad", "gradnorm")
MB = 2**20


def told(value: float, n: int = 1) -> Row:
    """A number without interval or verdict, such as a planned size."""
    return {"n": n, "effect": float(value), "low": math.nan, "high": math.nan}


def exactly(value: float, wants: str, also: bool = True) -> Row:
    """A number with a verdict: the claim holds where it lies in `wants` and `also` is true."""
    low, high = region(wants)
    holds = low < value < high and also
    return told(value) | {"wants": wants, "verdict": HOLDS if holds else CONTRADICTED, "against": float(holds)}


def _bench(results: Path, *names: str) -> pd.DataFrame:
    rows = bench.read(results) if (results / "bench.csv").exists() else bench.table([])
    return rows[rows.bench.isin(names)]


def step_time(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Ratios of step times, of the `rows` of the claim. `wants` is one for CPU and CUDA or one for each. Rows of CUDA
    decide where they have FEWEST rounds, else those of the CPU."""
    rows = _bench(results, "table3", "table4").query("quantity == 'time' and unit == 'ratio'")
    cpu = rows.device.str.startswith("CPU")
    deciding = ~cpu & (rows.n >= FEWEST)
    deciding = deciding if deciding.any() else cpu if cpu.any() else ~cpu
    asked = {(one["strategy"], one["against"]): one.get("wants", "") for one in claim["rows"]}
    found = []
    for row, on_cpu, decides in zip(rows.itertuples(), cpu, deciding, strict=True):
        wants = asked.get((row.strategy, row.against))
        if wants is not None:
            wants = wants["cpu" if on_cpu else "cuda"] if isinstance(wants, dict) else wants
            label = ", ".join(filter(None, (f"Table {row.bench[-1]}", row.precision, row.case, row.device)))
            found.append({"label": label, "dataset": row.dataset, "model": row.model, "ours": row.strategy,
                          "theirs": row.against, "measure": "step_time", "unit": "ratio", "n": int(row.n),
                          "effect": row.value, "low": row.low, "high": row.high, "wants": wants if decides else "",
                          "how": "normal"})  # fmt: skip
    return found


def memory_against_window_and_tasks(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Planned peaks: GCond's over K, and what a third task adds; of the peers also with the graph freed."""
    found = []
    alike = ["model", "dataset", "precision", "image_size", "micro_batch"]
    for (model, dataset, *_), plans in _bench(results, "memory").query("quantity == 'peak'").groupby(alike):
        about = {"dataset": dataset, "model": model, "measure": "peak_memory", "unit": "%"}
        ours = plans[(plans.strategy == STOCHASTIC) & (plans.case == "")]
        windows = ours[ours.tasks == 2].sort_values("accumulation_steps")
        if len(windows) > 1:
            steps = ", ".join(map(str, windows.accumulation_steps))
            label = {"label": f"K = {steps}, largest against smallest", "ours": STOCHASTIC}
            spread = 100 * (windows.value.max() / windows.value.min() - 1)
            found.append(about | label | exactly(spread, claim["over_windows"]))
        grown = _third_task(ours)
        for strategy, case in product((STOCHASTIC, *PEERS), ("", "graph kept")):
            own = _third_task(plans[(plans.strategy == strategy) & (plans.case == case)])
            if own is None or grown is None:
                continue
            percent, added = own
            decides = strategy != STOCHASTIC and case
            label = {"label": f"a third task, {case or 'graph freed'}", "ours": strategy}
            grows = exactly(percent, claim["third_task"], added > grown[1]) if decides else told(percent)
            found += [about | label | grows, about | label | {"unit": "MB"} | told(added)]
    return found


def _third_task(plans: pd.DataFrame) -> tuple[float, float] | None:
    """What it adds to the peak at the largest K: percent, and MB."""
    peaks = plans.sort_values("accumulation_steps").groupby("tasks").value.last()
    return (100 * (peaks[3] / peaks[2] - 1), peaks[3] - peaks[2]) if {2, 3} <= set(peaks.index) else None


def base_in_16_gb(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Planned: over data, image sizes, precisions and how long the graph lives, the case that is best for the claim."""
    plans = _bench(results, "memory").query("model == 'convnextv2_base' and case.str.startswith('16GB')")
    ours = plans[(plans.strategy == STOCHASTIC) & (plans.quantity == "largest_micro_batch")].value
    peers = plans[plans.strategy.isin(["pcgrad", "cagrad"]) & ~plans.case.str.contains("bfloat16")]
    peaks = peers[peers.quantity == "peak_at_1"].value
    if ours.empty or peaks.empty:
        return []
    about = {"label": "16 GB", "model": "convnextv2_base"}
    largest = {"ours": STOCHASTIC, "measure": "largest_micro_batch", "unit": "images"}
    peak = {"ours": "pcgrad, cagrad", "measure": "peak_at_micro_batch_1", "unit": "GB"}
    return [
        about | largest | exactly(ours.fillna(0).max(), claim["micro_batch"]),
        about | peak | exactly(peaks.max() * MB / 1e9, claim["peak"]),
    ]


def bfloat16_in_one_step(runs: pd.DataFrame, results: Path, claim: Mapping[str, Any]) -> list[Row]:
    """Median distance of the written gradient from float32's, and steps with the same decisions, in percent."""
    found = []
    for row in _bench(results, "precision").itertuples():
        mode, form = row.case.split(" mode, ", 1)
        if row.quantity in ("written_distance", "steps_decided_as_in_float32") and form != "bfloat16 reference":
            share = row.value if row.quantity == "written_distance" else row.value / row.n
            about = {"label": form, "dataset": row.dataset, "ours": row.strategy, "mode": mode}
            found.append(about | {"measure": row.quantity, "unit": "share"} | told(100 * share, int(row.n)))
    return found
