"""Micro-batches that bring some of the tasks, and windows that end early, against plain autograd and plain means."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from strategy.faulty import TASKS, Network, window
from strategy.problems import assert_refused, flat_grad
from torch import Tensor

from gcond import EMA, GradientConductor, Joint, Raw, Sequential, Stochastic
from gcond.strategy import FAMO, SAMGS, CAGrad, GCond, GradDrop, GradNorm, Linear, PCGrad, TorchJD

BATCHES = [window(seed)[0] for seed in range(6)]
Labelled = tuple[Any, str]  # a batch and the names of the tasks that it has


def labelled(*tasks: str) -> list[Labelled]:
    return list(zip(BATCHES, tasks, strict=False))


def asked(network: Network) -> Any:
    def losses(batch: Labelled, names: Sequence[str]) -> dict[str, Tensor]:
        return network.losses(batch[0], [name for name in names if name in batch[1]])

    return losses


def conductor_of(network: Network, estimator: Any, resolver: Any = None, tasks: Any = TASKS, **more: Any) -> Any:
    parts = (estimator, resolver or Linear(), more.pop("update", Raw()))
    return GradientConductor(network.groups(), tasks, *parts, clip_norm=None, **more)


def assert_is_by_hand(network: Network, metrics: dict[str, float], batches: Sequence[Labelled]) -> None:
    """The weighted sum of gradients, each of a mean over the batches that have the task; mean losses and counts."""
    total = 0.0
    for task, weight in TASKS.items():
        found = [network.losses(batch, [task])[task] for batch, has in batches if task in has]
        assert metrics[f"count/{task}"] == len(found)
        if found:
            mean = torch.stack(found).mean()
            assert metrics[f"loss/{task}"] == pytest.approx(mean.item())
            total = total + weight * mean
    parameters = list(network.parameters())
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


UNEVEN = labelled("abc", "a", "", "ac")


@pytest.mark.parametrize(
    ("estimator", "batches"),
    [
        (Sequential(4), UNEVEN),
        (Sequential(4, "per_task"), UNEVEN),
        (Joint(4), labelled("a", "bc", "abc", "")),
        (Stochastic(6), labelled("a", "", "b", "b", "", "c")),
    ],
    ids=lambda value: repr(value) if hasattr(value, "rows") else "",
)
@pytest.mark.parametrize("scaled", [False, True])
def test_means_are_over_the_micro_batches_that_have_the_task(estimator, batches, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    network = Network().double()
    metrics = conductor_of(network, estimator).step(batches, asked(network), scaler=scaler)
    if scaler:
        torch._foreach_div_([p.grad for p in network.parameters()], 8.0)
    assert_is_by_hand(network, metrics, batches)


def test_micro_batches_are_resolved_between_the_tasks_that_they_have():
    """The mean of three windows of one micro-batch each; the empty ones are left out."""
    network, every, expected = Network().double(), labelled("", "abc", "", "ab", "c"), []
    metrics = conductor_of(network, Sequential(5, resolve_every="micro_batch"), CAGrad()).step(every, asked(network))
    found = flat_grad(network).clone()
    for batch in (every[1], every[3], every[4]):
        tasks = {task: TASKS[task] for task in batch[1]}
        alone = Joint(1) if len(tasks) == 1 else Sequential(1)
        conductor = conductor_of(network, alone, Linear() if len(tasks) == 1 else CAGrad(), tasks)
        conductor.step([batch], asked(network))
        expected.append(flat_grad(network).clone())
    torch.testing.assert_close(found, torch.stack(expected).mean(0))
    assert [metrics[f"count/{task}"] for task in TASKS] == [2, 2, 2]
    assert metrics["resolved_norm"] == pytest.approx(float(found.norm()))


@pytest.mark.parametrize("make", [Sequential, Joint, lambda k: Sequential(k, resolve_every="micro_batch")])
def test_a_window_that_ends_early_is_a_shorter_window(make):
    runs = []
    for own in (make(4), make(3)):
        network = Network().double()
        resolver = Linear() if isinstance(own, Joint) else PCGrad()
        conductor = conductor_of(network, own, resolver, update=EMA(0.5))
        for batch in BATCHES[:3]:
            with conductor.micro_batch():
                conductor.backward(network.losses(batch, list(TASKS)))
        assert conductor.flush()
        assert not conductor.flush()
        runs.append(flat_grad(network))
    torch.testing.assert_close(*runs)


def test_a_stochastic_window_that_ends_early_has_the_tasks_of_its_blocks():
    network = Network().double()
    conductor = conductor_of(network, Stochastic(6))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for batch in BATCHES[:3]:
            with conductor.micro_batch():
                conductor.backward(network.losses(batch, conductor.serves))
        metrics = conductor.resolve()
    assert_is_by_hand(network, metrics | {"count/c": 0}, labelled("a", "a", "b"))


# A task that no micro-batch of a window has


@pytest.mark.parametrize(
    "make",
    [PCGrad, CAGrad, lambda: GCond(norm_cap=0.05), GradDrop, lambda: TorchJD("MGDA"), lambda: TorchJD("NashMTL")],
    ids=["pcgrad", "cagrad", "gcond", "graddrop", "mgda", "nash-mtl"],
)
def test_an_absent_task_takes_no_part(make):
    """The same as a conductor without it, which GCond's history shows in the second window; then it is back."""
    network = Network().double()
    with_it, without = (conductor_of(network, Sequential(2), make(), tasks) for tasks in (TASKS, {"a": 0.5, "b": 0.3}))
    for step in range(2):
        batches = labelled("ab", "ab", "ab", "ab")[2 * step : 2 * step + 2]
        with pytest.warns(UserWarning, match="task 'c' had no loss") if step == 0 else warnings.catch_warnings():
            metrics = with_it.step(batches, asked(network))
        found = flat_grad(network).clone()
        expected = without.step(batches, asked(network))
        torch.testing.assert_close(found, flat_grad(network))
        assert network.own["c"].weight.grad is None
        assert {key for key in metrics if key.endswith("/c")} <= {"count/c", "wins/c"}
        for key, value in expected.items():
            assert metrics[key] == pytest.approx(value, nan_ok=True), key
    metrics = with_it.step(labelled("abc", "abc"), asked(network))
    assert metrics["loss/c"] > 0
    assert "count/c" not in metrics


def test_norms_of_an_absent_task_do_not_fade():
    network, resolver = Network().double(), GCond()
    conductor = conductor_of(network, Sequential(2), resolver)
    conductor.step(labelled("abc", "abc"), asked(network))
    before = resolver.state_dict()["norm_ema"].clone()
    with pytest.warns(UserWarning, match="task 'c' had no loss"):
        conductor.step(labelled("ab", "ab"), asked(network))
    assert (resolver.state_dict()["norm_ema"] == before).tolist() == [False, False, True]


@pytest.mark.parametrize("make", [lambda: GradNorm(lr=0.1), SAMGS, lambda: GCond(norm_ema_bias_correction=True)])
def test_who_keeps_numbers_of_every_task_refuses_a_window_without_one(make):
    network = Network().double()
    conductor = conductor_of(network, Sequential(2), make())
    conductor.step(labelled("a", "abc"), asked(network))
    before = repr(conductor.resolver.state_dict())
    assert_refused("`losses`: .* found none of ..c", conductor.step, labelled("a", "ab"), asked(network))
    assert repr(conductor.resolver.state_dict()) == before
    assert all(parameter.grad is None for parameter in network.parameters())


def test_one_row_for_all_tasks_needs_as_many_losses_of_each():
    network = Network().double()
    refused = r"`losses`: Joint .* found \[2, 1, 1\]"
    assert_refused(refused, conductor_of(network, Joint(2)).step, labelled("a", "abc"), asked(network))
    weighted = conductor_of(network, Joint(2), FAMO())
    assert_refused("`losses`: .* found none of ..b", weighted.step, labelled("abc", "ac"), asked(network))


def test_a_window_without_any_loss():
    network = Network().double()
    conductor = conductor_of(network, Sequential(2))
    assert_refused("`losses`: .*at least one task", conductor.step, labelled("", ""), asked(network))
    with conductor.micro_batch():
        conductor.backward({})
    assert not conductor.flush()
    assert conductor.steps == 0


def test_history_outlives_micro_batches_without_any_loss():
    """Resolved by micro-batch or by window of one, GCond compares with the last gradients that there were."""
    for resolve_every in ("window", "micro_batch"):
        runs = []
        for batches in (labelled("abc", "abc"), [labelled("abc")[0], (BATCHES[2], ""), labelled("", "abc")[1]]):
            network = Network().double()
            conductor = conductor_of(network, Sequential(1, resolve_every=resolve_every), GCond())
            for batch in batches:
                with conductor.micro_batch():
                    conductor.backward(asked(network)(batch, list(TASKS)))
                conductor.flush()
            runs.append([flat_grad(network), conductor.state_dict()["reference"]])
        assert all(map(torch.equal, *runs))
