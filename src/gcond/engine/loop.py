"""The training loop: the same for every strategy, which enters as a conductor and an optimizer."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, MicroBatches
from gcond.engine.logbook import Logbook
from gcond.engine.probe import StepProbe
from gcond.engine.progress import Progress
from gcond.engine.schedule import WarmupCosine
from gcond.loss import ReconstructionLoss, outside_unit_share
from gcond.strategy import GradientConductor


class Objective:
    """What the conductor calls: losses(batch, tasks). One forward pass of the model a call."""

    def __init__(self, model: nn.Module, loss: ReconstructionLoss, intensity: Intensity) -> None:
        self._model, self._loss, self._intensity = model, loss, intensity
        self._outside: list[Tensor] | None = None

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        predictions = self._model(batch.images, batch.hidden)
        if self._outside is not None:
            self._outside.append(outside_unit_share(predictions.detach(), self._intensity))
        return self._loss(predictions, batch.images, batch.hidden, tasks)

    def watch(self, on: bool) -> None:
        """Whether to note the share of predictions outside [0, 1]."""
        self._outside = [] if on else None

    def outside_share(self) -> float:
        assert self._outside
        return float(torch.stack(self._outside).mean())


class Trainer:
    """One optimizer step at a time.

    `training` is the mode of the model in which gradients are computed; BatchNorm's running statistics move in it only.
    """

    def __init__(
        self,
        model: nn.Module,
        objective: Objective,
        conductor: GradientConductor,
        optimizer: Optimizer,
        schedule: WarmupCosine,
        batches: MicroBatches,
        training: bool,
        diagnose_every: int,
    ) -> None:
        self._model, self._objective, self._conductor = model, objective, conductor
        self._optimizer, self._schedule, self._batches = optimizer, schedule, batches
        self._training = training
        self._diagnose_every = diagnose_every

    def step(self, step: int) -> dict[str, Any]:
        """Take optimizer step `step` (from 0) and return its record."""
        self._model.train(self._training)
        diagnose = step % self._diagnose_every == 0
        self._objective.watch(diagnose)
        metrics = self._conductor.step(self._batches, self._objective, diagnose)

        # Move the parameters.
        learning_rate = self._schedule(step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        probe = StepProbe(self._conductor) if diagnose else None
        self._optimizer.step()

        record: dict[str, Any] = {"step": step, "lr": learning_rate, **metrics}
        if probe is not None:
            record |= probe.measure(learning_rate) | {"outside_unit_share": self._objective.outside_share()}
        return record


def fit(
    trainer: Trainer,
    start: int,
    schedule: WarmupCosine,
    steps_per_epoch: int,
    logbook: Logbook,
    progress: Progress,
    score: Callable[[], dict[str, float]],
    save: Callable[[int], None],
) -> None:
    """Train from optimizer step `start` to the schedule's end; after each epoch score and save."""
    for step in range(start, schedule.total_steps):
        record = trainer.step(step)
        logbook.write({"kind": "step", **record})
        progress.step(record)
        epoch, rest = divmod(step + 1, steps_per_epoch)
        if rest == 0:
            scores = {"epoch": epoch, "step": step + 1, **score()}
            logbook.write({"kind": "validation", **scores})
            progress.epoch(scores, last=step + 1 == schedule.total_steps)
            save(step + 1)
