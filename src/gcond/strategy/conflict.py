"""What a resolver sees and what it answers. It sees numbers, never a network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor

from gcond.strategy.flat import Move


@dataclass(frozen=True)
class Conflict:
    """The m task gradients g_i (lambdas applied), as their inner products. All tensors are float64 on the CPU."""

    tasks: tuple[str, ...]
    gram: Tensor  # [m, m] <g_i, g_j> over the parameters that more than one task reaches
    cross: Tensor  # [m, m] <g_i, g_j of the previous resolution>, zeros at step 0
    group_grams: dict[str, Tensor]  # [m, m] per named parameter group
    losses: Tensor  # [m] means over the micro-batches, lambdas not applied
    lambdas: Tensor  # [m]
    step: int  # resolutions so far
    generator: torch.Generator  # the resolver's own randomness
    absent: tuple[str, ...] = ()  # those of the tasks that no micro-batch has brought

    @property
    def present(self) -> list[int]:
        """The places of the tasks that are not absent."""
        return [place for place, task in enumerate(self.tasks) if task not in self.absent]

    def without_absent(self) -> Conflict:
        """The conflict between the tasks that are there."""
        if not self.absent:
            return self
        at = self.present
        return replace(
            self,
            tasks=tuple(self.tasks[place] for place in at),
            gram=self.gram[at][:, at],
            cross=self.cross[at][:, at],
            group_grams={group: gram[at][:, at] for group, gram in self.group_grams.items()},
            losses=self.losses[at],
            lambdas=self.lambdas[at],
            absent=(),
        )


Blockwise = Callable[[Tensor, int], Tensor]  # rows [m, c] of coordinates start … start + c -> the update there [c]


@dataclass(frozen=True)
class Resolution:
    """`coefficients` C [m, m]: the resolved g_i is sum_j C_ij g_j and the update is C.sum(0) @ J.

    `exclusive` [m] weights each task's gradient on the parameters that it alone reaches; they meet no other task's
    gradient there, so the default is 1.

    A method that works on coordinates has no coefficients (None) and gives `blockwise` instead, which is called once
    for every block of shared parameters, in order.
    """

    coefficients: Tensor | None
    metrics: dict[str, float] = field(default_factory=dict)
    exclusive: Tensor | None = None
    blockwise: Blockwise | None = None

    @property
    def weights(self) -> Tensor:
        """[m], what each task gradient counts in the update; nan where that has no meaning."""
        assert self.coefficients is not None
        return self.coefficients.sum(0)

    def spread(self, conflict: Conflict) -> Resolution:
        """Of a `conflict` without its absent tasks, for all of its tasks; an absent one's gradient, nothing, stays."""
        m, at = len(conflict.tasks), conflict.present
        coefficients, exclusive, blockwise = None, self.exclusive, self.blockwise
        if self.coefficients is not None:
            coefficients = torch.eye(m, dtype=torch.float64)
            coefficients[torch.tensor(at).unsqueeze(1), at] = self.coefficients
        if exclusive is not None:
            exclusive = torch.ones(m, dtype=torch.float64).index_copy(0, torch.tensor(at), exclusive)
        if blockwise is not None:
            own = blockwise
            blockwise = lambda rows, start: own(rows[at], start)  # noqa: E731
        return Resolution(coefficients, self.metrics, exclusive, blockwise)


class Resolver(Protocol):
    """Settles the conflicts between task gradients. One that sets no flag reads Gram matrices and no history.

    - `uses_history`: whether it reads `Conflict.cross`; if not, no reference rows are held.
    - `needs_task_gradients`: whether it needs a row per task; if not, one joint backward pass serves all tasks.
    - `weighs_losses`: whether it weights the losses before a joint backward pass (see `LossWeighting`).
    - `ignores_lambdas`: whether no lambda changes its update.
    - `works_on_coordinates`: whether it answers with `Resolution.blockwise`.
    - `remembers_coordinates`: whether its state is of the size of the rows.
    - `needs_every_task`: whether a window that brings no loss of a task is an error; if not, such a task takes no part.
    - `reads_absent`: whether it reads `Conflict.absent`; if not, it gets a conflict without those tasks.
    - `remembers`: the names of what it keeps between steps, each in an attribute of that name with a leading
      underscore.
    - `starts`: those of them with an entry for each task, tensors [m, ...] or lists and dicts of such, with the value
      of a task that is added; None refuses other tasks, and the same in another order, to a resolver that remembers.
    """

    uses_history: bool = False
    needs_task_gradients: bool = True
    weighs_losses: bool = False
    ignores_lambdas: bool = False
    works_on_coordinates: bool = False
    remembers_coordinates: bool = False
    needs_every_task: bool = False
    reads_absent: bool = False
    remembers: tuple[str, ...] = ()
    starts: Mapping[str, float] | None = None

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        """Raise ValueError where the resolver cannot serve these tasks (name -> lambda) or parameter groups."""
        return  # without it type checkers take an empty method of a protocol for an abstract one

    def resolve(self, conflict: Conflict) -> Resolution: ...

    def follow(self, move: Move) -> None:
        """Carry what `remembers_coordinates` over to another layout; ValueError where that would change it."""
        return

    def follow_tasks(self, before: Sequence[str], now: Sequence[str]) -> None:
        """Carry what is kept for each task over to other tasks, by name; ValueError where that cannot be."""
        if self.remembers and self.starts is None:
            raise ValueError(f"`tasks`: {type(self).__name__} does not say which of {self.remembers} it keeps by task")
        for name, new in (self.starts or {}).items():
            setattr(self, f"_{name}", by_task(getattr(self, f"_{name}"), before, now, new))

    def state_dict(self) -> dict[str, Any]:
        return {name: deepcopy(getattr(self, f"_{name}")) for name in self.remembers}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if set(state) != set(self.remembers):
            raise ValueError(f"{type(self).__name__} keeps {list(self.remembers)}, found the state of {list(state)}")
        for name, value in state.items():
            setattr(self, f"_{name}", deepcopy(value) if self.remembers_coordinates else _on_host(value))


def resolve(resolver: Resolver, conflict: Conflict) -> Resolution:
    """The resolver's answer; one that does not read `Conflict.absent` sees only the tasks that are there."""
    if resolver.reads_absent or not conflict.absent:
        return resolver.resolve(conflict)
    return resolver.resolve(conflict.without_absent()).spread(conflict)


def by_task(kept: Any, before: Sequence[str], now: Sequence[str], new: float) -> Any:
    """Tensors [m, ...] in `kept` for the tasks `now`, in their order; `new` for those that were not among `before`."""
    if isinstance(kept, dict):
        return {key: by_task(value, before, now, new) for key, value in kept.items()}
    if isinstance(kept, list):
        return [by_task(value, before, now, new) for value in kept]
    if not isinstance(kept, Tensor) or not kept.ndim:
        return kept
    added = torch.full_like(kept[0], new)
    return torch.stack([kept[before.index(task)] if task in before else added for task in now])


def _on_host(kept: Any) -> Any:
    """A copy with every tensor on the CPU, wherever a checkpoint was read to."""
    if isinstance(kept, dict):
        return {key: _on_host(value) for key, value in kept.items()}
    if isinstance(kept, list | tuple):
        return type(kept)(_on_host(value) for value in kept)
    return kept.to("cpu", copy=True) if isinstance(kept, Tensor) else deepcopy(kept)


class LossWeighting(Resolver):
    """A method that only weights losses: one joint backward pass, no task gradients. Its weights replace lambdas."""

    needs_task_gradients = False
    needs_every_task = True
    weighs_losses = True
    _on_device: Tensor | None = None  # `known`, where the losses are, for this window

    def known(self) -> Tensor:
        """What this window's weights are made of, float64 on the CPU; by default the weights [m] themselves."""
        raise NotImplementedError

    def weigh(self, losses: Tensor) -> Tensor:
        """Weights [m] for one micro-batch's losses [m], detached, on their device; no synchronisation."""
        if self._on_device is None:
            self._on_device = self.known().to(losses, non_blocking=True)
        return self._on_device

    def after_window(self, losses: Tensor) -> dict[str, float]:
        """Learn from the window's mean losses [m], float64 on the CPU; returns what to log."""
        raise NotImplementedError

    def forget_window(self) -> None:
        """Drop what `weigh` has noted of a window that is over or was left out."""
        self._on_device = None

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.forget_window()

    def resolve(self, conflict: Conflict) -> Resolution:
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))


def adam_step(
    values: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, weight_decay: float = 0.0
) -> dict[str, Any]:
    """Move `values` [m], which a resolver learns, in place; `state` is what the step before returned, {} at first."""
    adam = torch.optim.Adam([values], lr=lr, weight_decay=weight_decay)
    if state:
        adam.load_state_dict(state)
    values.grad = gradient
    adam.step()
    values.grad = None
    return adam.state_dict()
