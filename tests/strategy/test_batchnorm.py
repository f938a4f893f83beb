"""Running statistics of several processes, merged. Processes are threads here; tests of gloo: test_processes.py."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from threading import Barrier
from typing import Any

import torch
from torch import nn

from gcond import SingleProcess, merged_batchnorm

SIZE, UPDATES = 3, 4


class Threads(SingleProcess):
    """One of `SIZE` processes, of which each is a thread; `given` holds what each last gave to a sum."""

    def __init__(self, rank: int, given: list[Any], barrier: Barrier) -> None:
        super().__init__()
        self.rank, self.size, self.sums = rank, SIZE, 0
        self._given, self._barrier = given, barrier

    def sum(self, tensor: torch.Tensor) -> None:
        self.sums += 1
        self._given[self.rank] = tensor.clone()
        self._barrier.wait(10)
        tensor.copy_(sum(self._given))
        self._barrier.wait(10)


class Normed(nn.Module):
    """BatchNorm of every kind of momentum: a number, the cumulative mean, all of the last batch, none; after a start,
    so that neither values nor counts are those of new modules."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(5, momentum=momentum) for momentum in (0.1, None, 1.0, 0.0))
        self.wide = nn.BatchNorm2d(2, momentum=0.3)
        self.bare = nn.BatchNorm1d(5, track_running_stats=False)
        self.double()
        for batch in batches(2):
            self(batch)

    def forward(self, batch: torch.Tensor) -> None:
        for norm in [*self.norms, self.bare]:
            norm(batch)
        self.wide(batch.reshape(-1, 2, 1, 5))


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(8, 5, generator=generator, dtype=torch.float64) + index for index in range(count)]


def together(model: nn.Module, work: Any) -> tuple[list[nn.Module], list[int], list[str]]:
    """Each process's copy of `model` after `work(copy, rank)` inside `merged_batchnorm`; its sums; what was raised."""
    given, barrier = [None] * SIZE, Barrier(SIZE)
    copies = [deepcopy(model) for _ in range(SIZE)]
    processes = [Threads(rank, given, barrier) for rank in range(SIZE)]

    def run(rank: int) -> None:
        with merged_batchnorm(copies[rank], processes[rank]):
            work(copies[rank], rank)

    with ThreadPoolExecutor(SIZE) as pool:
        errors = [each.exception() for each in [pool.submit(run, rank) for rank in range(SIZE)]]
    return copies, [each.sums for each in processes], [str(error) for error in errors if error]


def test_merged_is_one_process_that_takes_all_in_order():
    window, expected = batches(SIZE * UPDATES), Normed()
    for batch in window:
        expected(batch)

    def work(model: nn.Module, rank: int) -> None:
        for batch in window[rank * UPDATES : (rank + 1) * UPDATES]:
            model(batch)

    copies, sums, errors = together(Normed(), work)
    assert (sums, errors) == ([1] * SIZE, [])
    for copy in copies:
        torch.testing.assert_close(copy.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-12)


def test_only_modules_that_were_updated_are_merged():
    model = Normed().eval()
    copies, sums, errors = together(model, lambda copy, rank: copy(batches(1)[0]))
    assert (sums, errors) == ([0] * SIZE, [])
    for copy in copies:
        torch.testing.assert_close(copy.state_dict(), model.state_dict(), rtol=0, atol=0)
    model.train().norms[0].eval()
    for copy in together(model, lambda copy, rank: copy(batches(1)[0]))[0]:
        torch.testing.assert_close(copy.norms[0].state_dict(), model.norms[0].state_dict(), rtol=1e-12, atol=0)
        assert copy.norms[1].num_batches_tracked == model.norms[1].num_batches_tracked + SIZE


def test_different_numbers_of_updates_are_refused_by_all():
    _, _, errors = together(Normed(), lambda model, rank: [model(batch) for batch in batches(rank + 1)])
    assert len(errors) == SIZE
    assert all("expected as many updates of a module in each of the 3 processes" in error for error in errors)


def test_synchronised_batchnorm_is_left_alone_and_so_is_all_after_an_error():
    copies, sums, errors = together(nn.SyncBatchNorm(5), lambda copy, rank: copy.num_batches_tracked.add_(rank))
    assert ([int(copy.num_batches_tracked) for copy in copies], sums, errors) == ([0, 1, 2], [0] * SIZE, [])

    def fail(model: nn.Module, rank: int) -> None:
        model(batches(1)[0])
        raise ArithmeticError("nan")

    assert together(Normed(), fail)[1:] == ([0] * SIZE, ["nan"] * SIZE)
