"""Losses and gradients that are not finite: named, before anything moves; or the step is left out and counted."""

from __future__ import annotations

import re
from math import inf, nan

import pytest
import torch
from strategy.faulty import STRATEGIES, TASKS, Network, Run, each_strategy, plain, window
from torch import nn

from gcond import EMA, GradientConductor, Joint, NotFinite, Raw, Resolution, Resolver, Sequential, Stochastic, Unsolved
from gcond.strategy import Linear, PCGrad, TorchJD

WRONG = [{"loss": inf}, {"gradient": nan}, {"own_gradient": nan}]
OVERFLOW = [{"gradient": 1e36 * 4**n} for n in range(3)]  # finite in float32, and not finite times 65536


@pytest.mark.parametrize(
    "estimator", [Joint(3), Sequential(3), Sequential(3, "per_task", "micro_batch"), Stochastic(3)]
)
def test_step_task_and_first_parameter_are_named(estimator):
    joint = isinstance(estimator, Joint)
    run = Run({"estimator": estimator, "resolver": Linear() if joint else PCGrad(), "update": Raw()})
    run.train([window(0), window(1, gradient=1e15, loss=1e15)])
    gradient = f"the gradient of task '{'a+b+c' if joint else 'b'}' is not finite, first in parameter"
    for wrong, message in (
        ({"loss": nan}, "the loss of task 'b' is nan"),
        ({"loss": inf}, "the loss of task 'b' is inf"),
        ({"loss": -inf}, "the loss of task 'b' is -inf"),
        ({"gradient": nan}, f"{gradient} trunk.weight"),
        ({"own_gradient": inf}, f"{gradient} own.b.weight"),
    ):
        with pytest.raises(NotFinite, match=f"^step 2: {re.escape(message)}$"):
            run.step(window(2, **wrong))


def test_parameters_without_names_are_called_by_group_and_place():
    network = Network()
    groups = {"rest": [*network.trunk.parameters(), *network.head.parameters()], "own": network.own.parameters()}
    conductor = GradientConductor(groups, TASKS, Sequential(3), Linear(), Raw())
    with pytest.raises(NotFinite, match=r"step 0: .* task 'b' is not finite, first in parameter own\[2\]$"):
        conductor.step(window(0, own_gradient=nan), network.losses)


def test_gradients_whose_square_overflows_point_at_no_parameter():
    parameter = nn.Parameter(torch.ones(2, dtype=torch.float64))
    conductor = GradientConductor([parameter], {"a": 1}, Joint(1), Linear(), Raw())
    with pytest.raises(NotFinite, match="not finite, first in no single parameter"):
        conductor.step([1e200], lambda batch, names: {"a": parameter.sum() * batch})


# Nothing moves

MODES = {  # policy, scale, what is wrong
    "raised": ("raise", None, WRONG),
    "left out": ("skip", None, WRONG),
    "left out at a scale of 1": ("skip", 1.0, WRONG),
    "overflow": ("raise", 65536.0, OVERFLOW),
}


@each_strategy
@pytest.mark.parametrize("mode", MODES)
def test_skipped_steps_leave_no_trace(options, mode):
    """The first of all, two in a row, and the last before a state is saved."""
    policy, scale, wrong = MODES[mode]
    scaler = None if scale is None else torch.amp.GradScaler("cpu", init_scale=scale)
    run, clean = Run(options() | {"nonfinite": policy}, scaler), Run(options())
    for seed, each in enumerate(wrong):
        before, moved = run.state(), len(run.gradients)
        for _ in range(2 if seed == 1 else 1):
            if mode == "raised":
                with pytest.raises(NotFinite):
                    run.step(window(9, **each))
            else:
                metrics = run.step(window(9, **each))
                assert metrics.keys() == {"skipped", "loss/a", "loss/b", "loss/c"}
                assert metrics["skipped"] == 1.0
                assert metrics["loss/b"] == inf or "loss" not in each
            assert run.state() == before
            assert scaler or all(parameter.grad is None for parameter in run.network.parameters())
        if mode == "overflow":
            assert scaler.get_scale() == 65536 / 2 ** (1, 3, 4)[seed]
            assert len(run.gradients) == moved, "the optimizer was asked to step"
        assert plain(run.step(window(seed))) == plain(clean.step(window(seed)))
    assert run.state() == clean.state()
    resumed = Run(options())
    resumed.conductor.load_state_dict(run.conductor.state_dict())
    assert (resumed.conductor.steps, resumed.conductor.skipped) == ((3, 0) if mode == "raised" else (7, 4))


def test_famo_still_checks_its_bounds_after_a_loss_that_was_nan():
    run = Run(STRATEGIES["famo"]())
    with pytest.raises(NotFinite):
        run.step(window(0, loss=nan))
    with pytest.raises(ValueError, match="FAMO: expected losses above 0"):
        run.step(window(0, loss=-1.0))


def test_a_resolver_has_seen_the_micro_batches_before_the_bad_one():
    """As documented for `resolve_every="micro_batch"`; momentum, parameters and optimizer are untouched even so."""
    run = Run(STRATEGIES["gcond micro-batch"]() | {"nonfinite": "skip"})
    run.step(window(0))
    before = run.state()
    assert run.step([*window(1)[:2], window(1, gradient=nan)[2]])["skipped"] == 1.0
    after = run.state()
    changed = {key for key in before["conductor"] if before["conductor"][key] != after["conductor"][key]}
    assert changed == {"resolver", "resolutions", "reference"}
    assert after["conductor"]["resolutions"] == before["conductor"]["resolutions"] + 2
    assert (after["optimizer"], after["network"]) == (before["optimizer"], before["network"])
    assert "skipped" not in run.step(window(2))


@pytest.mark.parametrize(
    ("buffer_dtype", "clip_norm", "left_out"),
    [(None, None, True), (None, 1.0, True), ("float32", None, True), ("float32", 1.0, False)],
)
def test_a_sum_that_float16_does_not_hold_is_left_out(buffer_dtype, clip_norm, left_out):
    """Two gradients of 40000, whose sum has a finite norm; in float32 it is clipped before it becomes float16."""
    parameter = nn.Parameter(torch.zeros(2, dtype=torch.float16))
    settings = {"buffer_dtype": buffer_dtype, "clip_norm": clip_norm, "nonfinite": "skip"}
    parts = (Sequential(1), Linear(), EMA())
    conductor = GradientConductor([parameter], {"a": 1.0, "b": 1.0}, *parts, **settings)
    conductor.step([0], lambda _, names: {name: (parameter.float() * torch.tensor([4e4, 0])).sum() for name in names})
    assert conductor.skipped == left_out
    assert (None if left_out else [1.0, 0.0]) == (parameter.grad if left_out else parameter.grad.tolist())
    assert (conductor.update.state_dict()["momentum"] is None) == left_out


# A resolver that fails


class Divides(Resolver):
    """Weights, or coordinates, of 0 / 0."""

    def __init__(self, works_on_coordinates):
        self.works_on_coordinates = works_on_coordinates

    def resolve(self, conflict):
        if self.works_on_coordinates:
            return Resolution(None, blockwise=lambda rows, start: rows.sum(0) / 0)
        return Resolution(torch.zeros(3, 3, dtype=torch.float64) / 0)


@pytest.mark.parametrize("estimator", [Sequential(3), Sequential(3, resolve_every="micro_batch")])
@pytest.mark.parametrize("coordinates", [False, True])
def test_what_a_resolver_makes_is_checked_before_the_momentum_takes_it_in(estimator, coordinates):
    run = Run({"estimator": estimator, "resolver": Divides(coordinates)})
    before = run.state()["conductor"]["update"]
    with pytest.raises(NotFinite, match=r"step 0: Divides made a gradient of norm (nan|inf) from finite"):
        run.step(window(0))
    assert run.state()["conductor"]["update"] == before
    left_out = Run({"estimator": estimator, "resolver": Divides(coordinates), "nonfinite": "skip"})
    assert left_out.step(window(0))["skipped"] == 1.0
    assert left_out.state()["network"] == run.state()["network"]


@pytest.mark.parametrize("resolve_every", ["window", "micro_batch"])
def test_a_problem_without_a_solution_raises_is_skipped_or_has_its_fallback(resolve_every):
    def unsolvable(on_unsolved, **settings):
        """After a good window, the losses of one in which task "b" has a gradient of zero, everywhere."""
        parts = {"resolver": TorchJD("FairGrad", alpha=2.0, on_unsolved=on_unsolved), "update": Raw()}
        run = Run({"estimator": Sequential(3, resolve_every=resolve_every)} | parts | settings)
        run.step(window(0))
        return run, lambda: run.step(window(1, gradient=0.0, own_gradient=0.0))

    _, step = unsolvable("raise")
    with pytest.raises(Unsolved, match=r"^FairGrad, resolution \d: there is no solution") as raised:
        step()
    assert isinstance(raised.value, NotFinite)
    assert list(raised.value.losses) == list(TASKS)
    run, step = unsolvable("raise", nonfinite="skip")
    before = run.state()
    assert step() == {"skipped": 1.0, "unsolved": 1.0} | {f"loss/{t}": loss for t, loss in raised.value.losses.items()}
    assert [run.state()[part] for part in ("network", "optimizer")] == [before["network"], before["optimizer"]]
    assert "unsolved" not in run.step(window(2))
    assert (run.conductor.steps, run.conductor.skipped) == (3, 1)
    run, step = unsolvable("mean")
    with pytest.warns(UserWarning, match="the mean takes its place"):
        assert step()["unsolved"] == 1.0
    assert run.step(window(2))["unsolved"] == 0.0
