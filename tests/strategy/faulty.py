"""Strategies of every kind on a small network, and windows in which task "b" goes wrong."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from strategy.problems import flat_grad, seeded
from torch import Tensor, nn

from gcond import EMA, GradientConductor, Joint, LionLARS, Raw, Sequential, Stochastic
from gcond.strategy import DWA, FAMO, SAMGS, UW, CAGrad, GCond, GradDrop, GradNorm, Linear, PCGrad, TorchJD

TASKS = {"a": 0.5, "b": 0.3, "c": 0.2}
K = 3


def options_of(estimator: Any, resolver: Any, update: Any, **settings: Any) -> dict[str, Any]:
    return {"estimator": estimator, "resolver": resolver, "update": update} | settings


# What a conductor is built of, anew in every call
STRATEGIES = {
    "joint": lambda: options_of(Joint(K), Linear(), EMA()),
    "gcond stochastic": lambda: options_of(
        Stochastic(K), GCond(dominance_window=2, norm_ema_bias_correction=True), EMA(), clip_norm=1e-2
    ),
    "gcond lion": lambda: options_of(Sequential(K), GCond(), LionLARS()),
    "gcond bfloat16": lambda: options_of(
        Sequential(K, "per_task"), GCond(stability_reference="accumulated"), EMA(), buffer_dtype=torch.bfloat16
    ),
    "gcond, bfloat16 reference": lambda: options_of(Sequential(K), GCond(), EMA(), reference_dtype="bfloat16"),
    "gcond micro-batch": lambda: options_of(Sequential(K, resolve_every="micro_batch"), GCond(), EMA()),
    "pcgrad, its order": lambda: options_of(Sequential(K), PCGrad(), Raw(), seed=3),
    "cagrad": lambda: options_of(Sequential(K), CAGrad(), Raw()),
    "gradnorm": lambda: options_of(Sequential(K), GradNorm(lr=0.05), Raw()),
    "graddrop": lambda: options_of(Sequential(K), GradDrop(), Raw()),
    "sam-gs": lambda: options_of(Sequential(K), SAMGS(), Raw()),
    "upgrad": lambda: options_of(Sequential(K), TorchJD("UPGrad"), Raw()),
    "uw": lambda: options_of(Joint(K), UW(), Raw()),
    "famo": lambda: options_of(Joint(K), FAMO(), Raw()),
    "dwa": lambda: options_of(Joint(K), DWA(period=1), Raw()),
}
each_strategy = pytest.mark.parametrize("options", STRATEGIES.values(), ids=STRATEGIES)


@dataclass(frozen=True)
class Batch:
    """Images x [B, 4]; task "b" has its loss, the gradient of all that it reaches, or of its own head, multiplied."""

    x: Tensor
    loss: float = 1.0
    gradient: float = 1.0
    own_gradient: float = 1.0


class Network(nn.Module):
    """A trunk and a head that three tasks share, and one more layer of each task's own."""

    @seeded(0)
    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.head = nn.Linear(4, 6), nn.Linear(6, 5)
        self.own = nn.ModuleDict({task: nn.Linear(5, 1) for task in TASKS})

    def losses(self, batch: Batch, names: Sequence[str]) -> dict[str, Tensor]:
        features = self.head(torch.tanh(self.trunk(batch.x.to(self.trunk.weight.dtype))))
        wanted = {"a": 1.0, "b": -3.0, "c": 0.3}
        values = {}
        for name in names:
            own = self.own[name](features)
            if name == "b":
                exclusive = self.own[name](features.detach())
                own.register_hook(lambda gradient: gradient * batch.gradient)
                exclusive.register_hook(lambda gradient: gradient * batch.own_gradient)
                own = own + exclusive - exclusive.detach()
            values[name] = (own - wanted[name]).square().mean() * (batch.loss if name == "b" else 1.0)
        return values

    def groups(self) -> dict[str, list[tuple[str, Tensor]]]:
        named = list(self.named_parameters())
        return {group: [pair for pair in named if pair[0].startswith(group)] for group in ("trunk", "head", "own")}


def window(seed: int, **wrong: float) -> list[Batch]:
    generator = torch.Generator().manual_seed(seed)
    return [Batch(torch.randn(6, 4, generator=generator), **wrong) for _ in range(K)]


@dataclass
class Run:
    """A network in training; `gradients` are what the optimizer saw, [P] each."""

    options: dict[str, Any]
    scaler: torch.amp.GradScaler | None = None
    optimizer_kind: Any = torch.optim.AdamW
    settings: dict[str, Any] = field(default_factory=lambda: {"lr": 1e-2, "weight_decay": 0.1})
    gradients: list[Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.network = Network()
        self.conductor = GradientConductor(self.network.groups(), TASKS, **self.options)
        self.optimizer = self.optimizer_kind(self.network.parameters(), **self.settings)
        self.optimizer.register_step_pre_hook(lambda *_: self.gradients.append(self._gradient()))

    def _gradient(self) -> Tensor:
        return flat_grad(self.network).clone()

    def step(self, batches: list[Batch]) -> dict[str, float]:
        metrics = self.conductor.step(batches, self.network.losses, scaler=self.scaler)
        self.move()
        return metrics

    def move(self) -> None:
        """Let the optimizer take `p.grad`."""
        if self.scaler is None:
            self.optimizer.step()
        else:
            self.scaler.step(self.optimizer)
            self.scaler.update()

    def train(self, windows: Iterable[list[Batch]]) -> list[dict[str, float]]:
        return [self.step(batches) for batches in windows]

    def state(self) -> dict[str, Any]:
        """All that a later step depends on, but for names and the counts of steps; a copy that compares by `repr`."""
        conductor = self.conductor.state_dict()
        counts = ("steps", "skipped", "tasks", "methods", "handed_over", "layout")
        whole = {
            "conductor": {key: value for key, value in conductor.items() if key not in counts},
            "optimizer": self.optimizer.state_dict(),
            "network": self.network.state_dict(),
        }
        return plain(whole)


def plain(state: Any) -> Any:
    """A state with every tensor as a list of numbers."""
    if isinstance(state, Tensor):
        return state.tolist()
    if isinstance(state, dict):
        return {str(key): plain(value) for key, value in state.items()}
    return [plain(value) for value in state] if isinstance(state, list | tuple) else state
