"""The precision in which a run's model computes."""

from __future__ import annotations

import torch

PRECISION = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast(device: str, precision: str) -> torch.autocast:
    """Autocast of the model on this type of device; one that does nothing for fp32."""
    low = precision != "fp32"
    return torch.autocast(device, PRECISION[precision] if low else None, enabled=low)
