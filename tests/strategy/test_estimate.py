"""How task gradients are gathered: of all tasks, or of those that micro-batches bring; plain autograd, plain means."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from strategy.faulty import TASKS, Network, window
from strategy.problems import ESTIMATORS, Net, assert_refused, batch_of, flat_grad, opposed_losses
from strategy.problems import TASKS as PAIR
from torch import Tensor

from gcond import EMA, GradientConductor, Joint, Raw, Sequential, Stochastic
from gcond.strategy import FAMO, SAMGS, CAGrad, GCond, GradDrop, GradNorm, Linear, PCGrad, TorchJD

BATCHES = [window(seed)[0] for seed in range(6)]
Labelled = tuple[Any, str]  # a batch and the names of the tasks that it has


def labelled(*tasks: str) -> list[Labelled]:
    return list(zip(BATCHES, tasks, strict=False))


def asked(network: Network, calls: list[tuple[str, ...]] | None = None) -> Any:
    """Losses of labelled batches; `calls` are the names of each call."""

    def losses(batch: Labelled, names: Sequence[str]) -> dict[str, Tensor]:
        if calls is not None:
            calls.append(tuple(names))
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
        assert metrics.get(f"count/{task}", len(found)) == len(found)
        if found:
            mean = torch.stack(found).mean()
            assert metrics[f"loss/{task}"] == pytest.approx(mean.item())
            total = total + weight * mean
    parameters = list(network.parameters())
    expected = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


EVEN, UNEVEN = labelled(*["abc"] * 4), labelled("abc", "a", "", "ac")


@pytest.mark.parametrize(
    ("estimator", "calls", "windows"),
    [
        (Joint(4), [("a", "b", "c")] * 4, [EVEN, labelled("a", "bc", "abc", "")]),
        (Sequential(4), [("a", "b", "c")] * 4, [EVEN, UNEVEN]),
        (Sequential(4, "per_task"), [("a",), ("b",), ("c",)] * 4, [EVEN, UNEVEN]),
        (Sequential(4, "shared", "micro_batch"), [("a", "b", "c")] * 4, [EVEN]),
        (Stochastic(6), [(task,) for task in "aabbcc"], [labelled(*"aabbcc"), labelled("a", "", "b", "b", "", "c")]),
    ],
    ids=lambda value: repr(value) if hasattr(value, "rows") else "",
)
@pytest.mark.parametrize("scaled", [False, True])
def test_gradients_are_autograd_s_of_means_over_the_micro_batches_that_have_the_task(estimator, calls, windows, scaled):
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0) if scaled else None
    for batches in windows:
        network, names = Network().double(), []
        metrics = conductor_of(network, estimator).step(batches, asked(network, names), scaler=scaler)
        if scaler:
            torch._foreach_div_([p.grad for p in network.parameters()], 8.0)
        assert names == calls
        assert ("count/a" in metrics) == (batches is not windows[0])
        assert_is_by_hand(network, metrics, batches)


def test_micro_batch_resolution_averages_the_resolved_gradients():
    """PCGrad of two tasks by hand on every micro-batch; resolving their means would give something else."""
    model, batches = Net().double(), [batch_of(seed).double() for seed in range(4)]
    ask, rows = opposed_losses(model), []
    for batch in batches:
        weighted = [PAIR[task] * value for task, value in ask(batch, list(PAIR)).items()]
        parts = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in weighted]
        rows.append([torch.cat([part.flatten() for part in each]) for each in parts])
    assert all(a @ b < 0 for a, b in rows)
    expected = torch.stack([a + b - a @ b / (b @ b) * b - a @ b / (a @ a) * a for a, b in rows]).mean(0)
    metrics = GradientConductor(model, PAIR, Sequential(4, resolve_every="micro_batch"), PCGrad()).step(batches, ask)
    torch.testing.assert_close(flat_grad(model), expected)
    assert metrics["resolved_norm"] == pytest.approx(float(expected.norm()))
    assert metrics["cosine/all"] == pytest.approx(min(float(a @ b / a.norm() / b.norm()) for a, b in rows))
    GradientConductor(model, PAIR, Sequential(4), PCGrad()).step(batches, ask)
    assert float((flat_grad(model) - expected).norm() / expected.norm()) > 1e-3


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_one_graph_at_a_time(estimator):
    """When the next losses are asked for, no earlier graph holds anything."""
    model, saved = Net(), weakref.WeakSet()

    def pack(tensor):
        saved.add(keep := Saved(tensor))
        return keep

    def losses(batch, names):
        assert len(saved) == 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda keep: keep.tensor):
            values = opposed_losses(model)(batch, names)
        assert len(saved) > 0
        return values

    GradientConductor(model, PAIR, estimator, Linear()).step([batch_of(0), batch_of(1)], losses)
    assert len(saved) == 0


# Micro-batches that bring some of the tasks, and windows that end early


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


@pytest.mark.parametrize("make", [Sequential, Joint])
def test_losses_of_one_number_are_scalars_in_whatever_shape(make):
    gradients = []
    for shapes in ([(), (), ()], [(1,), (), (1, 1)]):
        network = Network()

        def losses(batch: Labelled, names: Sequence[str], network: Any = network, shapes: Any = shapes) -> Any:
            values = network.losses(batch[0], names).items()
            return {name: value.reshape(shape) for (name, value), shape in zip(values, shapes, strict=True)}

        conductor_of(network, make(2)).step(labelled("abc", "abc"), losses)
        gradients.append(flat_grad(network))
    assert torch.equal(*gradients)


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
