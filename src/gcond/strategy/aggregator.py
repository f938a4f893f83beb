"""A resolver in a loop of TorchJD (https://torchjd.org)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gcond.strategy.arguments import expect
from gcond.strategy.conductor import GradientConductor
from gcond.strategy.conflict import LossWeighting, Resolver
from gcond.strategy.estimate import Sequential
from gcond.strategy.resolve.gradnorm import GradNorm
from gcond.strategy.update import Raw


def as_torchjd(resolver: Resolver, tasks: Mapping[str, float] | None = None, seed: int = 0) -> Any:
    """A resolver as an Aggregator of TorchJD: a module that makes the update [P] of task gradients J [m, P].

    What it remembers is in its `state_dict()`, which may be loaded before the first call. After that call its attribute
    `conductor` is the conductor behind it.

    Args:
        tasks: name -> lambda, one for each row of J; None is "0", "1" … with lambdas of 1.
        seed: as for the conductor.

    Raises:
        ValueError: a resolver that reads losses, of which TorchJD tells nothing; on a call, a J of another shape, as
            each set of parameters needs an aggregator of its own.
        ImportError: torchjd is missing.
    """
    from torchjd.aggregation import Aggregator

    reads_losses = isinstance(resolver, LossWeighting | GradNorm)
    expect(not reads_losses, "resolver", "one that reads gradients alone", type(resolver).__name__)

    class Resolved(Aggregator):
        conductor: GradientConductor | None = None
        state: dict[str, Any] | None = None  # to be loaded when the conductor is there

        def get_extra_state(self) -> dict[str, Any] | None:
            return self.state if self.conductor is None else self.conductor.state_dict()

        def set_extra_state(self, state: dict[str, Any] | None) -> None:
            if self.conductor is None or state is None:
                self.state = state
            else:
                self.conductor.load_state_dict(state)

        def forward(self, matrix: Tensor, /) -> Tensor:
            if self.conductor is None:
                self.point = torch.zeros_like(matrix[0], requires_grad=True)
                self.names = dict.fromkeys(map(str, range(len(matrix))), 1.0) if tasks is None else dict(tasks)
                parts = (Sequential(1), resolver, Raw(), None)
                self.conductor = GradientConductor([self.point], self.names, *parts, seed=seed)
                if self.state is not None:
                    self.conductor.load_state_dict(self.state)
            expected = (len(self.names), len(self.point))
            expect(tuple(matrix.shape) == expected, "matrix", f"a shape of {expected}", tuple(matrix.shape))
            rows = dict(zip(self.names, matrix.detach(), strict=True))
            with torch.enable_grad():  # of <g_i, point> the gradient is g_i
                self.conductor.step([rows], lambda rows, _: {name: row @ self.point for name, row in rows.items()})
            assert self.point.grad is not None
            return self.point.grad.clone()

    return Resolved()
