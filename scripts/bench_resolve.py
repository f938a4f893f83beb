"""What the arbitration alone costs, in passes over the task gradients.

    python scripts/bench_resolve.py [--parameters 3e6,3e7,9e7] [--tasks 2,3,5,10] [--rounds 7] [--device cpu|cuda]
    [--out results/bench/resolve.csv]

J [m, P] is random, with cosines near -.3 between every other pair of tasks. One pass is a copy of J into a buffer that
is there already, timed in the same rounds. Timed against it: a whole step of the conductor with rows that are filled
already (statistics, solver, combination, momentum, and what stands in `p.grad`), eager and with `compiled=True`; its
parts; the float64 products of the statistics alone, on numbers that are in the cache (what no order of passes can
save); GCond on whole vectors (`naive_gcond.py`); TorchJD's PCGrad, CAGrad and UPGrad on the same J; ours, and GradDrop.
The solver's own time is on m x m numbers; it is given in seconds.

All of it is in memory together, COPIES times J; a case without so much room is left out, and the page names it. On CUDA
the synchronisations and host-device copies of one step are counted by PyTorch's profiler. A finished case is
left out when the script is started again with the same `--out`, commit and device.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from naive_gcond import NaiveGCond
from torch import Tensor
from torchjd import aggregation

from gcond.engine.device import commit, describe
from gcond.files import write_text
from gcond.report.records import frame, read_csv, write_csv
from gcond.report.resolve import COLUMNS, COPIES, KEY, PARAMETERS, PASS, PRODUCTS, TASKS, page
from gcond.strategy import EMA, CAGrad, GCond, GradientConductor, PCGrad, Raw
from gcond.strategy.estimate import Sequential
from gcond.strategy.resolve.graddrop import GradDrop
from gcond.strategy.resolve.torchjd import TorchJD
from gcond.timing import Ratio, interleaved, versions

CONFLICT = 0.65  # share of the common direction: cosine -a^2 / (1 + a^2) = -.3 between tasks of unlike sign
SEEDS = 3
IN_CACHE = 1 << 13  # numbers of a row that are multiplied again and again


class Filled(Sequential):
    """An estimator whose rows hold the task gradients already."""

    def gather(self, gradients: Any, window: Any) -> Iterator[Tensor]:
        gradients.reached = lambda: torch.ones(len(gradients.rows), len(gradients.parameters), dtype=torch.bool)
        yield torch.ones(len(window.tasks), dtype=torch.float64, device=gradients.device)


class Arbitration:
    """A conductor's step without forward and backward passes."""

    def __init__(self, rows: Tensor, resolver: Any, update: Any, **options: Any) -> None:
        weight = torch.nn.Parameter(torch.zeros(rows.shape[1], device=rows.device))
        tasks = {f"t{i}": 1.0 for i in range(len(rows))}
        self._rows = rows
        self.conductor = GradientConductor([weight], tasks, Filled(1), resolver, update, **options)

    def fill(self) -> None:
        self.conductor.gradients.rows.copy_(self._rows)

    def step(self) -> None:
        self.conductor.step([None], lambda batch, names: {})


class Solver:
    """Times what happens on m x m numbers inside another resolver."""

    def __init__(self, resolver: Any) -> None:
        self._resolver, self.taken = resolver, []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._resolver, name)

    def resolve(self, conflict: Any) -> Any:
        start = time.process_time()
        resolution = self._resolver.resolve(conflict)
        self.taken.append(time.process_time() - start)
        return resolution


def task_gradients(tasks: int, parameters: int, device: torch.device) -> Tensor:
    generator = torch.Generator(device).manual_seed(SEEDS)
    rows = torch.randn(tasks, parameters, generator=generator, device=device)
    common = torch.randn(parameters, generator=generator, device=device)
    for index, row in enumerate(rows):
        row.add_(common, alpha=CONFLICT if index % 2 else -CONFLICT)
    return rows


def works_of(rows: Tensor) -> tuple[dict[str, Callable[[], object]], dict[str, Arbitration], Solver]:
    """Everything that takes a turn, and those among them whose rows have to be filled first."""
    m = len(rows)
    buffer = torch.empty_like(rows)
    solver = Solver(GCond())
    arbitrations = {
        "GCond": Arbitration(rows, solver, EMA()),
        "GCond, compiled": Arbitration(rows, GCond(), EMA(), compiled=True),
        "GCond, bfloat16 reference": Arbitration(rows, GCond(), EMA(), reference_dtype="bfloat16"),
        "PCGrad": Arbitration(rows, PCGrad(), Raw()),
        "CAGrad": Arbitration(rows, CAGrad(), Raw()),
        "UPGrad": Arbitration(rows, TorchJD("UPGrad"), Raw()),
        "GradDrop": Arbitration(rows, GradDrop(), Raw()),
    }
    parts = arbitrations["GCond"].conductor
    compiled = arbitrations["GCond, compiled"].conductor.gradients
    weights, momentum = torch.rand(m), EMA()
    out = torch.empty_like(rows[0])
    near = torch.rand(2 * m, IN_CACHE, dtype=torch.float64, device=rows.device)
    sums = torch.zeros(m, 2 * m, dtype=torch.float64, device=rows.device)
    naive = NaiveGCond()

    def multiply() -> None:
        for _ in range(0, rows.shape[1], IN_CACHE):
            sums.addmm_(near[:m], near.T)

    works: dict[str, Callable[[], object]] = {
        PASS: lambda: buffer.copy_(rows),
        **{name: arbitration.step for name, arbitration in arbitrations.items()},
        "- statistics": lambda: parts.gradients.products(rows),
        "- statistics, compiled": lambda: compiled.products(rows),
        PRODUCTS: multiply,
        "- combination": lambda: parts.gradients.combine(weights, weights, out),
        "- momentum": lambda: momentum.apply(out, parts.gradients),
        "emptying the rows": lambda: buffer.zero_(),
        "GCond on whole vectors": lambda: naive.step(rows),
    }
    for name in ("PCGrad", "CAGrad", "UPGrad"):
        made = getattr(aggregation, name)(**({"c": 0.5} if name == "CAGrad" else {}))
        works[f"TorchJD's {name}"] = lambda made=made: made(rows)
    return works, arbitrations, solver


def measure(tasks: int, parameters: int, rounds: int, device: torch.device) -> pd.DataFrame:
    """One row for everything that took a turn."""
    rows = task_gradients(tasks, parameters, device)
    works, arbitrations, solver = works_of(rows)

    def fill(name: str) -> None:
        if name in arbitrations:
            arbitrations[name].fill()

    with torch.no_grad():
        times = interleaved(works, rounds, device, prepare=fill)
    counts = counted(arbitrations) if device.type == "cuda" else {}
    common = {
        "device": describe(device),
        "parameters": parameters,
        "tasks": tasks,
        "rounds": rounds,
        "versions": versions(("torch", "torchjd")),
        "commit": commit()[0],
    }
    found = []
    for name, taken in times.items():
        ratio = Ratio.of(taken, times[PASS])
        found.append(
            common
            | {"work": name, "seconds": float(np.median(taken))}
            | {"passes": ratio.median, "low": ratio.low, "high": ratio.high}
            | {"solver_seconds": float(np.median(solver.taken)) if name == "GCond" else None}
            | counts.get(name, {})
        )
    return frame(found, COLUMNS)


def free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    known = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    return int(known["MemAvailable"].split()[0]) * 1024


def counted(arbitrations: dict[str, Arbitration]) -> dict[str, dict[str, int]]:
    """What one step of each asks of the CUDA runtime."""
    found = {}
    for name, arbitration in arbitrations.items():
        arbitration.fill()
        torch.cuda.synchronize()
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as profile:
            arbitration.step()
        events = Counter(event.name for event in profile.events())
        found[name] = {
            "synchronisations": events["cudaStreamSynchronize"],
            "to_host": sum(number for event, number in events.items() if "Memcpy DtoH" in event),
            "to_device": sum(number for event, number in events.items() if "Memcpy HtoD" in event),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--parameters", default=",".join(map(str, PARAMETERS)), help="P")
    parser.add_argument("--tasks", default=",".join(map(str, TASKS)), help="m")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="torch")
    cases = [(int(m), int(float(p))) for p in arguments.parameters.split(",") for m in arguments.tasks.split(",")]
    table = frame([], COLUMNS)
    if arguments.out and arguments.out.exists():
        table = read_csv(arguments.out, COLUMNS, KEY)
    for tasks, parameters in cases:
        here = table[(table.tasks == tasks) & (table.parameters == parameters) & (table.device == describe(device))]
        if len(here) and set(here["commit"]) == {commit()[0]} and here.rounds.min() >= arguments.rounds:
            print(f"m = {tasks}, P = {parameters:,}: measured already")
            continue
        needed, free = COPIES * tasks * parameters * 4, free_bytes(device)
        if needed > free:
            print(
                f"m = {tasks}, P = {parameters:,}: left out, needs {needed / 1e9:.0f} GB, {free / 1e9:.0f} GB are free"
            )
            continue
        print(f"m = {tasks}, P = {parameters:,}")
        rows = measure(tasks, parameters, arguments.rounds, device)
        table = pd.concat([table, rows]).drop_duplicates(KEY, keep="last")
        gc.collect()
        if arguments.out:
            write_csv(arguments.out, table, KEY)
            write_text(arguments.out.with_suffix(".md"), page(table))
    print(page(table))


if __name__ == "__main__":
    main()
