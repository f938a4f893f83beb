"""How task gradients are gathered over a window of K micro-batches (GCond, equations 1 to 3).

Letters: m tasks, K micro-batches. An estimator fills the rows of `TaskGradients` and yields the mean losses [m] each
time the rows are ready to be resolved. Each row is the mean over its own micro-batches, lambda applied, so that its
scale does not depend on the estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor

from gcond.strategy.arguments import expect_one_of
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.safety import ADVICE, keeping_buffers

Losses = Callable[[Any, Sequence[str]], Mapping[str, Tensor]]
Weigh = Callable[[Tensor], Tensor]  # losses [m] of a micro-batch, detached -> weights [m] in place of the lambdas
LookAt = Callable[[Mapping[str, Tensor]], None]
Look = Callable[[Sequence[str], bool], LookAt]
"""Called before losses are computed with their names, and whether they serve several backward passes."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Window:
    """This process's `count` micro-batches of a window, each to be taken once, and what is done with each.

    `tasks` is name -> lambda. `scale_loss` multiplies a loss before its backward pass (a GradScaler's `scale`). `look`
    is shown every micro-batch's losses.
    """

    batches: Iterator[Any]
    count: int
    losses: Losses
    tasks: Mapping[str, float]
    weigh: Weigh | None = None
    scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss
    look: Look = lambda names, several_passes: lambda losses: None

    def losses_for(self, batch: Any, names: list[str], several_passes: bool = False) -> Mapping[str, Tensor]:
        """The losses `names` of a micro-batch, of a graph that serves one backward pass or `several_passes`.

        Losses in half precision become float32, so that lambdas and a GradScaler's factor are applied in float32.
        ValueError where the answer is not one scalar for each name.
        """
        look_at = self.look(names, several_passes)
        with keeping_buffers() if several_passes else nullcontext():
            values = self.losses(batch, names)
        _check_losses(values, names)
        look_at(values)
        return {name: value.float() if value.dtype in HALF else value for name, value in values.items()}

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        try:
            with keeping_buffers(backward=True) if retain_graph else nullcontext():
                self.scale_loss(loss).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "donated buffer" in str(error):
                raise RuntimeError(ADVICE) from error
            raise


class Estimator(Protocol):
    @property
    def accumulation_steps(self) -> int:
        """K, the micro-batches of a window."""

    @property
    def resolves_micro_batches(self) -> bool:
        """Whether rows are resolved after every micro-batch and the results averaged."""

    def rows(self, tasks: Sequence[str]) -> int:
        """The rows that `gather` fills; ValueError where the estimator cannot serve these tasks."""

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        """Which of the window's K micro-batches process `rank` of `size` takes; ValueError where K does not divide."""

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        """Fill the rows from this process's micro-batches and yield the mean losses [m] whenever they are ready."""


@dataclass(frozen=True)
class Joint:
    """One forward and one backward pass per micro-batch for the lambda-weighted sum of all losses: a single row."""

    accumulation_steps: int = 24
    resolves_micro_batches = False

    def __post_init__(self) -> None:
        _check_steps(self.accumulation_steps)

    def rows(self, tasks: Sequence[str]) -> int:
        return 1

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        own = _divide(self.accumulation_steps, size, f"the {size} processes")
        return list(range(rank * own, (rank + 1) * own))

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        tasks = window.tasks
        gradients.zero()
        total = _Mean(len(tasks))
        gradients.select(0)
        for batch in window.batches:
            values = window.losses_for(batch, list(tasks))
            total.add(values, tasks)
            if window.weigh is None:
                weighted: Any = sum(tasks[name] * values[name] for name in tasks)
            else:
                stacked = torch.stack([values[name].reshape(()) for name in tasks])
                weighted = (window.weigh(stacked.detach()) * stacked).sum()
            window.backward(weighted / window.count)
        yield total.mean()


@dataclass(frozen=True)
class Sequential:
    """Every micro-batch serves every task: m backward passes each.

    Args:
        accumulation_steps: K.
        forward: "shared" asks for all losses of a micro-batch at once and keeps the graph until the last task's
            backward pass; "per_task" asks for one at a time, so that one graph is alive at a time (as published). In
            train mode BatchNorm's running statistics then take m updates per micro-batch. A model of `torch.compile`
            that was called before the first step, outside it, needs settings of torch's for "shared"; RuntimeError
            names them.
        resolve_every: "window" resolves the K-step means (GCond); "micro_batch" resolves every micro-batch and averages
            the results (the peers, as published).
    """

    accumulation_steps: int = 24
    forward: str = "shared"
    resolve_every: str = "window"

    def __post_init__(self) -> None:
        _check_steps(self.accumulation_steps)
        expect_one_of("forward", self.forward, "shared", "per_task")
        expect_one_of("resolve_every", self.resolve_every, "window", "micro_batch")

    @property
    def resolves_micro_batches(self) -> bool:
        return self.resolve_every == "micro_batch"

    def rows(self, tasks: Sequence[str]) -> int:
        return len(tasks)

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        own = _divide(self.accumulation_steps, size, f"the {size} processes")
        if self.resolves_micro_batches:  # in turn, so that micro-batches are resolved in their order
            return list(range(rank, self.accumulation_steps, size))
        return list(range(rank * own, (rank + 1) * own))

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        tasks = window.tasks
        size = 1 if self.resolves_micro_batches else window.count
        for _ in range(window.count // size):
            gradients.zero()
            total = _Mean(len(tasks))
            for batch in islice(window.batches, size):
                self._backward_all(gradients, window, batch, size, total)
            yield total.mean()

    def _backward_all(
        self, gradients: TaskGradients, window: Window, batch: Any, micro_batches: int, total: _Mean
    ) -> None:
        tasks, names = window.tasks, list(window.tasks)
        values = window.losses_for(batch, names, several_passes=len(names) > 1) if self.forward == "shared" else {}
        for row, name in enumerate(names):
            loss = values[name] if values else window.losses_for(batch, [name])[name]
            total.add({name: loss}, tasks)
            gradients.select(row)
            window.backward(loss * (tasks[name] / micro_batches), retain_graph=bool(values) and row < len(names) - 1)


@dataclass(frozen=True)
class Stochastic:
    """K micro-batches in m consecutive blocks; block i serves task i only: K forward and K backward passes.

    Args:
        accumulation_steps: K, divisible by the number of tasks.
        resolve_every: "window" is the only choice, since a micro-batch holds one task's gradient.
    """

    accumulation_steps: int = 24
    resolve_every: str = "window"
    resolves_micro_batches = False

    def __post_init__(self) -> None:
        _check_steps(self.accumulation_steps)
        if self.resolve_every != "window":
            raise ValueError(
                f'`resolve_every`: expected "window", found {self.resolve_every!r}; a stochastic micro-batch holds the '
                "gradient of one task, so there is nothing to resolve in it: use the sequential estimator"
            )

    def rows(self, tasks: Sequence[str]) -> int:
        if self.accumulation_steps % len(tasks):
            raise ValueError(
                f"`accumulation_steps`: the stochastic estimator expects a multiple of the number of tasks "
                f"({len(tasks)}: {', '.join(tasks)}), found {self.accumulation_steps}"
            )
        return len(tasks)

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        own = _divide(self.accumulation_steps, size, f"{len(tasks)} tasks x {size} processes", len(tasks))
        block = own * size
        return [task * block + rank * own + step for task in range(len(tasks)) for step in range(own)]

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        tasks = window.tasks
        gradients.zero()
        total = _Mean(len(tasks))
        block = window.count // len(tasks)
        for row, name in enumerate(tasks):
            gradients.select(row)
            for batch in islice(window.batches, block):
                loss = window.losses_for(batch, [name])[name]
                total.add({name: loss}, tasks)
                window.backward(loss * (tasks[name] / block))
        yield total.mean()


class _Mean:
    """Sums of detached losses per task, on their device: no synchronisation per micro-batch."""

    def __init__(self, tasks: int) -> None:
        self._values: list[list[Tensor]] = [[] for _ in range(tasks)]

    def add(self, values: Mapping[str, Tensor], tasks: Mapping[str, float]) -> None:
        for index, name in enumerate(tasks):
            if name in values:
                self._values[index].append(values[name].detach())

    def mean(self) -> Tensor:
        return torch.stack([torch.stack(values).double().mean() for values in self._values])


def _check_losses(values: Any, names: Sequence[str]) -> None:
    if not isinstance(values, Mapping) or set(values) != set(names):
        found = list(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f"`losses`: asked for {names}, expected a mapping from exactly these names to a loss each, found {found}"
        )
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`losses`: expected a scalar tensor for task {name!r}, found {value!r}; for a task that the batch "
                "lacks return a zero that reaches no parameter, torch.zeros((), device=..., requires_grad=True)"
            )
        if value.numel() != 1 or not value.requires_grad or value.is_complex():
            raise ValueError(
                f"`losses`: expected a scalar that requires a gradient for task {name!r}, found shape "
                f"{tuple(value.shape)}, {value.dtype}, requires_grad={value.requires_grad}; was it computed under "
                "torch.no_grad(), from detached values or by frozen parameters alone?"
            )


def _divide(steps: int, size: int, unit: str, parts: int = 1) -> int:
    """Micro-batches of each process in each of `parts` blocks."""
    if steps % (size * parts):
        raise ValueError(
            f"`accumulation_steps`: expected a multiple of {unit} = {size * parts}, so that whole micro-batches go to "
            f"every process, found {steps}"
        )
    return steps // (size * parts)


def _check_steps(accumulation_steps: int) -> None:
    if not isinstance(accumulation_steps, int) or accumulation_steps < 1:
        raise ValueError(f"`accumulation_steps`: expected an integer >= 1, found {accumulation_steps!r}")
