"""What a resolver sees and what it answers. It sees numbers, never a network."""

from __future__ import annotations

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


@dataclass(frozen=True)
class Resolution:
    """`coefficients` C [m, m]: the resolved g_i is sum_j C_ij g_j and the update is C.sum(0) @ J.

    `exclusive` [m] weights each task's gradient on the parameters that it alone reaches; they meet no other task's
    gradient there, so the default is 1.
    """

    coefficients: Tensor
    metrics: dict[str, float] = field(default_factory=dict)
    exclusive: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """[m], what each task gradient counts in the update."""
        return self.coefficients.sum(0)


class Resolver(Protocol):
    """Settles the conflicts between task gradients.

    `uses_history`: whether it reads `Conflict.cross`; if not, no reference rows are held.
    `needs_task_gradients`: whether it needs a row per task; if not, one joint backward pass serves all tasks.
    """

    uses_history: bool
    needs_task_gradients: bool

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        """Raise ValueError where the resolver cannot serve these tasks (name -> lambda) or parameter groups."""

    def resolve(self, conflict: Conflict) -> Resolution: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class StatelessResolver:
    """What most resolvers share: no history, no state, no demands on the tasks."""

    uses_history = False
    needs_task_gradients = True

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        pass

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if state:
            raise ValueError(f"{type(self).__name__} keeps no state, found {sorted(state)}")
