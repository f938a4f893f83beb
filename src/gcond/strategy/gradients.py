"""The task gradients as one flat buffer: the only linear algebra on P.

Letters: m rows (tasks), P parameters. Row i is what autograd accumulates while task i's backward pass runs, because
every `p.grad` is then a view into it: nothing is copied. A view carries the parameter's own strides; a contiguous view
of a channels_last weight makes a fused optimizer update the wrong elements without an error.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

CHUNK_ELEMENTS = {"cpu": 1 << 16, "cuda": 1 << 22}  # cpu: two float64 chunks of a few rows stay in the cache


@dataclass(frozen=True)
class Segment:
    """A contiguous range of the flat buffer: one parameter group, wholly shared between tasks or wholly not."""

    start: int
    stop: int
    group: str
    shared: bool


@dataclass(frozen=True)
class Statistics:
    """Inner products of rows, float64 on the CPU. `gram` and `cross` [m, m] run over the shared parameters only."""

    gram: Tensor
    cross: Tensor
    group_grams: dict[str, Tensor]
    exclusive: Tensor  # [m] squared norms over the parameters that one task alone reaches


class TaskGradients:
    """Rows of task gradients for `parameters`.

    Args:
        parameters: the trainable parameters, or named groups of them. Frozen parameters are left out, a tied parameter
            counts once (in the first group that names it).
        rows: the number of rows m.
        dtype: of the rows; None is the parameters' own, and autograd writes into the rows. With another, a hook adds
            each finished gradient to its row and frees it.

    Raises:
        ValueError: no trainable parameter, or parameters on several devices or of several dtypes.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor] | Mapping[str, Iterable[Tensor]],
        rows: int,
        dtype: torch.dtype | None = None,
    ) -> None:
        groups = parameters if isinstance(parameters, Mapping) else {"all": parameters}
        self.parameters: list[Tensor] = []
        self._group_of: list[str] = []
        seen: set[int] = set()
        for group, members in groups.items():
            for parameter in members:
                if parameter.requires_grad and id(parameter) not in seen:
                    seen.add(id(parameter))
                    self.parameters.append(parameter)
                    self._group_of.append(group)
        if not self.parameters:
            raise ValueError("`parameters`: expected at least one that requires a gradient, found none")
        kinds = {(p.device, p.dtype) for p in self.parameters}
        if len(kinds) > 1:
            found = ", ".join(sorted(f"{dtype} on {device}" for device, dtype in kinds))
            raise ValueError(f"`parameters`: expected one device and one dtype, found {found}")
        self.device, self.parameter_dtype = kinds.pop()
        self.dtype = dtype or self.parameter_dtype
        self._direct = self.dtype == self.parameter_dtype  # autograd can write into the rows
        self._bounds = [0]
        for parameter in self.parameters:
            self._bounds.append(self._bounds[-1] + parameter.numel())
        self.rows = self.new_rows(rows)
        self._views = [self.views(row) for row in self.rows]
        self.reached = torch.zeros(rows, len(self.parameters), dtype=torch.bool)
        self._segments: list[Segment] | None = None

    @property
    def size(self) -> int:
        """P, the number of scalar parameters."""
        return self._bounds[-1]

    def new_rows(self, rows: int) -> Tensor:
        """Zeros [rows, P] of the buffer's dtype, on the parameters' device."""
        return torch.zeros(rows, self.size, dtype=self.dtype, device=self.device)

    def views(self, flat: Tensor) -> list[Tensor]:
        """`flat` [P] as one view per parameter, of the parameter's shape and, where it is dense, its strides."""
        views = []
        for parameter, start in zip(self.parameters, self._bounds, strict=False):
            if _is_dense(parameter):
                views.append(flat.as_strided(parameter.shape, parameter.stride(), flat.storage_offset() + start))
            else:
                views.append(flat[start : start + parameter.numel()].view(parameter.shape))
        return views

    def zero(self) -> None:
        self.rows.zero_()

    def swap(self, other: Tensor) -> Tensor:
        """Put `other` [m, P] in the place of the rows and return the old rows."""
        old, self.rows = self.rows, other
        self._views = [self.views(row) for row in self.rows]
        return old

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """While open, note which parameters the backward passes reach, and keep low-precision rows filled."""
        self._row = 0
        touched = torch.zeros_like(self.reached)

        def hook(index: int) -> None:
            touched[self._row, index] = True
            if not self._direct:
                parameter = self.parameters[index]
                assert parameter.grad is not None
                self._views[self._row][index].add_(parameter.grad)
                parameter.grad = None

        handles = [
            parameter.register_post_accumulate_grad_hook(lambda _, index=index: hook(index))  # type: ignore[no-untyped-call]
            for index, parameter in enumerate(self.parameters)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            if bool((touched & ~self.reached).any()):
                self.reached |= touched
                self._segments = None

    def select(self, row: int) -> None:
        """Let the next backward pass accumulate into `row`."""
        self._row = row
        for parameter, view in zip(self.parameters, self._views[row], strict=True):
            parameter.grad = view if self._direct else None

    def restore_reached(self, reached: Tensor) -> None:
        """Take over which parameters [rows, parameters] an earlier process saw reached."""
        if reached.shape != self.reached.shape:
            raise ValueError(
                f"`reached`: expected {tuple(self.reached.shape)} (rows, parameters), found {tuple(reached.shape)}; "
                "the state belongs to another strategy or model"
            )
        self.reached = reached.clone()
        self._segments = None

    @property
    def segments(self) -> list[Segment]:
        """The flat buffer, cut by group and by whether more than one task reaches a parameter.

        With a single row everything is shared. A parameter that no task reaches counts as shared: it is zero.
        """
        if self._segments is None:
            exclusive = (self.reached.sum(0) == 1) if len(self.rows) > 1 else torch.zeros(len(self.parameters)).bool()
            self._segments = []
            for index, group in enumerate(self._group_of):
                start, stop, shared = self._bounds[index], self._bounds[index + 1], not bool(exclusive[index])
                last = self._segments[-1] if self._segments else None
                if last and (last.group, last.shared) == (group, shared):
                    self._segments[-1] = Segment(last.start, stop, group, shared)
                else:
                    self._segments.append(Segment(start, stop, group, shared))
        return self._segments

    def statistics(self, reference: Tensor | None) -> Statistics:
        """Inner products of the rows with each other and with `reference` [m, P], in one pass over both.

        Accumulated in float64 by chunks: a float32 `J @ J.T` at P = 3e6 is wrong by 1e-4, a `.double()` of J doubles
        the memory. One synchronisation with the device.
        """
        rows = len(self.rows)
        per_segment = []
        for segment in self.segments:
            sums = torch.zeros(rows, 2 * rows, dtype=torch.float64, device=self.device)
            for start, stop in _chunks(segment.start, segment.stop, self.device):
                chunk = self.rows[:, start:stop].double()
                sums[:, :rows].addmm_(chunk, chunk.T)
                if reference is not None:
                    sums[:, rows:].addmm_(chunk, reference[:, start:stop].double().T)
            per_segment.append(sums)
        gram = torch.zeros(rows, rows, dtype=torch.float64)
        cross = torch.zeros_like(gram)
        exclusive = torch.zeros(rows, dtype=torch.float64)
        group_grams: dict[str, Tensor] = {}
        for segment, sums in zip(self.segments, torch.stack(per_segment).cpu(), strict=True):
            own, other = sums[:, :rows], sums[:, rows:]
            if not segment.shared:
                exclusive += own.diagonal()
                continue
            gram += own
            cross += other
            group_grams[segment.group] = group_grams.get(segment.group, torch.zeros_like(gram)) + own
        return Statistics(gram, cross, group_grams, exclusive)

    def combine(self, shared: Tensor, exclusive: Tensor, out: Tensor, scale: float = 1.0, add: bool = False) -> None:
        """Write `scale * sum_i weight_i * row_i` into `out` [P], or add it there.

        The weights are `shared` [m] where several tasks meet and `exclusive` [m] where one is alone. `out` may be row
        0.
        """
        for segment in self.segments:
            weights = [scale * w for w in (shared if segment.shared else exclusive).tolist()]
            target = out[segment.start : segment.stop]
            for index, weight in enumerate(weights):
                row = self.rows[index, segment.start : segment.stop]
                if index == 0 and not add:
                    torch.mul(row, weight, out=target)
                else:
                    target.add_(row, alpha=weight)

    def combine_blocks(
        self, blockwise: Callable[[Tensor, int], Tensor], exclusive: Tensor, out: Tensor, scale: float, add: bool
    ) -> None:
        """As `combine`, with `blockwise(rows [m, c], start)` in place of weights where several tasks meet."""
        for segment in self.segments:
            if not segment.shared:
                alone = (exclusive * scale).to(out).unsqueeze(1) * self.rows[:, segment.start : segment.stop]
                block = alone.sum(0)
                _put(out[segment.start : segment.stop], block, add)
                continue
            for start, stop in _chunks(segment.start, segment.stop, self.device):
                _put(out[start:stop], blockwise(self.rows[:, start:stop], start).mul_(scale), add)

    def write(self, flat: Tensor) -> None:
        """Make every `p.grad` a view into `flat` [P]; `None` where no backward pass has reached the parameter."""
        reached = self.reached.any(0).tolist()
        direct = flat.dtype == self.parameter_dtype
        for parameter, view, touched in zip(self.parameters, self.views(flat), reached, strict=True):
            parameter.grad = (view if direct else view.to(self.parameter_dtype)) if touched else None

    def flatten(self) -> Tensor:
        """The parameters' values as a flat copy [P], laid out as the rows are."""
        flat = torch.empty(self.size, dtype=self.parameter_dtype, device=self.device)
        for parameter, view in zip(self.parameters, self.views(flat), strict=True):
            view.copy_(parameter.detach())
        return flat

    def dot(self, flat: Tensor, other: Tensor) -> Tensor:
        """<flat, other> as float64 on the device, accumulated by chunks."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start, stop in _chunks(0, self.size, self.device):
            total += flat[start:stop].double() @ other[start:stop].double()
        return total


def _put(target: Tensor, block: Tensor, add: bool) -> None:
    if add:
        target.add_(block)
    else:
        target.copy_(block)


def _is_dense(parameter: Tensor) -> bool:
    """Whether the strides are those of a permuted contiguous tensor, so that a flat range holds it without gaps."""
    expected = 1
    for stride, size in sorted(zip(parameter.stride(), parameter.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def _chunks(start: int, stop: int, device: torch.device) -> Iterator[tuple[int, int]]:
    step = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"])
    for left in range(start, stop, step):
        yield left, min(left + step, stop)
