"""Autocast in the losses closure: gradients close to float32, and small ones that only a GradScaler keeps."""

from __future__ import annotations

import pytest
import torch
from strategy.problems import ESTIMATORS, ConvNet, flat_grad, image_batches, opposed_losses

from gcond.strategy import EMA, GCond, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic

each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


def gradients(estimator, dtype=None, scaler=None, resolver=None, update=None, factor=1.0, steps=2):
    """What an optimizer sees [P] in the last step, and the metrics; lambdas are multiplied by `factor`."""
    model = ConvNet()
    parameters = list(model.parameters())
    resolver = resolver or (Linear() if isinstance(estimator, Joint) else PCGrad())
    tasks = {"l1": 0.85 * factor, "ssim": 0.15 * factor}
    conductor = GradientConductor(parameters, tasks, estimator, resolver, update or Raw())
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def losses(batch, names):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return opposed_losses(model)(batch, names)

    for seed in range(steps):
        metrics = conductor.step(image_batches(2, seed), losses, scaler=scaler)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
    return flat_grad(parameters).clone(), metrics


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@each_estimator
def test_bfloat16_is_close_to_float32(estimator):
    expected, metrics = gradients(estimator)
    found, low = gradients(estimator, torch.bfloat16)
    assert found.dtype == torch.float32
    assert 1e-6 < distance(found, expected) < 0.1
    assert low["resolved_norm"] == pytest.approx(metrics["resolved_norm"], rel=0.1)


@each_estimator
def test_float16_with_a_scaler_is_close_to_float32(estimator):
    expected, metrics = gradients(estimator)
    found, low = gradients(estimator, torch.float16, torch.amp.GradScaler("cpu", init_scale=1024.0))
    assert 1e-6 < distance(found, expected) < 0.02
    assert low["resolved_norm"] == pytest.approx(metrics["resolved_norm"], rel=0.02)


def test_small_float16_gradients_live_through_the_scaler_alone():
    """At lambdas of 1e-6 the network's inner gradients are below 6e-8, the smallest float16."""
    small = {"estimator": Sequential(2), "factor": 1e-6}
    expected, _ = gradients(**small)
    lost, _ = gradients(**small, dtype=torch.float16)
    kept, _ = gradients(**small, dtype=torch.float16, scaler=torch.amp.GradScaler("cpu", init_scale=2.0**24))
    assert distance(lost, expected) > 0.5
    assert distance(kept, expected) < 0.02


def test_a_float16_loss_takes_the_largest_scale_that_its_gradient_allows():
    """The scale 65536 itself is no float16, but lambda 1/4 of it is."""
    parameter = torch.nn.Parameter(torch.ones(2))
    conductor = GradientConductor([parameter], {"t": 0.25}, Joint(1), Linear(), Raw())
    metrics = conductor.step(
        [None], lambda batch, names: {"t": parameter.half().sum()}, scaler=torch.amp.GradScaler("cpu")
    )
    assert "skipped" not in metrics
    assert parameter.grad.tolist() == [16384.0] * 2


def test_float16_that_overflows_at_first_finds_its_scale():
    """2^24 is too large for the float16 gradients within the network; the scaler halves it until they fit."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**24)
    found, metrics = gradients(Stochastic(2), torch.float16, scaler, GCond(), EMA(0.9), steps=20)
    assert scaler.get_scale() < 2.0**24
    assert "skipped" not in metrics
    assert bool(torch.isfinite(found).all())
