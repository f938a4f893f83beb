"""What several processes ask of torch.distributed in one window: counted below our code, operation by operation."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from strategy.ranks import PRELOADED, TIMEOUT
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils._python_dispatch import TorchDispatchMode

from gcond.strategy import EMA, GCond, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy.processes import Replicated, ReplicatedPerRank, Sharded
from gcond.strategy.resolve.graddrop import GradDrop

TASKS = {"first": 0.5, "second": 0.3, "third": 0.2}
K, WIDTH = 12, 25  # the last parameters' number, 1378, is one that 4 does not divide
CASES: dict[str, tuple[Any, Any]] = {
    "joint": (lambda: (Joint(K), Linear(), Raw()), Replicated),
    "window": (lambda: (Sequential(K), GCond(), EMA()), Replicated),
    "window, stochastic": (lambda: (Stochastic(K), GCond(), EMA()), Replicated),
    "micro-batch": (lambda: (Sequential(K, resolve_every="micro_batch"), PCGrad(), Raw()), Replicated),
    "coordinates": (lambda: (Sequential(K), GradDrop(), Raw()), Replicated),
    "per rank": (lambda: (Sequential(K), GCond(), EMA()), ReplicatedPerRank),
    "FSDP2, one row": (lambda: (Joint(K), Linear(), Raw()), Sharded),
    "FSDP2": (lambda: (Sequential(K), GCond(), EMA()), Sharded),
}


class Asked(TorchDispatchMode):
    """Numbers of the whole in every collective, by its name and how often."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = str(func.overloadpacket)
        if packet.startswith("c10d."):
            name, size = _collective(packet, args)
            self.counts[f"{name}/calls"] += 1
            self.counts[f"{name}/numbers"] += size
        return func(*args, **(kwargs or {}))


def _collective(packet: str, args: Any) -> tuple[str, int]:
    if packet == "c10d._reduce_scatter_base_":
        return "reduce_scatter", args[1].numel()
    if packet == "c10d._allgather_base_":
        return "all_gather", args[0].numel()
    if packet == "c10d.allreduce_":
        return "all_reduce", sum(tensor.numel() for tensor in args[0])
    return packet, 0


def perceptron() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, 3))


def groups(model: nn.Sequential) -> dict[str, Any]:
    return {"body": [*model[0].parameters(), *model[2].parameters()], "head": model[4].parameters()}


def losses_of(model: nn.Module) -> Any:
    def losses(batch: Tensor, names: Any) -> dict[str, Tensor]:
        outputs = model(batch)
        return {name: ((outputs - index) ** 2).mean() for index, name in enumerate(TASKS) if name in names}

    return losses


def window(name: str) -> dict[str, Any]:
    """What the second window of a case asks for, and what the conductor's own counter says of it."""
    parts, processes = CASES[name]
    model = perceptron()
    if processes is Sharded:
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        for layer in (model[0], model[2], model[4]):
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    conductor = GradientConductor(groups(model), TASKS, *parts(), processes=processes())
    losses = losses_of(model)
    for _ in range(2):
        conductor.processes.counts.clear()
        with Asked() as asked:
            conductor.step([torch.randn(2, WIDTH) for _ in conductor.micro_batch_indices], losses)
    return {"asked": dict(asked.counts), "told": dict(conductor.processes.counts)}


def started(size: int, folder: Path) -> list[dict[str, Any]]:
    """What each of `size` new processes counted, by case."""
    multiprocessing.get_context("forkserver").set_forkserver_preload(PRELOADED)
    mp.start_processes(_work, (size, folder), nprocs=size, start_method="forkserver")
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(size)]


def _work(rank: int, size: int, folder: Path) -> None:
    torch.set_num_threads(1)
    rendezvous = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=size, timeout=TIMEOUT)
    try:
        torch.save({name: window(name) for name in CASES}, folder / f"{rank}.pt")
        dist.barrier()
    finally:
        dist.destroy_process_group()
