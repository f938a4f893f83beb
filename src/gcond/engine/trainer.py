"""Optimizer steps and their learning rate: the same for every strategy, which enters as a conductor."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from gcond.config import build
from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, MicroBatches
from gcond.engine.device import autocast
from gcond.engine.metrics_log import Record
from gcond.engine.process import Interrupted, StopOrCheckpoint
from gcond.loss import ReconstructionLoss, outside_unit_share
from gcond.strategy import GradientConductor
from gcond.strategy.batchnorm import merged_batchnorm

Callback = Callable[[int, int, bool], Iterable[Record]]  # after epoch, optimizer steps, the last: records to log


class Objective:
    """What the conductor calls: losses(batch, tasks). One forward pass of the model a call.

    The model runs under autocast where `precision` is bf16 or fp16; the losses are float32 always.
    """

    def __init__(
        self, model: nn.Module, loss: ReconstructionLoss, intensity: Intensity, precision: str = "fp32"
    ) -> None:
        self._model, self._loss, self._intensity, self._precision = model, loss, intensity, precision
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
            self._outside.append(outside_unit_share(predictions.detach(), self._intensity))
        return self._loss(predictions, batch.images, batch.hidden, tasks, **more)

    def watch(self, on: bool) -> None:
        """Whether to note the share of predictions outside [0, 1]."""
        self._outside = [] if on else None

    def outside_share(self) -> float:
        assert self._outside
        return float(torch.stack(self._outside).mean())


class Trainer:
    """One optimizer step at a time.

    `training` is the mode of the model in which gradients are computed; BatchNorm's running statistics move in it only,
    and a step that was left out because something was not finite moves them not at all. `scaler` is for float16.
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
        scaler: torch.amp.GradScaler,
    ) -> None:
        self._model, self._objective, self._conductor, self._scaler = model, objective, conductor, scaler
        self._optimizer, self._schedule, self._batches = optimizer, schedule, batches
        self._training, self._diagnose_every = training, diagnose_every

    def step(self, step: int) -> Record:
        """Take optimizer step `step` (from 0) and return its record."""
        self._model.train(self._training)
        diagnose = step % self._diagnose_every == 0
        self._objective.watch(diagnose)
        with merged_batchnorm(self._model, self._conductor.processes):
            can_skip = self._conductor.nonfinite == "skip" or self._scaler.is_enabled()
            buffers = list(self._model.buffers()) if can_skip and self._training else []
            statistics = [buffer.clone() for buffer in buffers]
            metrics = self._conductor.step(self._batches, self._objective, diagnose, self._scaler)
            if "skipped" in metrics:
                for buffer, before in zip(buffers, statistics, strict=True):
                    buffer.copy_(before)
                metrics = {key: value if math.isfinite(value) else math.nan for key, value in metrics.items()}

        # Move the parameters.
        learning_rate = self._schedule(step)
        for group in self._optimizer.param_groups:
            group["lr"] = learning_rate
        probe = StepProbe(self._conductor) if diagnose and "skipped" not in metrics else None
        self._scaler.step(self._optimizer)

        record: Record = {"step": step, "lr": learning_rate, **metrics}
        if self._scaler.is_enabled():
            record["scale"] = self._scaler.get_scale()
            self._scaler.update()
        if probe is not None:
            record |= probe.measure(learning_rate) | {"outside_unit_share": self._objective.outside_share()}
        return record


def fit(
    trainer: Trainer,
    start: int,
    total: int,
    steps_per_epoch: int,
    log: Callable[[Record], None],
    callbacks: Sequence[Callback],
    save: Callable[[int], None],
    stop: StopOrCheckpoint,
) -> None:
    """Optimizer steps from `start` to `total`; after each epoch what the callbacks give is logged, then the run saved.

    `stop` says after each step whether a checkpoint is due, and which signal asks the run to stop (0 for none); the run
    then saves and raises `Interrupted`.
    """
    for step in range(start, total):
        log({"kind": "step", **trainer.step(step)})
        epoch, rest = divmod(step + 1, steps_per_epoch)
        if rest == 0:
            for callback in callbacks:
                for record in callback(epoch, step + 1, step + 1 == total):
                    log(record)
        due, signal = stop()
        if rest == 0 or due or signal:
            save(step + 1)
        if signal:
            raise Interrupted(signal)


class StepProbe:
    """Construct before `optimizer.step()`, `measure` after it."""

    def __init__(self, conductor: GradientConductor) -> None:
        self._conductor = conductor
        self._before = conductor.gradients.flatten()

    def measure(self, learning_rate: float) -> dict[str, float]:
        """Root mean square of the step over the learning rate; cosine of the descent step with `resolved_gradient`."""
        gradients = self._conductor.gradients
        step: Tensor = self._before - gradients.flatten()
        resolved = self._conductor.resolved_gradient
        assert resolved is not None
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
