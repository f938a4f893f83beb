"""The learning rate by optimizer step."""

from __future__ import annotations

import math
from dataclasses import dataclass


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
