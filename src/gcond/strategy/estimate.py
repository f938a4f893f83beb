"""How task gradients are gathered over a window of K micro-batches (GCond, equations 1 to 3).

Letters: m tasks, K micro-batches. An estimator says which tasks a micro-batch serves and how their losses go backward
into the rows of `TaskGradients`. Each row is the mean over its own micro-batches, lambda applied, so that its scale
does not depend on the estimator.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect, expect_one_of
from gcond.strategy.gradients import TaskGradients
from gcond.strategy.safety import ADVICE, NotFinite, keeping_buffers

Losses = Callable[[Any, Sequence[str]], Mapping[str, Tensor]]
Weigh = Callable[[Tensor], Tensor]  # losses [m] of a micro-batch, detached -> weights [m] in place of the lambdas
LookAt = Callable[[Mapping[str, Tensor]], None]
Look = Callable[[Sequence[str], bool], LookAt]
"""Called before losses are computed with their names, and whether they serve several backward passes; what it returns
is called with the losses."""
ONE_GRAPH = (
    "`losses`: found a graph that an earlier backward pass has freed; expected losses that share a part in one call of "
    '`backward`, or of `losses` with forward="shared", and nothing that is kept from one micro-batch to the next'
)
HALF = (torch.float16, torch.bfloat16)


@dataclass
class Window:
    """This process's `count` micro-batches of a window, one after the other, from losses to `direction` [P].

    `tasks` is name -> lambda. `look` is shown every micro-batch's losses. `scale` is the `scaler`'s, None without one.
    `taken` micro-batches are over; `awaited` are the tasks that the open one has yet to bring, None between
    micro-batches. `seen` are the detached losses of each task since the last `mean_losses`. `resolutions` are the
    metrics of the `resolved` sets of rows, whose tasks had `counts` [m] losses, of so many as were planned; `grams`
    are sums of their Gram matrices by group, `reached` says which row reaches which parameter in any of them. `problem`
    makes the window void; it is not `whole` while a backward pass is under way, or where one has failed.
    """

    estimator: Estimator
    gradients: TaskGradients
    tasks: Mapping[str, float]
    count: int
    weigh: Weigh | None = None
    look: Look = lambda names, several_passes: lambda losses: None
    scaler: torch.amp.GradScaler | None = None
    scale: float | None = None
    diagnose: bool = False
    taken: int = 0
    awaited: list[str] | None = None
    seen: dict[str, list[Tensor]] = field(default_factory=dict)
    resolutions: list[dict[str, float]] = field(default_factory=list)
    direction: Tensor | None = None
    resolved: int = 0
    planned_resolutions: int = 0
    counts: Tensor = field(default_factory=lambda: torch.zeros(()))
    planned_counts: int = 0
    grams: dict[str, Tensor] = field(default_factory=dict)
    reached: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.bool))
    problem: NotFinite | None = None
    whole: bool = True

    def __post_init__(self) -> None:
        self._forward = ExitStack()
        self.gradients.open()

    @property
    def full(self) -> bool:
        return self.taken == self.count or self.problem is not None

    @property
    def serves(self) -> list[str]:
        """The tasks of the open or the next micro-batch; none after the last."""
        return self.estimator.serves(self.taken, self.count, list(self.tasks)) if self.taken < self.count else []

    def open_micro_batch(self) -> None:
        """Each micro-batch is opened, brings its losses and is closed."""
        if self.taken == 0 or self.estimator.resolves_micro_batches:
            self.gradients.zero()
        self.gradients.clear_grads()
        self.awaited = self.serves

    def expect_losses(self, names: Sequence[str]) -> None:
        """The losses `names` are about to be computed, in one graph."""
        several_passes = len(names) > 1 and len(self.gradients.rows) > 1
        self._asked = names
        self._look_at = self.look(names, several_passes)
        if several_passes:
            self._forward.enter_context(keeping_buffers())

    def take(self, batch: Any, losses: Losses) -> None:
        """Compute the losses of the open micro-batch and let them go backward."""
        for names in self.estimator.asks(self.serves):
            self.expect_losses(names)
            self.backward(losses(batch, names))

    def backward(self, values: Mapping[str, Tensor]) -> None:
        """Let those of the expected losses that there are go backward; ValueError where one is no scalar."""
        self._forward.close()
        checked = checked_losses(values, self._asked)
        self.gradients.expect_no_gradient()
        self._look_at(values)
        values = checked
        for name, value in values.items():
            self.seen.setdefault(name, []).append(value.detach().clone())  # the caller may go on with its own
        self.whole = False
        with self.gradients.filling():
            if values:
                self.estimator.backward(self, values)
        self.whole = True
        self.awaited = [name for name in self.awaited or () if name not in values]

    def close_micro_batch(self) -> None:
        self._forward.close()
        found = "one that failed, whose exception was caught within the micro-batch; catch it outside"
        expect(self.whole, "losses", "every backward pass to end", found)
        self.gradients.expect_no_gradient()
        self.awaited = None
        self.taken += 1

    def close(self) -> None:
        self._forward.close()

    @property
    def planned(self) -> int:
        """Micro-batches of this process that bring each task before the rows are resolved, if none lacks it."""
        return self.estimator.planned(self.count, len(self.tasks))

    def mean_losses(self) -> tuple[Tensor, Tensor]:
        """Like the rows: losses [m], each divided by `planned` and added up; and how many there were, [m].

        Means on the losses' device, so no synchronisation for each; numbers as float64 on the CPU.
        """
        means, counts = [], []
        for name in self.tasks:
            losses = self.seen.get(name) or [torch.zeros((), device=self.gradients.device)]
            counts.append(len(self.seen.get(name, ())))
            mean = torch.stack(losses).double().mean()
            means.append(mean if counts[-1] == self.planned else mean * (counts[-1] / self.planned))
        self.seen.clear()
        return torch.stack(means), torch.tensor(counts, dtype=torch.float64)

    def add(self, row: int, loss: Tensor, retain_graph: bool = False) -> None:
        """Add the gradient of `loss` to a row."""
        self.gradients.select(row)
        scaled = loss if self.scale is None else loss * self.scale
        try:
            with keeping_buffers(backward=True) if retain_graph else ExitStack():
                scaled.backward(retain_graph=retain_graph)  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if "donated buffer" in str(error):
                raise RuntimeError(ADVICE) from error
            if "backward through the graph a second time" in str(error):
                raise RuntimeError(ONE_GRAPH) from error
            raise
        self.gradients.expect_filled()


@dataclass(frozen=True)
class Estimator:
    """A row for every task, and a contiguous K / R micro-batches of a window for each of R processes.

    Args:
        accumulation_steps: K, the micro-batches of a window.
    """

    accumulation_steps: int = 24

    def __post_init__(self) -> None:
        steps = self.accumulation_steps
        expect(isinstance(steps, Integral) and steps >= 1, "accumulation_steps", "an integer >= 1", repr(steps))

    @property
    def resolves_micro_batches(self) -> bool:
        """Whether rows are resolved after every micro-batch and the results averaged."""
        return False

    def rows(self, tasks: Sequence[str]) -> int:
        """The rows that `backward` fills; ValueError where the estimator cannot serve these tasks."""
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

    def serves(self, place: int, count: int, tasks: Sequence[str]) -> list[str]:
        """The tasks of micro-batch number `place` of a process's `count`."""
        return list(tasks)

    def asks(self, names: list[str]) -> list[list[str]]:
        """`names` of a micro-batch, those together whose losses are computed together."""
        return [names]

    def planned(self, count: int, tasks: int) -> int:
        """How many of a process's `count` micro-batches bring each task before the rows are resolved."""
        return count

    def backward(self, window: Window, values: Mapping[str, Tensor]) -> None:
        """Let losses of a micro-batch go backward into the rows of their tasks."""
        left = len(values)
        for row, (name, weight) in enumerate(window.tasks.items()):
            if name in values:
                left -= 1
                window.add(row, values[name] * (weight / window.planned), retain_graph=left > 0)


class Joint(Estimator):
    """One forward and one backward pass per micro-batch for the lambda-weighted sum of all losses: a single row."""

    def rows(self, tasks: Sequence[str]) -> int:
        return 1

    def backward(self, window: Window, values: Mapping[str, Tensor]) -> None:
        names = [name for name in window.tasks if name in values]
        if window.weigh is None:
            weighted: Any = sum(window.tasks[name] * values[name] for name in names)
        else:
            lacking = sorted(set(window.tasks) - set(names))
            expected = "all of a micro-batch's together, which the method weights against each other"
            expect(not lacking, "losses", expected, f"none of {lacking}")
            stacked = torch.stack([values[name].reshape(()) for name in names])
            weighted = (window.weigh(stacked.detach()) * stacked).sum()
        window.add(0, weighted / window.count)


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
            the results (the peers, as published), so that a task counts as often as micro-batches have it.
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

    def asks(self, names: list[str]) -> list[list[str]]:
        return [names] if self.forward == "shared" else [[name] for name in names]

    def planned(self, count: int, tasks: int) -> int:
        return 1 if self.resolves_micro_batches else count


class Stochastic(Estimator):
    """K micro-batches in m consecutive blocks; block i serves task i only: K forward and K backward passes.

    Args:
        accumulation_steps: K, divisible by the number of tasks.
    """

    def rows(self, tasks: Sequence[str]) -> int:
        self._share(1, len(tasks))
        return len(tasks)

    def micro_batch_indices(self, rank: int, size: int, tasks: Sequence[str]) -> list[int]:
        own = self._share(size, len(tasks))
        block = own * size
        return [task * block + rank * own + step for task in range(len(tasks)) for step in range(own)]

    def serves(self, place: int, count: int, tasks: Sequence[str]) -> list[str]:
        return [tasks[place // self.planned(count, len(tasks))]]

    def planned(self, count: int, tasks: int) -> int:
        return count // tasks


def checked_losses(values: Any, names: Sequence[str]) -> Mapping[str, Tensor]:
    """Those of the losses `names` that there are; ValueError where there is another, or one is no scalar.

    Losses in half precision become float32, so that lambdas and a GradScaler's factor are applied in float32.
    """
    if not isinstance(values, Mapping) or not set(values) <= set(names):
        found = list(values) if isinstance(values, Mapping) else type(values).__name__
        raise ValueError(
            f"`losses`: asked for {list(names)}, expected a mapping from these names, or from those of them that the "
            f"micro-batch has, to a loss each, found {found}"
        )
    for name, value in values.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"`losses`: expected a scalar tensor for task {name!r}, found {value!r}; leave a task out that the "
                "micro-batch lacks"
            )
        if value.numel() != 1 or not value.requires_grad or value.is_complex():
            raise ValueError(
                f"`losses`: expected a scalar that requires a gradient for task {name!r}, found shape "
                f"{tuple(value.shape)}, {value.dtype}, requires_grad={value.requires_grad}; was it computed under "
                "torch.no_grad(), from detached values or by frozen parameters alone?"
            )
    whole = {name: value.reshape(()) if value.ndim else value for name, value in values.items()}
    return {name: value.float() if value.dtype in HALF else value for name, value in whole.items()}
