"""A whole optimizer step waits for a GPU where its strategy does, and nowhere else: model, losses and optimizer."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from strategy.far_device import CudaDevice, FarDevice

from gcond import synthetic_run
from gcond.config import build, compose


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_an_optimizer_step_waits_once(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    if device is CudaDevice and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    device = device()
    cfg = compose(["strategy=gcond_stochastic", "scale=smoke", "dataset=photos"])
    if isinstance(device, FarDevice):
        model = build(cfg.model, channels=3)  # timm looks at models on "meta" while it builds one
        monkeypatch.setattr(
            synthetic_run, "build", lambda part, **late: model if part == cfg.model else build(part, **late)
        )
        monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # knows no "meta"
    with device:
        steps = synthetic_run.SyntheticRun(cfg, device.device)
        steps.step()
        for _ in range(2):
            device.clear()
            record = steps.step()
            assert (device.counts["synchronisations"], device.counts["transfers"]) == (1, 0), device.log
    assert record["resolved_norm"] > 0
