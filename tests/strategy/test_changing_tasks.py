"""Weights that change, tasks that are added, given up, or come in another order; what is kept follows their names."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategy.faulty import Network, plain, window
from strategy.problems import assert_refused, flat_grad, saved

from gcond import EMA, Conflict, GradientConductor, Joint, Raw, Resolution, Resolver, Sequential, Stochastic
from gcond.strategy import DWA, FAMO, SAMGS, UW, CAGrad, GCond, GradNorm, Linear, PCGrad, TorchJD

TWO, THREE = {"a": 0.5, "b": 0.3}, {"a": 0.5, "b": 0.3, "c": 0.2}
METHODS = {
    "linear": lambda: (Joint(2), Linear()),
    "cagrad": lambda: (Sequential(2), CAGrad()),
    "gcond": lambda: (Sequential(2), GCond(dominance_window=2)),
    "gcond micro-batch": lambda: (Sequential(2, resolve_every="micro_batch"), GCond()),
    "gradnorm": lambda: (Sequential(2), GradNorm(lr=0.05)),
    "sam-gs": lambda: (Sequential(2), SAMGS()),
    "nash-mtl": lambda: (Sequential(2), TorchJD("NashMTL")),
    "dwa": lambda: (Joint(2), DWA(period=1)),
    "famo": lambda: (Joint(2), FAMO(lr=0.1)),
    "uw": lambda: (Joint(2), UW(lr=0.1)),
}


class Run:
    """A conductor on a network that moves only as the test wants it to."""

    def __init__(self, tasks: Any, name: str = "linear", **settings: Any) -> None:
        self.network = Network().double()
        parts = (*METHODS[name](), EMA(0.5))
        self.conductor = GradientConductor(self.network.groups(), tasks, *parts, **settings)

    def steps(self, *seeds: int) -> dict[str, float]:
        for seed in seeds:
            metrics = self.conductor.step(window(seed)[:2], self.network.losses)
            with torch.no_grad():  # the same on all of a test's networks
                for place, parameter in enumerate(self.network.parameters()):
                    parameter.add_(0.01 * (place % 3 - 1) * (seed + 1))
        return metrics

    def gradient(self) -> torch.Tensor:
        return flat_grad(self.network).clone()


def test_a_weight_leaves_what_the_resolver_keeps():
    network = Network()
    conductor = GradientConductor(network, TWO, Sequential(1), Counting())
    conductor.step(window(0)[:1], network.losses)
    conductor.set_weight("a", 0.4)
    assert conductor.resolver.state_dict() == {"count": 1}


@pytest.mark.parametrize("name", ["linear", "cagrad", "gcond"])
def test_a_weight_counts_from_the_next_window_on(name):
    changed, fresh = Run(THREE, name), Run(THREE | {"b": 0.05, "c": 0.0}, name)
    for each, weight in (("b", 0.05), ("c", 0.0)):
        changed.conductor.set_weight(each, weight)
    assert changed.conductor.tasks == {"a": 0.5, "b": 0.05, "c": 0.0}
    assert repr(changed.steps(0)) == repr(fresh.steps(0))
    assert torch.equal(changed.gradient(), fresh.gradient())


def test_a_weight_that_cannot_be():
    run = Run(TWO)
    run.conductor.set_weight("a", 0.0)
    assert_refused("`tasks`: .*not all 0", run.conductor.set_weight, "b", 0.0)
    assert_refused("`tasks`: .*'b': -1", run.conductor.set_weight, "b", -1.0)
    assert_refused("`name`: .*`add_task`", run.conductor.set_weight, "c", 1.0)
    assert run.conductor.tasks == {"a": 0.0, "b": 0.3}
    for name in ("uw", "gradnorm", "nash-mtl"):
        assert_refused("`weight`: .* replaces the lambdas", Run(TWO, name).conductor.set_weight, "a", 1.0)
    with run.conductor.micro_batch():
        run.conductor.backward(run.network.losses(window(0)[0], ["a", "b"]))
    for call in (
        lambda: run.conductor.set_weight("a", 0.1),
        lambda: run.conductor.add_task("c", 0.1),
        lambda: run.conductor.remove_task("a"),
    ):
        assert_refused("expected no window to be open", call)


@pytest.mark.parametrize("name", METHODS)
def test_the_order_of_tasks_in_a_state_does_not_matter(name):
    """Conductors with the tasks in two orders, each continued from the state of one: they go on as that one does."""
    first = Run(THREE, name)
    first.steps(0, 1, 2)
    state = saved(first.conductor.state_dict())
    found = []
    for tasks in (THREE, {task: THREE[task] for task in "cab"}):
        run = Run(tasks, name)
        run.network.load_state_dict(first.network.state_dict())
        run.conductor.load_state_dict(state)
        metrics = run.steps(3, 4)
        found.append((metrics, run.gradient()))
    (metrics, gradient), (other, reordered) = found
    torch.testing.assert_close(reordered, gradient)
    for key, value in metrics.items():
        if not any(part in key for part in ("+", "residual", "pair_cosine")):  # the names are in another order
            assert other[key] == pytest.approx(value, nan_ok=True, rel=1e-6), key


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_comes_and_goes_leaves_nothing(name):
    one, other = Run(TWO, name), Run(TWO, name)
    for run in (one, other):
        run.steps(0, 1)
    before = plain(one.conductor.state_dict()["reference"])
    one.conductor.add_task("c", 0.2)
    one.conductor.remove_task("c")
    assert plain(one.conductor.state_dict()["reference"]) == before
    for run in (one, other):
        run.steps(2, 3)
    torch.testing.assert_close(one.gradient(), other.gradient())
    assert list(one.conductor.state_dict()["tasks"]) == ["a", "b"]


FIRST = {"norm_ema": 1.0, "weights": 1.0, "momentum": 0.0, "logits": 0.0, "log_variances": 0.0}


@pytest.mark.parametrize("name", METHODS)
def test_a_task_that_is_added_is_trained_and_the_rest_goes_on(name):
    """What is kept of "a" and "b" stays; "c" begins with the method's first numbers."""
    run = Run(TWO, name)
    run.steps(0, 1, 2)
    before = run.conductor.resolver.state_dict()
    run.conductor.add_task("c", 0.2)
    after = run.conductor.resolver.state_dict()
    for key in before.keys() & {*FIRST, "first_losses", "previous"}:
        assert torch.equal(after[key][:2], before[key]), key
        assert key not in FIRST or bool((after[key][2] == FIRST[key]).all()), key
    metrics = run.steps(3)
    assert metrics["loss/c"] > 0
    assert run.network.own["c"].weight.grad.any()
    assert all(torch.isfinite(p.grad).all() for p in run.network.parameters())
    if name == "gradnorm":
        assert run.conductor.resolver.state_dict()["first_losses"][2] == metrics["loss/c"]


def test_losses_of_an_added_task_count_in_dwa_from_its_first_two_periods_on():
    run = Run(TWO, "dwa")
    run.steps(0, 1, 2)
    run.conductor.add_task("c", 1.0)
    found, losses = [], []
    for seed in (3, 4, 5):
        metrics = run.steps(seed)
        losses.append([metrics[f"loss/{task}"] for task in THREE])
        found.append(torch.tensor([metrics[f"dwa/weight/{task}"] for task in THREE], dtype=torch.float64))
    ratios = torch.tensor(losses[1], dtype=torch.float64) / torch.tensor(losses[0], dtype=torch.float64)
    torch.testing.assert_close(found[2], 3 * torch.softmax(ratios / 2.0, 0))
    assert float(found[0].sum()) == pytest.approx(3.0)


@pytest.mark.parametrize("name", ["uw", "dwa", "gcond"])
def test_a_task_that_is_given_up_was_never_there(name):
    """Of methods that keep each task's numbers apart; GCond's "c" is absent before, so that history is of two."""
    run, two = Run(THREE, name), Run(TWO, name)
    ask = run.network.losses
    run.steps(0, 1)
    two.steps(0, 1)
    if name == "gcond":
        run.network.losses = lambda batch, names: ask(batch, [task for task in names if task != "c"])
        with pytest.warns(UserWarning, match="'c'"):
            run.steps(2)
        two.steps(2)
    run.conductor.remove_task("c")
    metrics, expected = run.steps(3), two.steps(3)
    for key, value in expected.items():
        if key.startswith(("uw/", "dwa/", "loss/", "wins/", "zone/")):
            assert metrics[key] == pytest.approx(value), key
    assert run.network.own["c"].weight.grad is None
    if name == "gcond":
        kept = run.conductor.resolver.state_dict()["norm_ema"]
        torch.testing.assert_close(kept, two.conductor.resolver.state_dict()["norm_ema"])


def test_winners_follow_their_names():
    resolver = GCond(dominance_window=3)
    resolver.load_state_dict(resolver.state_dict() | {"wins": [0, 2, 2]})
    resolver.follow_tasks(["a", "b", "c"], ["c", "d", "b"])
    assert resolver.state_dict()["wins"] == [0, 0]


def test_a_second_task_needs_what_two_tasks_need():
    """One row is enough for one task, and is refused with the second: it would be the plain sum."""
    network = Network()
    conductor = GradientConductor(network, {"a": 1.0}, Joint(1), PCGrad())
    conductor.step(window(0)[:1], network.losses)
    assert_refused("`estimator`: .*PCGrad needs a gradient per task", conductor.add_task, "b", 1.0)
    assert dict(conductor.tasks) == {"a": 1.0}


class Counting(Resolver):
    """Remembers something of which nobody knows whose it is, and begins anew where it is checked."""

    remembers = ("count",)

    def check(self, tasks: dict[str, float], groups: tuple[str, ...]) -> None:
        self._count = 0

    def resolve(self, conflict: Conflict) -> Resolution:
        self._count += 1
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))


@pytest.mark.parametrize(
    ("estimator", "resolver", "change", "refusal"),
    [
        (Stochastic(4), Linear(), ("add_task", "c", 0.2), "`accumulation_steps`: expected a multiple of 3"),
        (Sequential(2), Counting(), ("add_task", "c", 0.2), "`tasks`: Counting does not say which"),
        (Sequential(2), GCond(norm_ema_bias_correction=True), ("add_task", "c", 0.2), "`norm_ema_bias_correction`"),
        (Joint(2), FAMO({"b": 0.0}), ("remove_task", "b"), "`min_losses`"),
        (Joint(2), Linear(), ("add_task", "a", 0.2), "`name`"),
        (Joint(2), Linear(), ("remove_task", "c"), "`name`"),
    ],
)
def test_what_cannot_follow_is_refused_and_nothing_has_changed(estimator, resolver, change, refusal):
    network = Network()
    conductor = GradientConductor(network, TWO, estimator, resolver, Raw(), accumulate=estimator.accumulation_steps)
    batches = [window(seed)[0] for seed in range(estimator.accumulation_steps)]
    conductor.step(batches, network.losses)
    before = repr(conductor.resolver.state_dict())
    method, *arguments = change
    assert_refused(refusal, getattr(conductor, method), *arguments)
    assert (dict(conductor.tasks), repr(conductor.resolver.state_dict())) == (TWO, before)
    conductor.step(batches, network.losses)
