"""How task gradients are gathered over a window of K micro-batches (GCond, equations 1 to 3).

Letters: m tasks, K micro-batches. An estimator fills the rows of `TaskGradients` and yields the mean losses [m] each
time the rows are ready to be resolved. Each row is the mean over its own micro-batches, lambda applied, so that its
scale does not depend on the estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.safety import ADVICE, keeping_buffers

Losses = Callable[[Any, Sequence[str]], Mapping[str, Tensor]]
Weigh = Callable[[Tensor], Tensor]  # losses [m] of a micro-batch, detached -> weights [m] in place of the lambdas
LookAt = Callable[[Mapping[str, Tensor]], None]
Look = Callable[[Sequence[str], bool], LookAt]
"""Called before losses are computed with their names, and whether they serve several backward passes; what it returns
is called with the losses."""
HALF = (torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class Window:
    """This process's `count` micro-batches of a window, each to be taken once, and what is done with each.

    `tasks` is name -> lambda. `scale_loss` multiplies a loss before its backward pass (a GradScaler's `scale`). `look`
    is shown every micro-batch's losses. `seen` are the detached losses of each task since the last `mean_losses`.
    """

    batches: Iterator[Any]
    count: int
    losses: Losses
    tasks: Mapping[str, float]
    weigh: Weigh | None = None
    scale_loss: Callable[[Tensor], Tensor] = lambda loss: loss
    look: Look = lambda names, several_passes: lambda losses: None
    seen: dict[str, list[Tensor]] = field(default_factory=dict)

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
        values = {name: value.float() if value.dtype in HALF else value for name, value in values.items()}
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value.detach())
        return values

    def mean_losses(self) -> Tensor:
        """[m], over the micro-batches that each task has seen; on their device, so no synchronisation for each."""
        means = [torch.stack(self.seen[name]).double().mean() for name in self.tasks]
        self.seen.clear()
        return torch.stack(means)

    def backward(self, loss: Tensor, retain_graph: bool = False) -> None:
        try:
            with keeping_buffers(backward=True) if retain_graph else nullcontext():
                self.scale_loss(loss).backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "donated buffer" in str(error):
                raise RuntimeError(ADVICE) from error
            raise


@dataclass(frozen=True)
class Estimator:
    """A row for every task, and a contiguous K / R micro-batches of a window for each of R processes.

    Args:
        accumulation_steps: K, the micro-batches of a window.
    """

    accumulation_steps: int = 24

    def __post_init__(self) -> None:
        steps = self.accumulation_steps
        expect(isinstance(steps, int) and steps >= 1, "accumulation_steps", "an integer >= 1", repr(steps))

    @property
    def resolves_micro_batches(self) -> bool:
        """Whether rows are resolved after every micro-batch and the results averaged."""
        return False

    def rows(self, tasks: Sequence[str]) -> int:
        """The rows that `gather` fills; ValueError where the estimator cannot serve these tasks."""
        return len(tasks)

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        """Which of the window's K micro-batches process `rank` of `size` takes; ValueError where K does not divide."""
        own = self._share(size)
        return list(range(rank * own, (rank + 1) * own))

    def _share(self, size: int, blocks: int = 1) -> int:
        """Micro-batches that each of `size` processes takes from each of the window's `blocks`."""
        expect(
            self.accumulation_steps % (size * blocks) == 0,
            "accumulation_steps",
            f"a multiple of {blocks * size}, so that each of {size} processes takes as many whole micro-batches"
            + (f" of each of {blocks} tasks" if blocks > 1 else ""),
            self.accumulation_steps,
        )
        return self.accumulation_steps // (size * blocks)

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        """Fill the rows from this process's micro-batches and yield the mean losses [m] whenever they are ready."""
        raise NotImplementedError


class Joint(Estimator):
    """One forward and one backward pass per micro-batch for the lambda-weighted sum of all losses: a single row."""

    def rows(self, tasks: Sequence[str]) -> int:
        return 1

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        tasks = window.tasks
        gradients.zero()
        gradients.select(0)
        for batch in window.batches:
            values = window.losses_for(batch, list(tasks))
            if window.weigh is None:
                weighted: Any = sum(tasks[name] * values[name] for name in tasks)
            else:
                stacked = torch.stack([values[name].reshape(()) for name in tasks])
                weighted = (window.weigh(stacked.detach()) * stacked).sum()
            window.backward(weighted / window.count)
        yield window.mean_losses()


@dataclass(frozen=True)
class Sequential(Estimator):
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

    forward: str = "shared"
    resolve_every: str = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect_one_of("forward", self.forward, "shared", "per_task")
        expect_one_of("resolve_every", self.resolve_every, "window", "micro_batch")

    @property
    def resolves_micro_batches(self) -> bool:
        return self.resolve_every == "micro_batch"

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        contiguous = super().micro_batch_indices(rank, size, tasks)
        if self.resolves_micro_batches:  # in turn, so that micro-batches are resolved in their order
            return list(range(rank, self.accumulation_steps, size))
        return contiguous

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        size = 1 if self.resolves_micro_batches else window.count
        for _ in range(window.count // size):
            gradients.zero()
            for batch in islice(window.batches, size):
                self._backward_all(gradients, window, batch, size)
            yield window.mean_losses()

    def _backward_all(self, gradients: TaskGradients, window: Window, batch: Any, micro_batches: int) -> None:
        tasks, names = window.tasks, list(window.tasks)
        values = window.losses_for(batch, names, several_passes=len(names) > 1) if self.forward == "shared" else {}
        for row, name in enumerate(names):
            loss = values[name] if values else window.losses_for(batch, [name])[name]
            gradients.select(row)
            window.backward(loss * (tasks[name] / micro_batches), retain_graph=bool(values) and row < len(names) - 1)


@dataclass(frozen=True)
class Stochastic(Estimator):
    """K micro-batches in m consecutive blocks; block i serves task i only: K forward and K backward passes.

    Args:
        accumulation_steps: K, divisible by the number of tasks.
        resolve_every: "window" is the only choice, since a micro-batch holds one task's gradient.
    """

    resolve_every: str = "window"

    def __post_init__(self) -> None:
        super().__post_init__()
        expect(
            self.resolve_every == "window",
            "resolve_every",
            '"window", since a stochastic micro-batch holds the gradient of one task (else use Sequential)',
            repr(self.resolve_every),
        )

    def rows(self, tasks: Sequence[str]) -> int:
        self._share(1, len(tasks))
        return len(tasks)

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        own = self._share(size, len(tasks))
        block = own * size
        return [task * block + rank * own + step for task in range(len(tasks)) for step in range(own)]

    def gather(self, gradients: TaskGradients, window: Window) -> Iterator[Tensor]:
        tasks = window.tasks
        gradients.zero()
        block = window.count // len(tasks)
        for row, name in enumerate(tasks):
            gradients.select(row)
            for batch in islice(window.batches, block):
                loss = window.losses_for(batch, [name])[name]
                window.backward(loss * (tasks[name] / block))
        yield window.mean_losses()


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
