"""The processes of one run, as torchrun starts them; one process without it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gcond.engine import device as devices
from gcond.strategy import GradientConductor
from gcond.strategy.processes import Alone, Processes, Replicated, ReplicatedPerRank

T = TypeVar("T")
ARBITRATION = {"once": Replicated, "per_rank": ReplicatedPerRank}
PATIENCE = timedelta(hours=2)  # the others wait while the first one scores trivial predictors


class Team:
    """`main` is the one process that writes; `processes` is what the conductor needs to know.

    `per_rank`: each process has a state of its own, even where there is one only.
    """

    def __init__(self, processes: Processes, device: torch.device, per_rank: bool = False) -> None:
        self.processes, self.device, self._per_rank = processes, device, per_rank
        self.rank, self.size = processes.rank, processes.size
        self.main = self.rank == 0

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` in the main process, then in the others, which find what it has written."""
        if self.main:
            result = work()
            self._wait()
            return result
        self._wait()
        return work()

    def state_of(self, conductor: GradientConductor) -> Any:
        """What a checkpoint holds of it: with a state per process, all of them."""
        return EveryState(conductor, self) if self._per_rank else conductor

    def _wait(self) -> None:
        if self.size > 1:
            dist.barrier()

    def most(self, numbers: list[int]) -> list[int]:
        """The largest of every process's, each place by itself."""
        if self.size == 1:
            return numbers
        tensor = torch.tensor(numbers, device=self.device)
        dist.all_reduce(tensor, dist.ReduceOp.MAX)
        return tensor.tolist()

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over the processes, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor


class EveryState:
    """The state of `part` in every process, where processes differ: one checkpoint holds all of them."""

    def __init__(self, part: Any, team: Team) -> None:
        self._part, self._team = part, team

    def state_dict(self) -> dict[str, Any]:
        states: list[Any] = [self._part.state_dict()] * self._team.size
        if self._team.size > 1:
            dist.all_gather_object(states, self._part.state_dict())
        return {"processes": states}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        states = state["processes"]
        if len(states) != self._team.size:
            raise ValueError(
                f"`arbitration`: per_rank keeps a state per process; expected the {len(states)} processes that the run "
                f"began with, found {self._team.size}"
            )
        self._part.load_state_dict(states[self._team.rank])


@contextmanager
def gathered(arbitration: str, device: str, threads: int) -> Iterator[Team]:
    """The team that torchrun started, until the end of the block; a team of one where it did not.

    Raises ValueError for another `arbitration` than once and per_rank, and for a `device` that is not there.
    """
    if arbitration not in ARBITRATION:
        raise ValueError(f"`arbitration`: expected once or per_rank, found {arbitration!r}")
    picked = devices.pick(device, threads)
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Team(Alone(), picked, arbitration == "per_rank")
        return
    if picked.type == "cuda":
        picked = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(picked)
    dist.init_process_group("nccl" if picked.type == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield Team(ARBITRATION[arbitration](), picked, arbitration == "per_rank")
    finally:
        dist.destroy_process_group()
