"""What several processes send in a window, beside the bounds, and what a step costs against one process.

    python scripts/bench_processes.py [--processes 2] [--rounds 5] [--width 256]

Processes talk through gloo on this machine's CPU, one thread each. P is the number of parameters of a small perceptron,
m the tasks, K the micro-batches of a window, R the processes. Numbers sent are in units of P: a reduce-scatter or an
all-gather of P numbers is 1, an all-reduce, which does both, 2. `small` counts the numbers of everything else (losses,
m x m statistics). FSDP's own calls are counted by torch's CommDebugMode; `fully_shard` gathers parameters as well, for
every forward and every backward pass. A step's time is that of R processes over that of one with the same K
micro-batches, the medians of `--rounds`; where there are fewer free cores than processes it says little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.debug import CommDebugMode

from gcond.strategy import EMA, GCond, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy.processes import Processes, Replicated, ReplicatedPerRank, Sharded, SingleProcess
from gcond.strategy.resolve.graddrop import GradDrop

TASKS = {"first": 0.5, "second": 0.3, "third": 0.2}
M = len(TASKS)
STRATEGIES = {
    "Joint": lambda k: (Joint(k), Linear(), Raw()),
    "GCond sequential": lambda k: (Sequential(k), GCond(), EMA()),
    "GCond stochastic": lambda k: (Stochastic(k), GCond(), EMA()),
    "PCGrad micro-batch": lambda k: (Sequential(k, resolve_every="micro_batch"), PCGrad(), Raw()),
    "GradDrop": lambda k: (Sequential(k), GradDrop(), Raw()),
}
KINDS = {"Replicated": Replicated, "ReplicatedPerRank": ReplicatedPerRank, "Sharded": Sharded}
REFUSED = {("PCGrad micro-batch", "Sharded"), ("GradDrop", "Sharded")}
LAYERS = 3  # of the perceptron, each sharded by itself
LARGE = 0.4  # of P: a collective above that moves a gradient, or a layer of parameters
COST = {"reduce_scatter": 1, "all_gather": 1, "all_reduce": 2}


def perceptron(width: int) -> nn.Sequential:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for _ in range(LAYERS - 1):
        layers += [nn.Linear(width, width), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, M))


def losses_of(model: nn.Module) -> Any:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        outputs = model(batch)
        return {name: ((outputs - index) ** 2).mean() for index, name in enumerate(TASKS) if name in names}

    return losses


def bound(strategy: str, kind: str, k: int, size: int) -> tuple[float, str]:
    """Numbers that a window sends, in units of P, and what the bound is called."""
    if kind == "Sharded":
        if strategy == "GCond sequential":
            return k // size * (2 * M + 1), "K m / R reductions, as many gatherings, and K / R for the forward passes"
        return k // size * 3, "K / R reductions, and a gathering for each forward and backward pass"
    if kind == "ReplicatedPerRank":
        return 2, "2 P: plain data parallel"
    if strategy == "PCGrad micro-batch":
        return 2, "2 P: the mean of the results"
    if strategy == "GradDrop":
        return 2 * M, "2 m P: whole rows"
    rows = 1 if strategy == "Joint" else M
    return rows + 1, "(m + 1) P" if rows > 1 else "2 P: plain data parallel"


class Bench:
    """One strategy in this process."""

    def __init__(self, strategy: str, processes: Processes | None, k: int, width: int, sharded: bool = False) -> None:
        model = perceptron(width)
        self.size = sum(p.numel() for p in model.parameters())
        if sharded:
            mesh = init_device_mesh("cpu", (dist.get_world_size(),))
            for layer in model:
                if isinstance(layer, nn.Linear):
                    fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        self.conductor = GradientConductor(model.parameters(), TASKS, *STRATEGIES[strategy](k), processes=processes)
        self.losses = losses_of(model)
        generator = torch.Generator().manual_seed(1)
        window = [torch.randn(32, width, generator=generator) for _ in range(k)]
        self.own = [window[index] for index in self.conductor.micro_batch_indices]
        self.step()  # which task reaches which parameter is known from now on

    def step(self) -> None:
        self.conductor.step(self.own, self.losses)

    def seconds(self, rounds: int) -> float:
        times = []
        for _ in range(rounds):
            start = time.perf_counter()
            self.step()
            times.append(time.perf_counter() - start)
        return statistics.median(times)


def sent(bench: Bench) -> tuple[str, float, int]:
    """The calls of a window, the numbers they send in units of P, and the numbers in the small ones."""
    counts = bench.conductor.processes.counts
    counts.clear()
    bench.step()
    calls, moved, small = [], 0.0, 0
    for name in [key.removesuffix("/calls") for key in counts if key.endswith("/calls")]:
        number = counts[f"{name}/calls"]
        calls.append(f"{number} {name}")
        numbers = counts[f"{name}/numbers"]
        units = numbers / bench.size
        if name in COST and units > LARGE:
            whole = round(units)  # small calls of the same name are what is left
            moved += COST[name] * whole
            small += numbers - whole * bench.size
        else:
            small += numbers
    return ", ".join(sorted(calls)), moved, small


def sharded_calls(bench: Bench) -> tuple[str, float]:
    """What FSDP itself calls in a window, each time for one of three layers, and that in units of P."""
    with CommDebugMode() as mode:
        bench.step()
    found = {str(name).split(".")[-1].strip("_"): number for name, number in mode.get_comm_counts().items()}
    own = {name: number for name, number in found.items() if "reduce_scatter" in name or "gather" in name}
    return ", ".join(f"{number} {name}" for name, number in sorted(own.items())), sum(own.values()) / LAYERS


def measure(rank: int, size: int, folder: str, k: int, width: int, rounds: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=size)
    rows = []
    for strategy in STRATEGIES:
        single = Bench(strategy, SingleProcess(), k, width).seconds(rounds) if rank == 0 else 0.0
        dist.barrier()
        for kind, make in KINDS.items():
            if (strategy, kind) in REFUSED:
                rows.append((strategy, kind, "refused", "", "", "", "", ""))
                continue
            bench = Bench(strategy, make(), k, width, sharded=kind == "Sharded")
            calls, moved, small = sent(bench)
            limit, name = bound(strategy, kind, k, size)
            if kind == "Sharded":
                own, moved = sharded_calls(bench)
                calls = f"{calls}; FSDP: {own}"
            dist.barrier()
            seconds = bench.seconds(rounds)  # a step is a collective call
            ratio = f"{seconds / single:.2f}" if single else ""
            rows.append((strategy, kind, f"{moved:g}", f"{limit:g}", name, f"{small}", ratio, calls))
    if rank == 0:
        text = "\n".join("\t".join(row) for row in rows)
        Path(folder, "rows").write_text(text, encoding="utf-8")
    dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--width", type=int, default=256, help="of the perceptron; P is about twice its square")
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    k = 4 * M * options.processes
    with tempfile.TemporaryDirectory(prefix="bench-processes-") as folder:
        arguments = (options.processes, folder, k, options.width, options.rounds)
        mp.spawn(measure, arguments, nprocs=options.processes)
        rows = [line.split("\t") for line in Path(folder, "rows").read_text(encoding="utf-8").splitlines()]
    size = sum(p.numel() for p in perceptron(options.width).parameters())
    setting = f"R = {options.processes} processes, m = {M} tasks, K = {k} micro-batches, P = {size}"
    print(f"{setting}; gloo, {os.cpu_count()} cores")
    heads = [
        "strategy",
        "processes",
        "sent / P",
        "bound / P",
        "which bound",
        "small",
        "time / one",
        "calls of a window",
    ]
    widths = [max(len(row[column]) for row in [heads, *rows]) for column in range(len(heads))]
    for row in [heads, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


if __name__ == "__main__":
    main()
