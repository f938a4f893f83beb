"""What a resolver sees and what it answers. It sees numbers, never a network."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor


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


class Resolver(Protocol):
    """Settles the conflicts between task gradients. One that sets no flag reads Gram matrices and no history.

    `uses_history`: whether it reads `Conflict.cross`; if not, no reference rows are held.
    `needs_task_gradients`: whether it needs a row per task; if not, one joint backward pass serves all tasks.
    `weighs_losses`: whether it weights the losses before a joint backward pass (see `LossWeighting`).
    `works_on_coordinates`: whether it answers with `Resolution.blockwise`.
    `remembers_coordinates`: whether its state is of the size of the rows.
    """

    uses_history: bool = False
    needs_task_gradients: bool = True
    weighs_losses: bool = False
    works_on_coordinates: bool = False
    remembers_coordinates: bool = False

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        """Raise ValueError where the resolver cannot serve these tasks (name -> lambda) or parameter groups."""

    def resolve(self, conflict: Conflict) -> Resolution: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StatelessResolver(Resolver):
    """A resolver that keeps nothing between steps."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, found {sorted(state)}")


class LossWeighting(StatelessResolver):
    """A method that only weights losses: one joint backward pass, no task gradients. Its weights replace lambdas."""

    needs_task_gradients = False
    weighs_losses = True

    def weigh(self, losses: Tensor) -> Tensor:
        """Weights [m] for one micro-batch's losses [m], detached, on their device; no synchronisation."""
        raise NotImplementedError

    def after_window(self, losses: Tensor) -> dict[str, float]:
        """Learn from the window's mean losses [m], float64 on the CPU; returns what to log."""
        raise NotImplementedError

    def forget_window(self) -> None:
        """Drop what `weigh` has noted of a window that was left out."""

    def resolve(self, conflict: Conflict) -> Resolution:
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))
