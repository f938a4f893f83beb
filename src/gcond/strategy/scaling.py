"""Losses that a GradScaler enlarges, so that float16 gradients do not vanish."""

from __future__ import annotations

import torch
from torch.amp.grad_scaler import OptState


def scale_of(scaler: torch.amp.GradScaler | None) -> float | None:
    """The factor on losses; None without a scaler, or with one that is not enabled.

    Raises:
        ValueError: `scaler.unscale_` has been called for gradients that are yet to come: `scaler.step` would leave them
            enlarged, a step too long by the scale.
    """
    if scaler is None or not scaler.is_enabled():
        return None
    optimizers = getattr(scaler, "_per_optimizer_states", {})  # not public; without it the mistake goes unnoticed
    if any(state["stage"] is OptState.UNSCALED for state in optimizers.values()):
        raise ValueError(
            "`scaler`: expected no call of `scaler.unscale_(optimizer)` before the conductor's step, found one without "
            "`scaler.step(optimizer)` and `scaler.update()` after it; call it after the conductor's step, or not at all"
        )
    return float(scaler.get_scale())
