"""A GradScaler and autocast, on the CPU: the gradients are those without; overflows are in test_nonfinite.py."""

from __future__ import annotations

from math import nan

import pytest
import torch
from strategy.faulty import STRATEGIES, Run, each_strategy, plain, window
from strategy.problems import ESTIMATORS, ConvNet, flat_grad, image_batches, opposed_losses
from torch import nn

from gcond import GradientConductor, Joint, Linear, NotFinite, PCGrad, Raw, Sequential


def scaler(scale=65536.0, **settings):
    return torch.amp.GradScaler("cpu", init_scale=scale, **settings)


@each_strategy
def test_a_power_of_two_changes_no_bit(options):
    """Metrics are those of the unscaled gradients, and so is what the optimizer sees."""
    plain_run, scaled_run = Run(options()), Run(options(), scaler())
    windows = [window(seed) for seed in range(4)]
    expected, found = plain_run.train(windows), scaled_run.train(windows)
    assert plain(found) == plain(expected)
    assert scaled_run.state() == plain_run.state()
    for seen, wanted in zip(scaled_run.gradients, plain_run.gradients, strict=True):
        assert torch.equal(seen, wanted)


def test_what_stands_in_grad_is_scaled():
    parameter = nn.Parameter(torch.tensor([3.0, 4.0]))
    conductor = GradientConductor([parameter], {"t": 1.0}, Joint(1), Linear(), Raw(), clip_norm=None)
    metrics = conductor.step([None], lambda batch, names: {"t": parameter.square().sum() / 2}, scaler=scaler(8.0))
    assert parameter.grad.tolist() == [24.0, 32.0]
    assert metrics["resolved_norm"] == 5.0


def test_a_scaler_that_is_not_enabled_changes_nothing():
    runs = [Run(STRATEGIES["gcond lion"](), each) for each in (None, scaler(enabled=False))]
    for run in runs:
        run.train(window(seed) for seed in range(3))
    assert runs[0].state() == runs[1].state()
    with pytest.raises(NotFinite):
        runs[1].step(window(3, gradient=nan))


def test_fused_optimizers_unscale_for_themselves():
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    plain_run, scaled_run = (Run(STRATEGIES["joint"](), each, settings=settings) for each in (None, scaler()))
    good, overflows = [window(seed) for seed in range(3)], window(7, gradient=1e36)
    plain_run.train(good)
    scaled_run.train([good[0], overflows, *good[1:]])
    torch.testing.assert_close(scaled_run.state(), plain_run.state(), rtol=1e-6, atol=1e-7)


def test_unscale_is_allowed_after_the_step_and_refused_before():
    """`scaler.step` would believe the gradients unscaled that the conductor is about to write."""
    plain_run, run = Run(STRATEGIES["gcond lion"]()), Run(STRATEGIES["gcond lion"](), scaler())
    for seed in range(3):
        plain_run.step(window(seed))
        run.conductor.step(window(seed), run.network.losses, scaler=run.scaler)
        run.scaler.unscale_(run.optimizer)
        run.move()
    assert run.state() == plain_run.state()
    run.scaler.unscale_(run.optimizer)
    with pytest.raises(ValueError, match=r"`scaler`: expected no call of `scaler\.unscale_"):
        run.step(window(3))


def test_unscale_of_an_optimizer_with_other_parameters_too_is_refused_within_the_window():
    """These have gradients already, so torch itself has nothing to say."""
    run, other = Run(STRATEGIES["gcond lion"](), scaler()), nn.Parameter(torch.ones(1))
    run.optimizer.add_param_group({"params": [other]})
    for place, batch in enumerate(window(0)):
        with run.conductor.micro_batch(run.scaler):
            run.conductor.backward(run.network.losses(batch, run.conductor.serves))
        if place == 0:
            run.scaler.scale(other.sum()).backward()
            run.scaler.unscale_(run.optimizer)
    with pytest.raises(ValueError, match=r"`scaler`: expected no call of `scaler\.unscale_"):
        run.conductor.resolve()


@pytest.mark.parametrize("factor", [0.5, 4.0])
def test_a_scale_that_another_optimizer_changes_within_the_window_changes_no_bit(factor):
    plain_run, run = Run(STRATEGIES["gcond lion"]()), Run(STRATEGIES["gcond lion"](), scaler(1024.0))
    for seed in range(2):
        batches = window(seed)
        plain_run.step(batches)
        for place, batch in enumerate(batches):
            with run.conductor.micro_batch(run.scaler):
                run.conductor.backward(run.network.losses(batch, run.conductor.serves))
            if place == 1:
                run.scaler.update(run.scaler.get_scale() * factor)
        run.conductor.resolve()
        run.move()
    assert run.state() == plain_run.state()


# What is no overflow


def test_a_gradient_that_no_scale_mends_ends_in_an_error():
    """65536 is halved 16 times; at 1 the scale can no longer be the reason."""
    run = Run(STRATEGIES["gcond stochastic"](), scaler())
    for _ in range(16):
        assert run.step(window(0, gradient=nan))["skipped"] == 1.0
    assert run.scaler.get_scale() == 1.0
    with pytest.raises(NotFinite, match="step 16: the gradient of task 'b' is not finite, first in parameter trunk"):
        run.step(window(0, gradient=nan))
    assert run.conductor.skipped == 16


def test_a_loss_that_is_not_finite_is_no_overflow():
    run = Run(STRATEGIES["gcond stochastic"](), scaler())
    with pytest.raises(NotFinite, match="step 0: the loss of task 'b' is nan"):
        run.step(window(1, loss=nan))


# Autocast in the losses closure


def gradients(estimator, dtype=None, scaler=None, factor=1.0):
    """What an optimizer sees [P] in the last of two steps, and the metrics; lambdas are multiplied by `factor`."""
    model = ConvNet()
    tasks = {"l1": 0.85 * factor, "ssim": 0.15 * factor}
    resolver = Linear() if isinstance(estimator, Joint) else PCGrad()
    conductor = GradientConductor(model, tasks, estimator, resolver, Raw())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)

    def losses(batch, names):
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            return opposed_losses(model)(batch, names)

    for seed in range(2):
        metrics = conductor.step(image_batches(2, seed), losses, scaler=scaler)
        if scaler is not None:
            scaler.step(optimizer)
            scaler.update()
    return flat_grad(model).clone(), metrics


def distance(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_half_precision_is_close_to_float32(estimator):
    expected, metrics = gradients(estimator)
    for found, low, tolerance in (
        (*gradients(estimator, torch.bfloat16), 0.1),
        (*gradients(estimator, torch.float16, scaler(1024.0)), 0.02),
    ):
        assert found.dtype == torch.float32
        assert 1e-6 < distance(found, expected) < tolerance
        assert low["resolved_norm"] == pytest.approx(metrics["resolved_norm"], rel=tolerance)


def test_small_float16_gradients_live_through_the_scaler_alone():
    """At lambdas of 1e-6 the network's inner gradients are below 6e-8, the smallest float16."""
    small = {"estimator": Sequential(2), "factor": 1e-6}
    expected, _ = gradients(**small)
    lost, _ = gradients(**small, dtype=torch.float16)
    kept, _ = gradients(**small, dtype=torch.float16, scaler=scaler(2.0**24))
    assert distance(lost, expected) > 0.5
    assert distance(kept, expected) < 0.02


def test_a_float16_loss_takes_the_largest_scale_that_its_gradient_allows():
    """The scale 65536 itself is no float16, but lambda 1/4 of it is."""
    parameter = torch.nn.Parameter(torch.ones(2))
    conductor = GradientConductor([parameter], {"t": 0.25}, Joint(1), Linear(), Raw())
    metrics = conductor.step([None], lambda batch, names: {"t": parameter.half().sum()}, scaler=scaler())
    assert "skipped" not in metrics
    assert parameter.grad.tolist() == [16384.0] * 2
