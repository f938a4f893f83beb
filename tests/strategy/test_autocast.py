"""Autocast in the losses closure: gradients close to float32, and small ones that only a GradScaler keeps."""

from __future__ import annotations

import pytest
import torch
from strategy.problems import ESTIMATORS, ConvNet, flat_grad, image_batches, opposed_losses

from gcond.strategy import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential


def gradients(estimator, dtype=None, scaler=None, factor=1.0):
    """What an optimizer sees [P] in the last of two steps, and the metrics; lambdas are multiplied by `factor`."""
    model = ConvNet()
    parameters = list(model.parameters())
    tasks = {"l1": 0.85 * factor, "ssim": 0.15 * factor}
    resolver = Linear() if isinstance(estimator, Joint) else PCGrad()
    conductor = GradientConductor(parameters, tasks, estimator, resolver, Raw())
    optimizer = torch.optim.SGD(parameters, lr=0.0)

    def losses(batch, names):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return opposed_losses(model)(batch, names)

    for seed in range(2):
        metrics = conductor.step(image_batches(2, seed), losses, scaler=scaler)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
    return flat_grad(parameters).clone(), metrics


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_half_precision_is_close_to_float32(estimator):
    expected, metrics = gradients(estimator)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for found, low, tolerance in (
        (*gradients(estimator, torch.bfloat16), 0.1),
        (*gradients(estimator, torch.float16, scaler), 0.02),
    ):
        assert found.dtype == torch.float32
        assert 1e-6 < distance(found, expected) < tolerance
        assert low["resolved_norm"] == pytest.approx(metrics["resolved_norm"], rel=tolerance)


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
