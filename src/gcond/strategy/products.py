"""Inner products of rows of P numbers, the costliest pass of an arbitration: by PyTorch's operations, or compiled.

Letters: m rows, n numbers of a part of them. Products and sums are float64: a float32 `J @ J.T` at P = 3e6 is wrong by
1e-4, a `.double()` of J doubles the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor

Products = Callable[[Tensor, Tensor, Tensor | None], None]
"""Called as (sums [m, 2 m], rows [m, n], reference [m, n] or None): adds the inner products of the rows with each other
to the left half of `sums`, those with `reference` to the right half."""

CHUNK_ELEMENTS = {"cpu": 1 << 17, "cuda": 1 << 20}
"""Numbers of a row that are float64 at a time. CPU: with fewer, calls cost more; CUDA: so many stay in the L2 cache."""
ALIGNED = 16
"""Compiled code gets addresses that are multiples of so many numbers: on CUDA it would copy what is not aligned."""
FORMS = 64  # of compiled code in one process: each number of rows, dtype, and history or none is one


def by_chunks(sums: Tensor, rows: Tensor, reference: Tensor | None) -> None:
    """`Products` with no temporary but a float64 chunk of each row."""
    m, n = rows.shape
    parts = [rows] if reference is None else [rows, reference]
    size = min(n, CHUNK_ELEMENTS.get(rows.device.type, CHUNK_ELEMENTS["cuda"]))
    buffer = torch.empty(len(parts) * m, size, dtype=torch.float64, device=rows.device)
    wanted = sums[:, : len(buffer)]
    for start in range(0, n, max(size, 1)):
        stop = min(start + size, n)
        chunk = buffer[:, : stop - start]
        for place, part in enumerate(parts):
            chunk[place * m : (place + 1) * m].copy_(part[:, start:stop])
        wanted.addmm_(chunk[:m], chunk.T)


def compiled(sums: Tensor, rows: Tensor, reference: Tensor | None) -> None:
    """`Products` by `torch.compile`, which reads every number once. The first call of a form waits for the compiler."""
    import torch._dynamo  # half a second, for those alone who ask for it

    m, n = rows.shape
    unaligned = min(-rows.storage_offset() % ALIGNED, n)
    if unaligned:
        by_chunks(sums, rows[:, :unaligned], None if reference is None else reference[:, :unaligned])
    if unaligned < n:
        others = () if reference is None else (reference[:, unaligned:],)
        with torch._dynamo.config.patch(recompile_limit=FORMS):
            upper, across = _compiler()(rows[:, unaligned:], *others)
        gram = sums.new_zeros(m, m)
        gram[torch.triu_indices(m, m, device=sums.device).unbind()] = upper
        sums[:, :m] += gram + gram.triu(1).T
        if reference is not None:
            sums[:, m:] += across


@cache
def _compiler() -> Any:
    return torch.compile(_each_pair, dynamic=True, fullgraph=True)


def _each_pair(rows: Tensor, *others: Tensor) -> tuple[Tensor, Tensor | None]:
    wide = [row.double() for row in rows.unbind()]
    upper = torch.stack([(a * b).sum() for i, a in enumerate(wide) for b in wide[i:]])
    if not others:
        return upper, None
    right = [row.double() for row in others[0].unbind()]
    return upper, torch.stack([(a * b).sum() for a in wide for b in right]).view(len(wide), len(right))
