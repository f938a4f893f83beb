"""The fused optimizer, what a step did, and that a step waits for a GPU once."""

import math
from contextlib import nullcontext

import pytest
import torch
from engine.runs import config
from strategy.far_device import CudaDevice, FarDevice
from torch import nn

from gcond import synthetic_run
from gcond.config import build, compose
from gcond.engine.trainer import optimizer_of, step_measures
from gcond.strategy import GradientConductor, Joint, Linear, Raw


def test_adamw_is_fused_where_there_is_a_kernel_and_nothing_is_asked_of_other_optimizers():
    def defaults(*overrides, strategy="baseline", device="cpu"):
        weight = nn.Parameter(torch.zeros(2, device=device))
        return optimizer_of(config(f"strategy={strategy}", *overrides).optimizer.build, [weight], 1e-3).defaults

    found = defaults()
    assert (found["fused"], found["betas"], found["weight_decay"], found["lr"]) == (True, (0.9, 0.95), 0.05, 1e-3)
    assert not defaults("+optimizer.build.fused=false")["fused"]
    assert not defaults(device="meta")["fused"]
    sgd = defaults(strategy="gcond_lion")
    assert not sgd["fused"]
    assert "momentum" in sgd


RATE = 0.5


@pytest.fixture
def weight():
    return nn.Parameter(torch.tensor([1.0, 2.0, 0.0, 0.0]))


@pytest.fixture
def conductor(weight):
    """After a step whose resolved gradient is (3, 4, 0, 0), of length 5."""

    def losses(batch, tasks):
        values = {"a": 3 * weight[0], "b": 4 * weight[1]}
        return {task: values[task] for task in tasks}

    conductor = GradientConductor([weight], {"a": 1.0, "b": 1.0}, Joint(1), Linear(), Raw())
    conductor.step([None], losses, diagnose=True)
    return conductor


@pytest.mark.parametrize(
    ("descent", "rms", "cosine"),
    [
        ((3.0, 4.0, 0.0, 0.0), 2.5, 1.0),  # plain gradient descent
        ((4.0, -3.0, 0.0, 0.0), 2.5, 0.0),
        ((-3.0, -4.0, 0.0, 0.0), 2.5, -1.0),
        ((3.0, 0.0, 4.0, 0.0), 2.5, 9 / 25),
        ((1.0, 1.0, 1.0, 1.0), 1.0, 7 / 10),
        ((0.0, 0.0, 0.0, 0.0), 0.0, math.nan),
    ],
)
def test_any_step_by_hand(weight, conductor, descent, rms, cosine):
    before = conductor.gradients.flatten()
    with torch.no_grad():
        weight -= RATE * torch.tensor(descent)
    assert step_measures(conductor, before, RATE) == pytest.approx(
        {"step_rms_over_lr": rms, "cosine_step_resolved": cosine}, nan_ok=True, abs=1e-7
    )


@pytest.mark.parametrize("device", [FarDevice, pytest.param(CudaDevice, marks=pytest.mark.cuda)])
def test_an_optimizer_step_waits_once(device, monkeypatch):
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
