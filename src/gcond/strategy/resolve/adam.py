"""Adam on the few numbers that a resolver learns."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def adam_step(
    values: Tensor, gradient: Tensor, state: dict[str, Any], lr: float, weight_decay: float = 0.0
) -> dict[str, Any]:
    """Move `values` [m] in place; `state` is what the step before returned, {} at first."""
    adam = torch.optim.Adam([values], lr=lr, weight_decay=weight_decay)
    if state:
        adam.load_state_dict(state)
    values.grad = gradient
    adam.step()
    values.grad = None
    return adam.state_dict()
