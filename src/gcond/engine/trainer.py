"""Optimizer steps and their learning rate: the same for every strategy, which enters as a conductor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from gcond.config import build
from gcond.engine.batches import Batch
from gcond.engine.device import autocast
from gcond.engine.metrics_log import Record
from gcond.loss import ReconstructionLoss, outside_unit_share
from gcond.strategy import GradientConductor
from gcond.strategy.batchnorm import merged_batchnorm


class Objective:
    """What the conductor calls: losses(batch, tasks). One forward pass of the model a call.

    The model runs under autocast where `precision` is bf16 or fp16; the losses are float32 always.
    """

    def __init__(self, model: nn.Module, loss: ReconstructionLoss, precision: str = "fp32") -> None:
        self._model, self._loss, self._precision = model, loss, precision
        self._outside: list[Tensor] | None = None

    def __call__(self, batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        more: dict[str, Any] = {}
        with autocast(batch.images.device.type, self._precision):
            if self._loss.classifies:
                predictions, logits = self._model(batch.images, batch.hidden, classify=True)
                more = {"logits": logits, "labels": batch.labels}
            else:
                predictions = self._model(batch.images, batch.hidden)
        if self._outside is not None:
            self._outside.append(outside_unit_share(predictions.detach(), self._loss.intensity))
        return self._loss(predictions, batch.images, batch.hidden, tasks, **more)

    def watch(self, on: bool) -> None:
        """Whether to note the share of predictions outside [0, 1]."""
        self._outside = [] if on else None

    def outside_share(self) -> float:
        assert self._outside
        return float(torch.stack(self._outside).mean())


@dataclass(frozen=True, eq=False)
class Trainer:
    """One optimizer step at a time.

    `training` is the mode of the model in which gradients are computed; BatchNorm's running statistics move in it only,
    and a step that was left out because something was not finite moves them not at all. `scaler` is for float16.
    """

    model: nn.Module
    objective: Objective
    conductor: GradientConductor
    optimizer: Optimizer
    schedule: WarmupCosine
    batches: Iterator[Batch]
    training: bool
    diagnose_every: int
    scaler: torch.amp.GradScaler

    def step(self, step: int) -> Record:
        """Take optimizer step `step` (from 0) and return its record."""
        self.model.train(self.training)
        diagnose = step % self.diagnose_every == 0
        self.objective.watch(diagnose)
        with merged_batchnorm(self.model, self.conductor.processes):
            can_skip = self.conductor.nonfinite == "skip" or self.scaler.is_enabled()
            buffers = list(self.model.buffers()) if can_skip and self.training else []
            statistics = [buffer.clone() for buffer in buffers]
            metrics = self.conductor.step(self.batches, self.objective, diagnose, self.scaler)
            if "skipped" in metrics:
                for buffer, before in zip(buffers, statistics, strict=True):
                    buffer.copy_(before)

        # Move the parameters.
        learning_rate = self.schedule(step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        before = self.conductor.gradients.flatten() if diagnose and "skipped" not in metrics else None
        self.scaler.step(self.optimizer)

        record: Record = {"step": step, "lr": learning_rate, **metrics}
        if self.scaler.is_enabled():
            record["scale"] = self.scaler.get_scale()
            self.scaler.update()
        if before is not None:
            record |= step_measures(self.conductor, before, learning_rate)
            record["outside_unit_share"] = self.objective.outside_share()
        return record


def step_measures(conductor: GradientConductor, before: Tensor, learning_rate: float) -> dict[str, float]:
    """Of the step from the parameters `before` [P]: its root mean square over the learning rate, and the cosine of the
    descent step with `resolved_gradient`."""
    gradients, resolved = conductor.gradients, conductor.resolved_gradient
    assert resolved is not None
    step: Tensor = before - gradients.flatten()
    square = float(gradients.dot(step, step))
    lengths = (square * float(gradients.dot(resolved, resolved))) ** 0.5
    cosine = float(gradients.dot(step, resolved)) / lengths if lengths > 0 else float("nan")
    return {"step_rms_over_lr": (square / gradients.size) ** 0.5 / learning_rate, "cosine_step_resolved": cosine}


@dataclass(frozen=True)
class WarmupCosine:
    """Linear warm-up to `peak`, then a cosine to `final` at the last step (the paper: 2 of 15 epochs, to 1e-6)."""

    peak: float
    final: float
    warmup_steps: int
    total_steps: int

    def __post_init__(self) -> None:
        if not 0 <= self.final <= self.peak:
            raise ValueError(
                f"`scale.final_lr`: expected 0 <= final_lr <= learning rate {self.peak:g}, found {self.final:g}"
            )
        if not 0 <= self.warmup_steps < self.total_steps:
            raise ValueError(
                f"`scale.warmup_epochs`: expected fewer warm-up steps than the run's {self.total_steps}, "
                f"found {self.warmup_steps}"
            )

    def __call__(self, step: int) -> float:
        """The rate of step 0, 1, …, total_steps - 1."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        progress = (step - self.warmup_steps + 1) / (self.total_steps - self.warmup_steps)
        return self.final + (self.peak - self.final) * (1 + math.cos(math.pi * progress)) / 2


def optimizer_of(config: DictConfig, parameters: Iterable[Tensor], lr: float) -> Optimizer:
    """AdamW in one fused kernel on CPU and CUDA, unless the config says otherwise (`+optimizer.build.fused=false`).

    It takes a third of the time of PyTorch's loop over parameters, and differs from it by rounding: after one step of
    the default model by 1.2e-7 at most.
    """
    held = list(parameters)
    supported = all(parameter.device.type in ("cpu", "cuda") for parameter in held)
    fused = {"fused": True} if supported and config._target_ == "torch.optim.AdamW" and "fused" not in config else {}
    optimizer: Optimizer = build(config)(held, lr=lr, **fused)
    return optimizer
