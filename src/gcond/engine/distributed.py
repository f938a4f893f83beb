"""The processes of one run, as torchrun starts them; one process without it.

No process waits for another for ever: COMING for one that is yet to begin or to compare what it has, WORKING in a step,
FIRST while the first one does what the others then find. The error names those that did not come.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from gcond.engine import device as devices
from gcond.engine.process import processes as started
from gcond.engine.process import rank
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


class World:
    """`main` is the one process that writes; `processes` is what the conductor needs to know.

    `per_rank`: each process has a state of its own, even where there is one only. `store` is where processes leave
    messages for each other; none is needed by one alone.
    """

    def __init__(
        self, processes: Processes, device: torch.device, per_rank: bool = False, store: dist.Store | None = None
    ) -> None:
        self.processes, self.device, self._per_rank = processes, device, per_rank
        self.rank, self.size = processes.rank, processes.size
        self.main = self.rank == 0
        self._store = store
        self._meetings = 0

    def compare(self, **facts: Any) -> None:
        """Raise ValueError, in every process, where one has another value for a fact; facts may be nested."""
        if self._store is not None:
            require_same([json.loads(told) for told in self._meet(json.dumps(dict(_flat(facts))), COMING)])

    def main_first(self, work: Callable[[], T]) -> T:
        """`work` in the main process, then in the others, which find what it has written."""
        if self._store is not None and not self.main:
            self._meet("", FIRST)
        result = work()
        if self._store is not None and self.main:
            self._meet("", COMING)
        return result

    def leave(self) -> None:
        """Tell the others, where they meet next, that this process has failed."""
        if self._store is not None:
            self._store.set(_key(f"meeting {self._meetings + 1}", self.rank), FAILED)

    def _meet(self, told: str, patience: timedelta) -> list[str]:
        """What every process tells at this place; Lost names those that failed or have not come."""
        assert self._store is not None
        self._meetings += 1
        return _meet(self._store, f"meeting {self._meetings}", self.rank, self.size, told, patience)

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
    _meet(store, "beginning", rank(), started(), "", COMING)
    backend = "nccl" if picked.type == "cuda" else "gloo"
    dist.init_process_group(backend, store=store, rank=rank(), world_size=started(), timeout=WORKING)
    team = World(ARBITRATION[arbitration](), picked, arbitration == "per_rank", store)
    try:
        with _naming_the_lost(store):
            yield team
    except BaseException:
        team.leave()
        raise
    finally:
        dist.destroy_process_group()


def _rendezvous() -> dist.Store:
    store, _, _ = next(dist.rendezvous("env://", timeout=COMING))
    return store


def _meet(store: dist.Store, place: str, rank: int, size: int, told: str, patience: timedelta) -> list[str]:
    missing = _missing(store, place, rank, size, told, patience)
    if missing:
        raise Lost(f"process {rank}: waited {patience} ({place}) for {_named(missing, size)}; {ADVICE}")
    everything = [store.get(_key(place, each)).decode() for each in range(size)]
    failed = [each for each, found in enumerate(everything) if found == FAILED]
    if failed:
        raise Lost(f"process {rank}: {_named(failed, size)} failed, see its output")
    return everything


def _missing(store: dist.Store, place: str, rank: int, size: int, told: str, patience: timedelta) -> list[int]:
    """Which processes have told nothing at this place in time."""
    try:
        store.set(_key(place, rank), told)
        store.wait([_key(place, each) for each in range(size)], patience)
    except RuntimeError:
        try:
            return [each for each in range(size) if not store.check([_key(place, each)])]
        except RuntimeError:
            return [0]  # which keeps the store, where torchrun does not
    return []


def _key(place: str, rank: int) -> str:
    return f"{place}/{rank}"


def _named(ranks: list[int], size: int) -> str:
    return f"process {' and '.join(map(str, ranks))} of {size}"


@contextmanager
def _naming_the_lost(store: dist.Store) -> Iterator[None]:
    """Where a collective call ends without an answer, find out who is missing."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, Lost) or not (isinstance(error, dist.DistError) or "gloo" in str(error)):
            raise
        missing = _missing(store, "roll call", rank(), started(), "", ROLL_CALL)
        what = f"{_named(missing, started())} does not answer" if missing else "all answer, but not to the same call"
        raise Lost(f"process {rank()}: {what} ({error}); {ADVICE}") from error


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """{"config": {"seed": 1}} as ("config.seed", 1)."""
    for name, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", value
