"""Running statistics of several processes, merged. Processes are threads here; tests of gloo: test_processes.py."""

from __future__ import annotations

from copy import deepcopy
from threading import Barrier, Thread

import torch
from torch import nn

from gcond.strategy.batchnorm import merged_batchnorm
from gcond.strategy.processes import SingleProcess

SIZE, UPDATES = 3, 4


class Threads(SingleProcess):
    """One of `SIZE` processes, of which each is a thread; `told` holds what each last gave to a sum."""

    def __init__(self, rank: int, told: list, barrier: Barrier) -> None:
        super().__init__()
        self.rank, self.size = rank, SIZE
        self._told, self._barrier = told, barrier
        self.sums = 0

    def sum(self, tensor: torch.Tensor) -> None:
        self.sums += 1
        self._told[self.rank] = tensor.clone()
        self._barrier.wait(10)
        tensor.copy_(sum(self._told))
        self._barrier.wait(10)


class Normed(nn.Module):
    """BatchNorm of every kind of momentum: a number, the cumulative mean, all of the last batch, none."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm1d(5, momentum=momentum) for momentum in (0.1, None, 1.0, 0.0))
        self.wide = nn.BatchNorm2d(2, momentum=0.3)
        self.bare = nn.BatchNorm1d(5, track_running_stats=False)
        self.double()

    def forward(self, batch: torch.Tensor) -> None:
        for norm in [*self.norms, self.bare]:
            norm(batch)
        self.wide(batch.reshape(-1, 2, 1, 5))


def batches(count: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(8, 5, generator=generator, dtype=torch.float64) + index for index in range(count)]


def warm() -> Normed:
    """Statistics that have moved before, so that neither their values nor their counts are those of the start."""
    model = Normed()
    for batch in batches(2):
        model(batch)
    return model


def together(model: nn.Module, work) -> tuple[list[nn.Module], list[Threads], list[Exception]]:
    """Each process's copy of `model` after `work(copy, rank)` inside `merged_batchnorm`."""
    told, barrier, errors = [None] * SIZE, Barrier(SIZE), []
    copies = [deepcopy(model) for _ in range(SIZE)]
    processes = [Threads(rank, told, barrier) for rank in range(SIZE)]

    def run(rank: int) -> None:
        try:
            with merged_batchnorm(copies[rank], processes[rank]):
                work(copies[rank], rank)
        except Exception as error:
            errors.append(error)

    threads = [Thread(target=run, args=(rank,)) for rank in range(SIZE)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return copies, processes, errors


def test_merged_is_one_process_that_takes_all_in_order():
    window = batches(SIZE * UPDATES)

    def work(model, rank):
        for batch in window[rank * UPDATES : (rank + 1) * UPDATES]:
            model(batch)

    expected = warm()
    for batch in window:
        expected(batch)
    copies, processes, errors = together(warm(), work)
    assert not errors
    for copy in copies:
        torch.testing.assert_close(copy.state_dict(), expected.state_dict(), rtol=1e-12, atol=1e-12)
    assert [each.sums for each in processes] == [1] * SIZE


def test_only_modules_that_were_updated_are_merged():
    model = warm().eval()
    copies, processes, errors = together(model, lambda copy, rank: copy(batches(1)[0]))
    assert not errors
    assert [each.sums for each in processes] == [0] * SIZE
    for copy in copies:
        torch.testing.assert_close(copy.state_dict(), model.state_dict(), rtol=0, atol=0)
    model.train().norms[0].eval()
    copies, _, errors = together(model, lambda copy, rank: copy(batches(1)[0]))
    assert not errors
    for copy in copies:
        torch.testing.assert_close(copy.norms[0].running_mean, model.norms[0].running_mean)
        assert copy.norms[0].num_batches_tracked == model.norms[0].num_batches_tracked
        assert copy.norms[1].num_batches_tracked == model.norms[1].num_batches_tracked + SIZE


def test_different_numbers_of_updates_are_refused_by_all():
    def work(model, rank):
        for batch in batches(rank + 1):
            model(batch)

    _, _, errors = together(warm(), work)
    assert len(errors) == SIZE
    assert all("expected as many updates of a module in each of the 3 processes" in str(error) for error in errors)


def test_synchronised_batchnorm_is_left_alone_and_so_is_all_after_an_error():
    def diverge(copy, rank):
        copy.running_mean.fill_(rank)
        copy.num_batches_tracked.add_(1)

    copies, processes, errors = together(nn.SyncBatchNorm(5), diverge)
    assert not errors
    assert [copy.running_mean[0].item() for copy in copies] == [0, 1, 2]

    def fail(model, rank):
        model(batches(1)[0])
        raise ArithmeticError("nan")

    _, failed, errors = together(warm(), fail)
    assert [str(error) for error in errors] == ["nan"] * SIZE
    assert [each.sums for each in [*processes, *failed]] == [0] * (2 * SIZE)


def test_one_process_is_as_without():
    model, expected = warm(), warm()
    with merged_batchnorm(model, SingleProcess()):
        model(batches(1)[0])
    expected(batches(1)[0])
    torch.testing.assert_close(model.state_dict(), expected.state_dict(), rtol=0, atol=0)
