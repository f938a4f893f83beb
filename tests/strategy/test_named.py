"""A conductor with as few arguments as may be: parts by name, the defaults, and what an optimizer is told."""

from __future__ import annotations

import warnings

import pytest
import torch
from strategy.faulty import TASKS, Network, window
from strategy.problems import flat_grad

from gcond import EMA, GradientConductor, Joint, LionLARS, Raw, Sequential, Stochastic
from gcond.strategy import GCond, Linear, TorchJD
from gcond.strategy.named import ESTIMATORS, RESOLVERS, UPDATES


@pytest.mark.parametrize("name", RESOLVERS)
def test_every_method_runs_by_its_name_with_the_estimator_that_suits_it(name):
    network = Network()
    conductor = GradientConductor(network.groups(), TASKS, resolver=name, accumulate=3)
    assert isinstance(conductor.estimator, Sequential if conductor.resolver.needs_task_gradients else Joint)
    assert conductor.estimator.accumulation_steps == 3
    conductor.step(window(0), network.losses)
    assert flat_grad(list(network.parameters())).any()


def test_names_are_the_objects():
    network = Network()
    for estimator, found in (("joint", Joint(3)), ("sequential", Sequential(3)), ("stochastic", Stochastic(3))):
        assert GradientConductor(network, TASKS, estimator, "linear", accumulate=3).estimator == found
    for update, kind in (("raw", Raw), ("ema", EMA), ("lion_lars", LionLARS)):
        assert type(GradientConductor(network, TASKS, update=update).update) is kind
    named, built = (GradientConductor(network, TASKS, resolver=each).resolver for each in ("mgda", TorchJD("MGDA")))
    assert (named.name, named.tolerance) == (built.name, built.tolerance)
    assert {*ESTIMATORS, *UPDATES} == {"joint", "sequential", "stochastic", "raw", "ema", "lion_lars"}


def test_the_defaults_leave_the_optimizer_what_is_the_optimizer_s():
    """GCond of each micro-batch's task gradients, unclipped and without momentum of its own."""
    network = Network()
    conductor = GradientConductor(network, TASKS)
    assert (type(conductor.resolver), type(conductor.update), conductor.clip_norm) == (GCond, Raw, None)
    assert conductor.estimator == Sequential(1)
    plain = GradientConductor(network, TASKS, resolver=Linear())
    assert plain.estimator == Joint(1)


@pytest.mark.parametrize(
    ("update", "optimizer", "told"),
    [
        ("ema", lambda p: torch.optim.AdamW(p), "EMA averages .*beta1 or momentum 0.9"),
        ("lion_lars", lambda p: torch.optim.SGD(p, momentum=0.8), "LionLARS averages .*momentum 0.8"),
        ("ema", lambda p: torch.optim.AdamW(p, betas=(0.0, 0.95)), None),
        ("ema", lambda p: torch.optim.SGD(p), None),
        ("raw", lambda p: torch.optim.AdamW(p), None),
        ("raw", lambda p: torch.optim.AdamW(p[2:]), "lacks 2 .*trunk.weight.*has 0"),
        ("raw", lambda p: torch.optim.AdamW([*p, torch.nn.Parameter(torch.ones(1))]), "lacks 0 .*has 1"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_told(update, optimizer, told):
    network = Network()
    conductor = GradientConductor(network, TASKS, update=update)
    with pytest.warns(UserWarning, match=told) if told else warnings.catch_warnings():
        if not told:
            warnings.simplefilter("error")
        conductor.attach(optimizer(list(network.parameters())))
