"""A GradScaler and autocast, on the CPU: the gradients are those without, and a step that overflows is left out."""

from __future__ import annotations

from math import isclose, nan

import pytest
import torch
from strategy.faulty import STRATEGIES, Run, each_strategy, plain, window
from strategy.problems import ESTIMATORS, ConvNet, flat_grad, image_batches, opposed_losses
from torch import nn

from gcond import GradientConductor, Joint, Linear, NotFinite, PCGrad, Raw, Sequential

OVERFLOWS = 1e36  # times a gradient near 1: finite in float32, and not finite once it is multiplied by 65536


def scaler(scale=65536.0, **settings):
    return torch.amp.GradScaler("cpu", init_scale=scale, **settings)


# The same as without


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


def test_the_clip_acts_on_unscaled_gradients():
    for clip_norm in (None, 1e-2, 1e4):
        runs = [Run(STRATEGIES["gcond stochastic"]() | {"clip_norm": clip_norm}, each) for each in (None, scaler())]
        expected, found = ([run.step(window(seed)) for seed in range(3)] for run in runs)
        assert plain(found) == plain(expected)
        assert [metrics["clipped"] for metrics in expected] == [float(clip_norm == 1e-2)] * 3
        assert runs[1].state() == runs[0].state()


def test_a_scaler_that_is_not_enabled_changes_nothing():
    runs = [Run(STRATEGIES["gcond lion"](), each) for each in (None, scaler(enabled=False))]
    for run in runs:
        run.train(window(seed) for seed in range(3))
    assert runs[0].state() == runs[1].state()
    with pytest.raises(NotFinite):
        runs[1].step(window(3, gradient=OVERFLOWS * 1e6))


def test_fused_optimizers_unscale_for_themselves():
    settings = {"lr": 1e-2, "weight_decay": 0.1, "fused": True}
    plain_run = Run(STRATEGIES["joint"](), settings=settings)
    scaled_run = Run(STRATEGIES["joint"](), scaler(), settings=settings)
    good, bad = [window(seed) for seed in range(3)], window(7, gradient=OVERFLOWS)
    plain_run.train(good)
    scaled_run.train([good[0], bad, *good[1:]])
    torch.testing.assert_close(scaled_run.state(), plain_run.state(), rtol=1e-6, atol=1e-7)


# Overflow


@each_strategy
def test_a_step_that_overflows_is_left_out(options):
    """Parameters, optimizer, history, momentum and the resolver are as if it had not been; the first one, and later."""
    run, clean = Run(options(), scaler()), Run(options())
    for seed in range(3):
        before, seen = run.state(), len(run.gradients)
        metrics = run.step(window(9, gradient=OVERFLOWS * 4**seed))
        assert metrics.keys() == {"skipped", "loss/a", "loss/b", "loss/c"}
        assert metrics["skipped"] == 1.0
        assert run.state() == before
        assert run.scaler.get_scale() == 65536 / 2 ** (seed + 1)
        assert len(run.gradients) == seen, "the optimizer was asked to step"
        run.step(window(seed))
        clean.step(window(seed))
    assert run.state() == clean.state()
    assert (run.conductor.steps, run.conductor.skipped) == (6, 3)


def test_the_same_gradient_is_taken_at_a_scale_that_fits():
    """It is left out at 65536, 32768 …, until it fits: nothing is wrong with it."""
    run = Run(STRATEGIES["joint"](), scaler())
    skipped = [run.step(window(0, gradient=OVERFLOWS)).get("skipped", 0.0) for _ in range(14)]
    assert 1.0 in skipped
    assert skipped == sorted(skipped, reverse=True)
    assert skipped[-1] == 0.0
    assert isclose(run.scaler.get_scale(), 65536 / 2 ** sum(skipped))


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
    run.step(window(0))
    before = run.state()
    with pytest.raises(NotFinite, match="step 1: the loss of task 'b' is nan"):
        run.step(window(1, loss=nan))
    assert run.state() == before


@each_strategy
def test_the_policy_skip_holds_with_a_scaler(options):
    """Also at a scale of 1, where nothing counts as an overflow."""
    for wrong in ({"loss": nan}, {"own_gradient": nan}):
        run, clean = (Run(options() | {"nonfinite": "skip"}, scaler(1.0)) for _ in range(2))
        run.train([window(0), window(8, **wrong), window(1)])
        clean.train([window(0), window(1)])
        assert run.conductor.skipped == 1
        assert run.state() == clean.state()


# scaler.unscale_


def test_unscale_after_the_step_is_allowed():
    plain_run, scaled_run = Run(STRATEGIES["gcond lion"]()), Run(STRATEGIES["gcond lion"](), scaler())
    for seed in range(3):
        plain_run.step(window(seed))
        scaled_run.conductor.step(window(seed), scaled_run.network.losses, scaler=scaled_run.scaler)
        scaled_run.scaler.unscale_(scaled_run.optimizer)
        scaled_run.scaler.step(scaled_run.optimizer)
        scaled_run.scaler.update()
    assert scaled_run.state() == plain_run.state()


def test_unscale_before_the_step_is_refused():
    """`scaler.step` would believe the gradients unscaled that the conductor is about to write."""
    run = Run(STRATEGIES["joint"](), scaler())
    run.step(window(0))
    run.scaler.unscale_(run.optimizer)
    with pytest.raises(ValueError, match=r"`scaler`: expected no call of `scaler\.unscale_"):
        run.step(window(1))


# Autocast in the losses closure


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
