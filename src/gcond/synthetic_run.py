"""Real training steps without data: what benchmarks, the memory planner's check and traces run."""

from __future__ import annotations

import itertools

import torch
from omegaconf import DictConfig
from torch import Tensor

from gcond.config import build
from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch, planned_shape
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, Trainer, optimizer_of
from gcond.model.masking import draw_hidden


class SyntheticRun:
    """The config's model, strategy and optimizer in real optimizer steps on one made micro-batch, always the same.

    The data set is not read. Diagnosed steps, which cost more, are left out unless `diagnose_every` asks for them.
    """

    def __init__(self, cfg: DictConfig, device: torch.device, diagnose_every: int = 10**9) -> None:
        settings, scale, shape = Settings(cfg), cfg.scale, planned_shape(cfg)
        channels = shape["channels"]
        torch.manual_seed(0)
        self.model = build(cfg.model, **shape).to(device)
        intensity = Intensity(0, 1, (0.0,) * channels, (1.0,) * channels)
        loss = build(cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=intensity)
        schedule = settings.schedule(1000)
        self.conductor = settings.conductor(self.model.parameter_groups(), seed=0)
        self.optimizer = optimizer_of(cfg.optimizer.build, self.model.parameters(), schedule.peak)
        generator = torch.Generator().manual_seed(0)
        size = (scale.micro_batch, channels, scale.image_size, scale.image_size)
        self._batch = Batch(
            torch.randn(size, generator=generator).to(device),
            draw_hidden(scale.micro_batch, settings.patches, scale.mask_ratio, generator).to(device),
            torch.zeros(scale.micro_batch, dtype=torch.long, device=device) if shape["classes"] else None,
        )
        model = torch.compile(self.model) if cfg.compile else self.model
        self._objective = Objective(model, loss, cfg.precision)
        self._trainer = Trainer(
            self.model,
            self._objective,
            self.conductor,
            self.optimizer,
            schedule,
            itertools.repeat(self._batch),
            training=cfg.strategy.model_mode == "train",
            diagnose_every=diagnose_every,
            scaler=torch.amp.GradScaler(device.type, enabled=cfg.precision == "fp16"),
        )
        self._taken = 1 if diagnose_every > 1 else 0  # step 0 is diagnosed always

    def step(self) -> dict[str, float]:
        """One optimizer step and its record."""
        record = self._trainer.step(self._taken)
        self._taken += 1
        return record

    def losses(self, tasks: list[str]) -> dict[str, Tensor]:
        """One forward pass, in the mode that the last step left the model in."""
        return self._objective(self._batch, tasks)
