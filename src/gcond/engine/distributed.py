"""The processes of one run, as torchrun starts them; one process without it.

No process waits for ever. Time limits: COMING to start and to compare settings, WORKING in a step, FIRST while rank 0
prepares files for all. The error names the ranks that did not come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gcond.engine import device as devices
from gcond.engine.process import processes as started
from gcond.engine.process import rank
from gcond.engine.run_folder import flat
from gcond.strategy import GradientConductor
from gcond.strategy.processes import Processes, Replicated, ReplicatedPerRank, SingleProcess, require_same

T = TypeVar("T")
ARBITRATION = {"once": Replicated, "per_rank": ReplicatedPerRank}
COMING = timedelta(minutes=10)
WORKING = timedelta(minutes=30)
FIRST = timedelta(hours=2)
FAILED = "failed"
ROLL_CALL = timedelta(minutes=1)  # for the others to notice, too, that somebody is missing
ADVICE = (
    "if it has ended, its own output says why; one that found the run finished has not begun, so `runs` must be one "
    "folder for all; one that is stopped must be ended"
)


class Lost(RuntimeError):
    """Another process did not come, or has failed."""


class Meetings:
    """Where processes leave messages for each other in `store`, and wait for everybody's."""

    def __init__(self, store: dist.Store, rank: int, size: int) -> None:
        self._store, self._rank, self._size, self._held = store, rank, size, 0

    def meet(self, told: str, patience: timedelta) -> list[str]:
        """What every process tells at this place; Lost names those that failed or have not come."""
        self._held += 1
        if missing := self._missing(self._held, told, patience):
            raise Lost(f"process {self._rank}: waited {patience} for {self._named(missing)}; {ADVICE}")
        everything = [self._store.get(key).decode() for key in self._keys(self._held)]
        if failed := [each for each, found in enumerate(everything) if found == FAILED]:
            raise Lost(f"process {self._rank}: {self._named(failed)} failed, see its output")
        return everything

    @contextmanager
    def named(self) -> Iterator[None]:
        """Where a collective call inside ends without an answer, find out who is missing; Lost names it.

        Where this process fails, the others hear of it where they meet next.
        """
        try:
            yield
        except BaseException as error:
            with suppress(RuntimeError):  # the process that keeps the store may be gone
                self._store.set(self._keys(self._held + 1)[self._rank], FAILED)
            collective = isinstance(error, RuntimeError) and (isinstance(error, dist.DistError) or "gloo" in str(error))
            if not collective or isinstance(error, Lost):
                raise
            missing = self._missing(-1, "", ROLL_CALL)
            what = f"{self._named(missing)} does not answer" if missing else "all answer, but not to the same call"
            raise Lost(f"process {self._rank}: {what} ({error}); {ADVICE}") from error

    def _missing(self, place: int, told: str, patience: timedelta) -> list[int]:
        """Which processes have told nothing at this place in time."""
        keys = self._keys(place)
        try:
            self._store.set(keys[self._rank], told)
            self._store.wait(keys, patience)
        except RuntimeError:
            try:
                return [each for each, key in enumerate(keys) if not self._store.check([key])]
            except RuntimeError:
                return [0]  # which keeps the store, where torchrun does not
        return []

    def _keys(self, place: int) -> list[str]:
        return [f"{place}/{each}" for each in range(self._size)]

    def _named(self, ranks: list[int]) -> str:
        return f"process {' and '.join(map(str, ranks))} of {self._size}"


class World:
    """`main` is the one process that writes; `processes` is what the conductor needs to know.

    `per_rank`: each process has a state of its own, even where there is one only. One alone has no `meetings`.
    """

    def __init__(
        self, processes: Processes, device: torch.device, per_rank: bool = False, meetings: Meetings | None = None
    ) -> None:
        self.processes, self.device, self._per_rank, self._meetings = processes, device, per_rank, meetings
        self.rank, self.size = processes.rank, processes.size
        self.main = self.rank == 0

    def compare(self, **facts: Any) -> None:
        """Raise ValueError, in every process, where one has another value for a fact; facts may be nested."""
        if self._meetings is not None:
            require_same([json.loads(told) for told in self._meetings.meet(json.dumps(flat(facts)), COMING)])

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` in the main process, then in the others, which find what it has written."""
        if self._meetings is not None and not self.main:
            self._meetings.meet("", FIRST)
        result = work()
        if self._meetings is not None and self.main:
            self._meetings.meet("", COMING)
        return result

    def state_of(self, conductor: GradientConductor) -> Any:
        """What a checkpoint holds of it: with a state per process, all of them."""
        return EveryState(conductor, self) if self._per_rank else conductor

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

    def __init__(self, part: Any, team: World) -> None:
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
def gathered(arbitration: str, device: str, threads: int) -> Iterator[World]:
    """The team that torchrun started, until the end of the block; a team of one where it did not.

    Raises ValueError for a `device` that is not there; Lost where another process does not come, or not any more.
    """
    picked = devices.pick(device, threads)
    if started() == 1:
        yield World(SingleProcess(), picked, arbitration == "per_rank")
        return
    if picked.type == "cuda":
        picked = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
        torch.cuda.set_device(picked)
    store = dist.PrefixStore("gcond", _rendezvous())
    meetings = Meetings(store, rank(), started())
    meetings.meet("", COMING)
    backend = "nccl" if picked.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank(), world_size=started(), timeout=WORKING)
    try:
        with meetings.named():
            yield World(ARBITRATION[arbitration](), picked, arbitration == "per_rank", meetings)
    finally:
        dist.destroy_process_group()


def _rendezvous() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://", timeout=COMING))
    return store
