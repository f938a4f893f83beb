"""The task gradients as one flat buffer: the only linear algebra on P.

Letters: m rows (tasks), P parameters. Row i is what autograd accumulates while task i's backward pass runs, because
every `p.grad` is then a view into it: nothing is copied.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.flat import FlatParameters, Parameters, local
from gcond.strategy.products import CHUNK_ELEMENTS, Products, by_chunks


@dataclass(frozen=True)
class Segment:
    """A contiguous range of the flat buffer: one parameter group, wholly shared between tasks or wholly not.

    `shared` has an entry for each of the gathered sets of rows (see `TaskGradients.merge_reached`).
    """

    start: int
    stop: int
    group: str
    shared: tuple[bool, ...]


@dataclass(frozen=True)
class Statistics:
    """Inner products of rows, float64 on the CPU. `gram` and `cross` [m, m] run over the shared parameters only."""

    gram: Tensor
    cross: Tensor
    group_grams: dict[str, Tensor]
    exclusive: Tensor  # [m] squared norms over the parameters that one task alone reaches


class TaskGradients(FlatParameters):
    """Rows of task gradients for `parameters`.

    Args:
        parameters, dtype, held: see `FlatParameters`. With the parameters' own dtype autograd writes into the rows;
            with another, and for sharded parameters, a hook adds each finished gradient to its row and frees it.
        rows: the number of rows m.
        products: how inner products are computed.

    `materialised`: graphs may give zeros, not nothing, for what a task does not reach (see `Watch.materialises`); with
    several rows, a parameter whose part of a row is all zeros then counts as not reached.

    `ranges` are the parts [start, stop) of the buffer that this process combines, `counted` those whose inner products
    it computes: everything, unless processes share the work (`gcond.strategy.processes`).
    """

    def __init__(
        self,
        parameters: Parameters,
        rows: int,
        dtype: torch.dtype | None = None,
        products: Products = by_chunks,
        held: Collection[str] = (),
    ) -> None:
        super().__init__(parameters, dtype, held)
        self._add_products = products
        self._direct = self.dtype == self.parameter_dtype and not self.sharded  # autograd can write into the rows
        self.rows = self.new_rows(rows)
        self._views = self._row_views()
        self.materialised = False
        self.awaited: set[int] = set()  # ids of the parameters that a gradient may come for in this window
        self.reached_in_window = [False] * len(self.parameters)  # by any row of any process
        self._reached = torch.zeros(1, rows, len(self.parameters), dtype=torch.bool)
        self._own = 0
        self._segments: list[Segment] | None = None
        self._row = 0
        self._wrapped: list[Any] | None = None
        self._marks = self._row_marks()
        self.ranges = self.counted = [(0, self.size)]
        self.add_up: Callable[[Tensor], None] = _alone  # sums over processes, in place

    def __getstate__(self) -> dict[str, Any]:
        return vars(self) | {"_views": [], "_wrapped": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._views = self._row_views()  # a copy of a view would be no view of the copy

    def new_rows(self, rows: int, dtype: torch.dtype | None = None) -> Tensor:
        """Zeros [rows, P] on the parameters' device, of the buffer's dtype or another."""
        return torch.zeros(rows, self.size, dtype=dtype or self.dtype, device=self.device)

    def zero(self) -> None:
        """Begin a set of rows."""
        self.rows.zero_()
        self._marks = self._row_marks()

    def _row_views(self, rows: Tensor | None = None) -> list[list[Tensor]]:
        """Of every row, a tensor per parameter that counts what autograd adds to it by itself (`data` does that)."""
        return [[view.data for view in self.views(row)] for row in (self.rows if rows is None else rows)]

    def _row_marks(self) -> list[list[int]]:
        return [[view._version for view in views] for views in self._views]

    def swap(self, other: Tensor) -> Tensor:
        """Put `other` [m, P] in the place of the rows and return the old rows."""
        views, old = self._row_views(other), self.rows
        self.rows, self._views = other, views
        return old

    def open(self) -> None:
        """A window begins.

        Raises:
            ValueError: a parameter has a hook that would see each task's gradient in turn.
        """
        hooked = self._first_name(lambda p: p.requires_grad and getattr(p, "_post_accumulate_grad_hooks", None))
        none = "none with a hook of register_post_accumulate_grad_hook"
        found = f"one on {hooked}; is it an optimizer that steps in the backward pass?"
        expect(hooked is None, "parameters", none, found)
        self.reached_in_window = [False] * len(self.parameters)
        self.awaited = {id(parameter) for parameter in self.parameters if parameter.requires_grad}

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Within it, backward passes fill the selected row; after it every `p.grad` is None."""

        def hook(index: int) -> None:
            parameter = self.parameters[index]
            assert parameter.grad is not None
            self._views[self._row][index].add_(local(parameter.grad))
            parameter.grad = None

        handles: list[Any] = []
        hooked = [] if self._direct else self.parameters
        try:
            for index, parameter in enumerate(hooked):
                if parameter.requires_grad:
                    handles.append(parameter.register_post_accumulate_grad_hook(lambda _, index=index: hook(index)))  # type: ignore[no-untyped-call]
            yield
        finally:
            for handle in handles:
                handle.remove()
            self.clear_grads()

    def select(self, row: int) -> None:
        """Let the next backward pass accumulate into `row`."""
        self._row = row
        for parameter, view in zip(self.parameters, self._views[row], strict=True):
            parameter.grad = view if self._direct else None

    def expect_filled(self) -> None:
        """Raise ValueError where the backward pass has left a gradient elsewhere than in the selected row."""
        if self._direct:
            views = iter(self._views[self._row])
            lost = self._first_name(lambda parameter: parameter.grad is not next(views))
            kept = "a backward pass to leave every p.grad in its place"
            expect(lost is None, "losses", kept, f"another one of {lost}; does a hook call zero_grad()?")
        left = [each for each in self._wrappers() if _unreduced(each)]
        for each in left:
            each.unsharded_accumulated_grad = each._unsharded_param.grad = None
        reduced = "every backward pass of fully_shard to reduce its gradients"
        found = "one that left them to the next, which would add tasks up; leave set_requires_gradient_sync(False) out"
        expect(not left, "losses", reduced, found)

    def gathered(self) -> list[Tensor]:
        """What FSDP2 puts into a graph in place of sharded parameters."""
        return [each._unsharded_param for each in self._wrappers() if hasattr(each, "_unsharded_param")]

    def _wrappers(self) -> list[Any]:
        """FSDP2's records of the sharded parameters, which nothing public leads to."""
        if self._wrapped is None:
            own = {id(parameter) for parameter in self.parameters}
            records = [each for each in gc.get_objects() if type(each).__name__ == "FSDPParam"] if self.sharded else []
            self._wrapped = [each for each in records if id(each.sharded_param) in own]
        return self._wrapped

    def expect_no_gradient(self) -> None:
        """Raise ValueError where another's backward pass has left a gradient."""
        found = self._first_name(lambda parameter: parameter.grad is not None)
        only = "them to be computed only, without a backward() of one's own before the micro-batch ends"
        advice = "hand that loss to the conductor, or call backward() after the step, where it adds to p.grad"
        expect(found is None, "losses", only, f"a gradient of {found}; {advice}")

    def _first_name(self, holds: Callable[[Tensor], Any]) -> str | None:
        return next((name for name, p in zip(self.names, self.parameters, strict=True) if holds(p)), None)

    def reached(self) -> Tensor:
        """Which row's backward passes in this process have reached which parameter since `zero`, [m, parameters]."""
        touched = torch.tensor(self._row_marks()) != torch.tensor(self._marks)
        if self.materialised and len(self.rows) > 1:
            nonzero = touched & self._nonzero()
            telling = nonzero.any(1, keepdim=True)  # not so a row that is all zeros, of a lambda of 0
            touched = torch.where(telling, nonzero, touched & nonzero.any(0))
        return touched

    def complete(self, counts: Tensor, planned: int) -> None:
        """Make each row a mean over its task's `counts` [m] losses, each of which was divided by `planned`.

        ValueError where a single row holds tasks with different counts.
        """
        found = [int(count) for count in counts.tolist()]
        if len(self.rows) < len(found) and len(set(found)) > 1:
            raise ValueError(
                f"`losses`: Joint adds the tasks up in one row, so expected as many losses of each in a window, found "
                f"{found}; take estimator=Sequential(...), with Linear() for their sum"
            )
        for row, count in zip(self.rows, found, strict=False):
            if 0 < count != planned:
                row.mul_(planned / count)

    def _nonzero(self) -> Tensor:
        """Which parameter's part of a row has a nonzero number [m, parameters]; mostly its first number tells."""
        firsts = torch.tensor(self.bounds[:-1]).clamp(max=self.size - 1)
        found = (self.rows[:, firsts.to(self.device)] != 0).cpu()
        for row, index in (~found).nonzero().tolist():
            found[row, index] = bool(self._views[row][index].any())
        return found

    def merge_reached(self, reached: Tensor, own: int = 0) -> None:
        """Which row reaches which parameter in each set of rows that is resolved now, bool [sets, m, parameters].

        There is one set, but where processes resolve different micro-batches; `own` is this process's.
        """
        if not torch.equal(reached, self._reached):
            self._segments = None
        self._reached, self._own = reached, own
        anywhere = reached.flatten(0, 1).any(0).tolist()
        self.reached_in_window = [a or b for a, b in zip(self.reached_in_window, anywhere, strict=True)]

    @property
    def reached_by_row(self) -> Tensor:
        """Which row reaches which parameter in any of the sets that are resolved now, bool [m, parameters]."""
        return self._reached.any(0)

    @property
    def segments(self) -> list[Segment]:
        """The flat buffer, cut by group and by whether more than one task reaches a parameter.

        With a single row everything is shared. A parameter that no task reaches counts as shared: it is zero.
        """
        if self._segments is None:
            shared = self._reached.sum(1) != 1 if len(self.rows) > 1 else torch.ones_like(self._reached[:, 0])
            self._segments = []
            for index, (group, sets) in enumerate(zip(self.groups, shared.T.tolist(), strict=True)):
                start, stop = self.bounds[index], self.bounds[index + 1]
                last = self._segments[-1] if self._segments else None
                if last and (last.group, last.shared) == (group, tuple(sets)):
                    self._segments[-1] = Segment(last.start, stop, group, tuple(sets))
                else:
                    self._segments.append(Segment(start, stop, group, tuple(sets)))
        return self._segments

    def products(self, reference: Tensor | None) -> Tensor:
        """Inner products of the rows with each other and with `reference` [m, P], in one pass over both.

        Float64 [segments, m, 2 m] on the device.
        """
        rows = len(self.rows)
        sums = torch.zeros(len(self.segments), rows, 2 * rows, dtype=torch.float64, device=self.device)
        for place, segment in enumerate(self.segments):
            for start, stop in _overlaps(segment.start, segment.stop, self.counted):
                other = None if reference is None else reference[:, start:stop]
                self._add_products(sums[place], self.rows[:, start:stop], other)
        return sums

    def summarise(self, products: Tensor, place: int = 0) -> Statistics:
        """What the `products` [segments, m, 2 m] of a set of rows say of groups and tasks.

        One synchronisation with the device.
        """
        rows = len(self.rows)
        gram = torch.zeros(rows, rows, dtype=torch.float64)
        cross = torch.zeros_like(gram)
        exclusive = torch.zeros(rows, dtype=torch.float64)
        group_grams: dict[str, Tensor] = {}
        for segment, sums in zip(self.segments, products.cpu(), strict=True):
            own, other = sums[:, :rows], sums[:, rows:]
            if not segment.shared[place]:
                exclusive += own.diagonal()
                continue
            gram += own
            cross += other
            group_grams[segment.group] = group_grams.get(segment.group, torch.zeros_like(gram)) + own
        return Statistics(gram, cross, group_grams, exclusive)

    def first_nonfinite(self, row: int) -> int:
        """The place of the first parameter whose gradient in `row` is not finite; their number where there is none."""
        for index, view in enumerate(self._views[row]):
            if not bool(torch.isfinite(view).all()):
                return index
        return len(self.parameters)

    def combine(
        self,
        shared: Tensor | Callable[[Tensor, int], Tensor],
        exclusive: Tensor,
        out: Tensor,
        scale: float = 1.0,
        add: bool = False,
    ) -> None:
        """Write `scale * sum_i weight_i * row_i` into `out` [P], or add it there. `out` may be row 0.

        The weights are `exclusive` [m] where one task is alone, and `shared` [m] where several meet, or what
        `shared(rows [m, c], start)` makes of each block of rows there.
        """
        for segment in self.segments:
            weights = shared if segment.shared[self._own] else exclusive
            if isinstance(weights, Tensor):
                for start, stop in _overlaps(segment.start, segment.stop, self.ranges):
                    self._weigh([scale * w for w in weights.tolist()], start, stop, out, add)
                continue
            for start, stop in _chunks(segment.start, segment.stop, self.ranges, self.device):
                block = weights(self.rows[:, start:stop], start).mul_(scale)
                if add:
                    out[start:stop].add_(block)
                else:
                    out[start:stop].copy_(block)

    def _weigh(self, weights: list[float], start: int, stop: int, out: Tensor, add: bool) -> None:
        target = out[start:stop]
        for index, weight in enumerate(weights):
            row = self.rows[index, start:stop]
            if index == 0 and not add:
                torch.mul(row, weight, out=target)
            else:
                target.add_(row, alpha=weight)

    def dot(self, flat: Tensor, other: Tensor) -> Tensor:
        """<flat, other> as float64 on the device, accumulated by chunks."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for start, stop in _chunks(0, self.size, [(0, self.size)], self.device):
            total += flat[start:stop].double() @ other[start:stop].double()
        self.add_up(total)
        return total

    def norms(self, tensors: Sequence[Tensor]) -> Tensor:
        """Euclidean norms of one tensor per parameter, float64 on the device."""
        norms = torch.stack(torch._foreach_norm([local(tensor) for tensor in tensors])).double()
        if not self.sharded:
            return norms
        squares = norms.square_()
        self.add_up(squares)
        return squares.sqrt_()


def _unreduced(record: Any) -> bool:
    """Whether FSDP2 keeps a gradient of this parameter for a later backward pass."""
    own = getattr(record, "_unsharded_param", None)  # there is none before the first forward pass
    return record.unsharded_accumulated_grad is not None or (own is not None and own.grad is not None)


def _alone(partial: Tensor) -> None:
    """There is nothing to add."""


def _overlaps(start: int, stop: int, ranges: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    for left, right in ranges:
        if max(start, left) < min(stop, right):
            yield max(start, left), min(stop, right)


def _chunks(
    start: int, stop: int, ranges: Sequence[tuple[int, int]], device: torch.device
) -> Iterator[tuple[int, int]]:
    step = CHUNK_ELEMENTS.get(device.type, CHUNK_ELEMENTS["cuda"])
    for first, last in _overlaps(start, stop, ranges):
        for left in range(first, last, step):
            yield left, min(left + step, last)
