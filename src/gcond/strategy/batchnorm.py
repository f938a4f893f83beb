"""BatchNorm's running statistics over several processes, merged once per window.

Letters: R processes, n updates of a window in each, mu momentum, r_0 a statistic before the window.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from gcond.strategy.arguments import expect
from gcond.strategy.processes import Processes


@contextmanager
def merged_batchnorm(model: nn.Module, processes: Processes) -> Iterator[None]:
    """Give every process, at the end of the block, the statistics of one that took all micro-batches.

    It takes those of the first process, then of the second, and so on. That is one process's own order where each holds
    a contiguous part of the window (Joint, and Sequential that resolves windows); else the two are equal but for the
    order of micro-batches. Before the block, statistics must be the same everywhere. A statistic r_k of process k
    stands for the part r_k - (1 - mu)^n r_0 of the window, which the (R - 1 - k) n later updates shrink. With
    momentum=None, the cumulative mean, parts count by their number.

    One all-reduce for the whole model; none where no module was updated (evaluation mode, statistics put back). If the
    block raises, nothing is merged. SyncBatchNorm is left alone: it has merged every batch itself.

    Raises:
        ValueError: processes made different numbers of updates.
    """
    modules = _modules(model) if processes.size > 1 else []
    before = [_statistics(module) for module in modules]
    counts = _counts(modules)
    yield
    updates = [after - count for after, count in zip(_counts(modules), counts, strict=True)]
    if not any(updates):
        return
    size = processes.size
    parts = [
        _weigh(module, start, count, n, processes)
        for module, start, count, n in zip(modules, before, counts, updates, strict=True)
    ]
    numbers = torch.tensor(updates, dtype=torch.float64, device=parts[0].device)
    packed = torch.cat([numbers, numbers**2, *parts])
    processes.sum(packed)
    total, squares, *merged = torch.split(packed, [len(modules), len(modules), *map(len, parts)])
    alike = torch.equal(squares * size, total**2)  # true of equal numbers alone
    every = f"as many updates of a module in each of the {size} processes"
    expect(alike, "model", every, f"{updates} of its BatchNorm modules in process {processes.rank}")
    for module, statistics, count, n in zip(modules, merged, counts, updates, strict=True):
        mean, variance = statistics.chunk(2)
        module.running_mean.copy_(mean)
        module.running_var.copy_(variance)
        module.num_batches_tracked.fill_(count + n * size)


def _modules(model: nn.Module) -> list[Any]:
    found = [module for module in model.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    return [module for module in found if not isinstance(module, nn.SyncBatchNorm)]


def _statistics(module: Any) -> Tensor:
    """Running mean and variance, one after the other: a float64 copy [2 features]."""
    return torch.cat([module.running_mean, module.running_var]).double()


def _counts(modules: list[Any]) -> list[int]:
    """`num_batches_tracked` of every module. One synchronisation with the device."""
    tracked = [module.num_batches_tracked for module in modules]
    return [int(count) for count in torch.stack(tracked).tolist()] if tracked else []


def _weigh(module: Any, start: Tensor, count: int, n: int, processes: Processes) -> Tensor:
    """This process's summand of the merged statistics: its own part, and an R-th of what is left of `start`."""
    size, rank = processes.size, processes.rank
    if n == 0:
        return start / size
    if module.momentum is None:
        total = count + n * size
        kept, left, weight = count / (count + n), count / total, (count + n) / total
    else:
        kept = (1 - module.momentum) ** n
        left, weight = kept**size, kept ** (size - 1 - rank)
    return weight * (_statistics(module) - kept * start) + left / size * start
