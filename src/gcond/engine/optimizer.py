"""The optimizer of a run."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor


def optimizer_of(build: DictConfig, parameters: Iterable[Tensor], lr: float) -> torch.optim.Optimizer:
    """AdamW steps in one fused kernel, unless the config says otherwise (`+optimizer.build.fused=false`).

    It takes a third of the time of PyTorch's loop over parameters, and differs from it by rounding: after one step of
    the default model by 1.2e-7 at most.
    """
    make = instantiate(build)
    fused = {"fused": True} if make.func is torch.optim.AdamW and "fused" not in make.keywords else {}
    optimizer: torch.optim.Optimizer = make(parameters, lr=lr, **fused)
    return optimizer
