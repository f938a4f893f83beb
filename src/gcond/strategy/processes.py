"""Several processes, one arbitration: who takes which micro-batches, and what they tell each other in a window.

Letters: R processes, K micro-batches of a window, m rows (tasks), P parameters. Whole micro-batches go to processes.
`torch.distributed` must be initialised; a step is a collective call, and so is `GradientConductor.state_dict`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conflict import Resolver
from gcond.strategy.estimate import Estimator
from gcond.strategy.gradients import Statistics, TaskGradients
from gcond.strategy.safety import Unsolved

# torch 2.14 renames both and warns of the names that torch 2.11 has
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


@dataclass(frozen=True)
class Gathered:
    """What there is to resolve: one entry a resolution, of which `own` is this process's.

    Losses are means [m] over `counts` [m] micro-batches, nan where there are none, of `planned` ones.
    `nonfinite` is "loss" or "gradient" where a process that resolves for itself found one that is not finite, so that
    all leave the window out together.
    """

    statistics: list[Statistics]
    losses: list[Tensor]
    counts: list[Tensor]
    planned: int
    own: int = 0
    nonfinite: str = ""


class SingleProcess:
    """One process, and what the kinds of several have in common.

    `counts` says how often a window called each collective, and of how many numbers it made or read a whole.
    """

    rank, size = 0, 1

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def check(self, estimator: Estimator, resolver: Resolver, sharded: bool) -> None:
        """Raise ValueError where these processes cannot serve the strategy."""
        expected = "Sharded() for sharded parameters (DTensor)"
        expect(not sharded, "processes", expected, f"{type(self).__name__}()")

    def bind(self, gradients: TaskGradients) -> None:
        """Tell the buffer which part of it is this process's work."""

    def check_unchanged(self) -> None:
        """Raise ValueError where torch.distributed is no longer what it was; no communication."""

    def compare(self, facts: Mapping[str, Any]) -> None:
        """Raise ValueError, in every process, where one has another value for a fact; it names process and fact."""

    def gather(
        self, gradients: TaskGradients, reference: Tensor | None, losses: Tensor, counts: Tensor, planned: int
    ) -> Gathered:
        """From filled rows to what there is to resolve.

        Losses [m] and rows are sums over this process's `counts` [m] micro-batches, divided by `planned`.
        """
        gradients.merge_reached(gradients.reached()[None])
        gradients.complete(counts, planned)
        products, losses = _read(gradients.products(reference), losses)
        return _gathered(gradients, products, losses, counts, planned)

    def finish(self, out: Tensor, gradients: TaskGradients) -> None:
        """Make `out` [P], combined by every process for itself, the same everywhere; in place."""

    def gather_full(self, reference: Tensor, gradients: TaskGradients) -> Tensor:
        """A copy of the reference rows [m, P], with every process's part."""
        return reference.clone()

    def merge_metrics(self, metrics: dict[str, float], problem: Unsolved | None) -> list[dict[str, float]]:
        """The metrics of every process whose resolutions differ; raises the `problem` of any of them in all."""
        if problem is not None:
            raise problem
        return [metrics]

    def sum(self, tensor: Tensor) -> None:
        """Add up `tensor` over the processes, in place."""

    def min_index(self, index: int) -> int:
        """The smallest `index` of any process."""
        return index


Processes = SingleProcess  # the type of any kind of them


class ImplicitSingleProcess(SingleProcess):
    """One process, as long as there is no other: nobody has said what to do with several."""

    def __init__(self) -> None:
        super().__init__()
        self.check_unchanged()

    def check_unchanged(self) -> None:
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            raise ValueError(
                f"`processes`: found {dist.get_world_size()} processes in torch.distributed; expected Replicated() (a "
                "conflict is settled once), ReplicatedPerRank() (as published: each for itself, then the mean) or, for "
                "a conductor that has nothing to do with them, SingleProcess(), built after init_process_group"
            )


class _Group(SingleProcess):
    """Counted collectives over `group` (None is the default group)."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        super().__init__()
        if not dist.is_initialized():
            raise ValueError(
                f"`processes`: {type(self).__name__} expects torch.distributed to be initialised; call "
                "torch.distributed.init_process_group, or start the program with torchrun"
            )
        self._group = group
        self.rank, self.size = dist.get_rank(group), dist.get_world_size(group)

    def check_unchanged(self) -> None:
        there = dist.is_initialized()
        rank, size = (dist.get_rank(self._group), dist.get_world_size(self._group)) if there else (0, 0)
        expected = f"process {self.rank} of {self.size}, as when the conductor was built"
        found = f"process {rank} of {size} in torch.distributed; build another conductor"
        expect((rank, size) == (self.rank, self.size), "processes", expected, found)

    def compare(self, facts: Mapping[str, Any]) -> None:
        everyone: list[Any] = [None] * self.size
        dist.all_gather_object(everyone, dict(facts), group=self._group)
        require_same(everyone)

    def sum(self, tensor: Tensor) -> None:
        self._count("all_reduce", tensor)
        dist.all_reduce(tensor, group=self._group)

    def all_gather(self, tensor: Tensor) -> Tensor:
        """[R, ...] of the processes' tensors."""
        gathered = tensor.new_empty(self.size * tensor.numel())  # gloo refuses any other shape
        self._count("all_gather", gathered)
        _all_gather(gathered, tensor.flatten(), group=self._group)
        return gathered.view(self.size, *tensor.shape)

    def min_index(self, index: int) -> int:
        device = "cuda" if dist.get_backend(self._group) == "nccl" else "cpu"
        smallest = torch.tensor([index], device=device)
        self._count("all_reduce", smallest)
        dist.all_reduce(smallest, dist.ReduceOp.MIN, group=self._group)
        return int(smallest)

    def _count(self, name: str, tensor: Tensor) -> None:
        self.counts[f"{name}/calls"] += 1
        self.counts[f"{name}/numbers"] += tensor.numel()


class Replicated(_Group):
    """Every process holds all parameters and K / R of a window's micro-batches; a conflict is settled once for all.

    Task gradients are reduced, each process keeping one R-th of the coordinates; m x m statistics are summed, so that
    all processes resolve the same conflict; each combines its part, and the parts are gathered. 1, 2 and 4 processes
    with the same micro-batches arbitrate alike, but for the order of floating-point sums. Large collectives per window:
    m reduce-scatters and one all-gather of P numbers; small: two all-reduces. Resolvers that work on coordinates get
    the whole of every row instead: m all-reduces.

    With `resolve_every="micro_batch"` micro-batches take turns over the processes: each resolves its own, from
    statistics that all have seen in their order, so that stateful resolvers agree; one all-reduce of P numbers averages
    the results. That is refused for resolvers that remember gradients of earlier micro-batches.

    No DistributedDataParallel: it would reduce the sum of the tasks before anything is resolved.
    """

    def check(self, estimator: Estimator, resolver: Resolver, sharded: bool) -> None:
        super().check(estimator, resolver, sharded)
        self._by_micro_batch = estimator.resolves_micro_batches
        self._on_coordinates = resolver.works_on_coordinates
        elsewhere = self._by_micro_batch and (resolver.uses_history or resolver.remembers_coordinates)
        why = f"{type(resolver).__name__} remembers gradients of a micro-batch that another process has had"
        expect(not elsewhere, "resolve_every", f'"window", as {why}', '"micro_batch"')

    def bind(self, gradients: TaskGradients) -> None:
        if self._by_micro_batch or self._on_coordinates:
            return
        part = gradients.size // self.size
        self._part, self._rest = slice(self.rank * part, (self.rank + 1) * part), slice(part * self.size, None)
        own, rest = (self._part.start, self._part.stop), (part * self.size, gradients.size)
        gradients.ranges = [own, rest]  # fewer than R coordinates are left over: all processes combine them,
        gradients.counted = [own, rest] if self.rank == 0 else [own]  # and one counts them

    def gather(
        self, gradients: TaskGradients, reference: Tensor | None, losses: Tensor, counts: Tensor, planned: int
    ) -> Gathered:
        if self._by_micro_batch:
            return self._gather_micro_batches(gradients, losses, counts)
        m, planned = len(losses), planned * self.size
        reached = gradients.reached().to(losses, non_blocking=True)
        rows = gradients.rows
        if self._on_coordinates:
            for row in rows:
                self.sum(row)
            rows /= self.size
            rest = rows[:, :0]
        else:
            rest = rows[:, self._rest]
            self._reduce_scatter(rows)
        packed = torch.cat([losses, counts.to(losses, non_blocking=True), reached.flatten(), rest.double().flatten()])
        self.sum(packed)
        told = packed[m : 2 * m + reached.numel()].cpu()
        counts = told[:m]
        gradients.merge_reached(told[m:].view(1, *reached.shape) > 0)
        rest.copy_(packed[2 * m + reached.numel() :].view_as(rest) / self.size)
        gradients.complete(counts, planned)
        products = gradients.products(reference)
        if not self._on_coordinates:
            self.sum(products)
        products, losses = _read(products, packed[:m] / self.size)
        return _gathered(gradients, products, losses, counts, planned)

    def _reduce_scatter(self, rows: Tensor) -> None:
        for row in rows:
            whole, own = row[: self._rest.start], row[self._part]
            if own.numel():
                self._count("reduce_scatter", whole)
                _reduce_scatter(own, whole, group=self._group)
                own /= self.size

    def _gather_micro_batches(self, gradients: TaskGradients, losses: Tensor, counts: Tensor) -> Gathered:
        m = len(losses)
        reached = gradients.reached().to(losses, non_blocking=True)
        packed = self.all_gather(torch.cat([losses, counts.to(losses, non_blocking=True), reached.flatten()]))
        told = packed[:, m:].cpu()
        gradients.merge_reached(told[:, m:].view(self.size, *reached.shape) > 0, self.rank)
        products, losses = _read(self.all_gather(gradients.products(None)), packed[:, :m])
        statistics = [gradients.summarise(each, place) for place, each in enumerate(products)]
        means = [_means(own, n, 1) for own, n in zip(losses, told[:, :m], strict=True)]
        return Gathered(statistics, means, list(told[:, :m]), 1, self.rank)

    def finish(self, out: Tensor, gradients: TaskGradients) -> None:
        if self._by_micro_batch:
            self.sum(out)
            out /= self.size
        elif not self._on_coordinates:
            self._assemble(out)

    def _assemble(self, flat: Tensor) -> None:
        whole, own = flat[: self._rest.start], flat[self._part]
        if own.numel():
            self._count("all_gather", whole)
            _all_gather(whole, own.clone(), group=self._group)

    def gather_full(self, reference: Tensor, gradients: TaskGradients) -> Tensor:
        complete = reference.clone()
        if not self._on_coordinates:
            for row in complete:
                self._assemble(row)
        return complete


class ReplicatedPerRank(_Group):
    """The behaviour of the published code: every process resolves its own micro-batches, and the results are averaged.

    Each then sees a noisier conflict than one process would, and the arbitration depends on the number of processes.
    The resolver's memory differs between processes: each saves the state of its own conductor.
    """

    def check(self, estimator: Estimator, resolver: Resolver, sharded: bool) -> None:
        super().check(estimator, resolver, sharded)
        self._needs_every_task = resolver.needs_every_task

    def gather(
        self, gradients: TaskGradients, reference: Tensor | None, losses: Tensor, counts: Tensor, planned: int
    ) -> Gathered:
        reached = gradients.reached()
        gradients.merge_reached(reached[None])
        gradients.complete(counts, planned)
        segments = gradients.segments
        products = gradients.products(reference)
        nonfinite = torch.stack([~torch.isfinite(values).all() for values in (losses, products)]).to(losses)
        absent = counts == 0
        short = (absent.any() if self._needs_every_task else absent.all()).reshape(1).to(losses, non_blocking=True)
        packed = torch.cat([nonfinite, short, reached.to(losses, non_blocking=True).flatten()])
        self.sum(packed)
        packed = packed.cpu()
        some = "every" if self._needs_every_task else "at least one"
        each = f"a loss of {some} task in each process, which resolves it for itself"
        expect(not packed[2], "losses", each, "none")
        gradients.merge_reached(packed[3:].view(1, *reached.shape) > 0)
        if gradients.segments != segments:
            products = gradients.products(reference)
        odd_losses, odd_products = packed[:2].tolist()
        found = "loss" if odd_losses else "gradient" if odd_products else ""
        products, losses = _read(products, losses)
        return replace(_gathered(gradients, products, losses, counts, planned), nonfinite=found)

    def min_index(self, index: int) -> int:
        return index

    def finish(self, out: Tensor, gradients: TaskGradients) -> None:
        self.sum(out)
        out /= self.size

    def merge_metrics(self, metrics: dict[str, float], problem: Unsolved | None) -> list[dict[str, float]]:
        everyone: list[Any] = [None] * self.size
        self.counts["all_gather_object/calls"] += 1
        dist.all_gather_object(everyone, problem or metrics, group=self._group)
        for found in everyone:
            if isinstance(found, Unsolved):
                raise found
        return everyone


class Sharded(_Group):
    """Parameters sharded over the processes by FSDP2 (`fully_shard`); a conflict is settled once for all.

    FSDP itself reduces the gradients, once in every backward pass: K / R times a window where a micro-batch has one
    backward pass, m K / R times under the sequential estimator. Rows, history and momentum are sharded as the
    parameters are; m x m statistics are summed. The mean over processes must be FSDP's own (its default).

    Refused: resolvers that work on coordinates, and `resolve_every="micro_batch"`, since a backward pass already mixes
    the micro-batches of all processes. Each process saves the state of its own conductor, its shard.
    """

    def check(self, estimator: Estimator, resolver: Resolver, sharded: bool) -> None:
        expect(sharded, "processes", "parameters of fully_shard (DTensor) for Sharded()", "plain ones")
        products = "one that works on inner products, as Sharded() does not line coordinates up"
        expect(not resolver.works_on_coordinates, "resolver", products, type(resolver).__name__)
        window = '"window" with Sharded(), in which a backward pass mixes the micro-batches of all processes'
        expect(not estimator.resolves_micro_batches, "resolve_every", window, '"micro_batch"')

    def bind(self, gradients: TaskGradients) -> None:
        assert gradients.mesh is not None
        over, mesh = f"parameters that are sharded over the {self.size} processes of Sharded()", gradients.mesh.size()
        expect(mesh == self.size, "processes", over, f"a mesh of {mesh}")
        gradients.add_up = self.sum

    def gather(
        self, gradients: TaskGradients, reference: Tensor | None, losses: Tensor, counts: Tensor, planned: int
    ) -> Gathered:
        m, planned = len(losses), planned * self.size
        reached = gradients.reached().to(losses, non_blocking=True)
        packed = torch.cat([losses, counts.to(losses, non_blocking=True), reached.flatten()])
        self.sum(packed)
        told = packed[m:].cpu()
        counts = told[:m]
        gradients.merge_reached(told[m:].view(1, *reached.shape) > 0)
        gradients.complete(counts, planned)
        products = gradients.products(reference)
        self.sum(products)
        products, losses = _read(products, packed[:m] / self.size)
        return _gathered(gradients, products, losses, counts, planned)


def require_same(everyone: Sequence[Mapping[str, Any]]) -> None:
    """Raise ValueError where a process has another value for a fact than the first; it names process and fact."""
    for rank, own in enumerate(everyone):
        for fact in dict.fromkeys([*everyone[0], *own]):
            expected, found = (there.get(fact, "none") for there in (everyone[0], own))
            if found != expected:
                raise ValueError(
                    f"`processes`: expected the same in every process, found {fact} {found} in process {rank}, "
                    f"{expected} in process 0; no process sends its settings, data or weights to the others"
                )


def _gathered(gradients: TaskGradients, products: Tensor, losses: Tensor, counts: Tensor, planned: int) -> Gathered:
    return Gathered([gradients.summarise(products)], [_means(losses, counts, planned)], [counts], planned)


def _means(losses: Tensor, counts: Tensor, planned: int) -> Tensor:
    """Losses [m] that were divided by `planned`, as means over `counts` of them."""
    return torch.where(counts == planned, losses, losses * (planned / counts))


def _read(products: Tensor, losses: Tensor) -> tuple[Tensor, Tensor]:
    """Both on the host, after one synchronisation with the device."""
    packed = torch.cat([products.flatten(), losses.flatten()]).cpu()
    return packed[: products.numel()].view_as(products), packed[products.numel() :].view_as(losses)
