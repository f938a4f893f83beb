"""How task gradients are gathered, against plain autograd on each micro-batch."""

from __future__ import annotations

import weakref

import pytest
import torch
from strategy.problems import ESTIMATORS, flat_grad
from torch import nn

from gcond.strategy import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic

TASKS = {"a": 0.85, "b": 0.15}
GOALS = {"a": 1.0, "b": -3.0, "c": 0.2}


class Problem:
    """A small network in float64 and losses per micro-batch; `asked` are the names of each call."""

    def __init__(self):
        torch.manual_seed(3)
        self.model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 2)).double()
        self.parameters = list(self.model.parameters())
        self.asked = []

    def losses(self, batch, names):
        self.asked.append(tuple(names))
        outputs = self.model(batch)
        return {name: ((outputs - GOALS[name]) ** 2).mean() * (1 + GOALS[name] ** 2) for name in names}

    def gradient(self, task, *batches):
        """[P], of the mean of one task's losses on some micro-batches, lambda not applied; and that mean."""
        loss = torch.stack([self.losses(batch, [task])[task] for batch in batches]).mean()
        return torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, self.parameters)]), loss.item()

    def step(self, estimator, batches, resolver=None, tasks=TASKS):
        self.asked.clear()
        conductor = GradientConductor(self.parameters, tasks, estimator, resolver or Linear(), Raw(), clip_norm=None)
        metrics = conductor.step(batches, self.losses)
        return flat_grad(self.parameters), metrics


def windows(count):
    generator = torch.Generator().manual_seed(8)
    return list(torch.randn(count, 6, 4, generator=generator, dtype=torch.float64))


@pytest.mark.parametrize(
    ("estimator", "asked"),
    [
        (Joint(4), [("a", "b")] * 4),
        (Sequential(4), [("a", "b")] * 4),
        (Sequential(4, "per_task"), [("a",), ("b",)] * 4),
        (Sequential(4, "shared", "micro_batch"), [("a", "b")] * 4),
    ],
)
def test_every_estimator_but_stochastic_is_plain_autograd_of_the_mean(estimator, asked):
    problem, batches = Problem(), windows(4)
    found, metrics = problem.step(estimator, batches)
    assert problem.asked == asked
    gradients = {task: problem.gradient(task, *batches) for task in TASKS}
    torch.testing.assert_close(found, sum(weight * gradients[task][0] for task, weight in TASKS.items()))
    for task, (_, loss) in gradients.items():
        assert metrics[f"loss/{task}"] == pytest.approx(loss)


def test_stochastic_gives_each_task_the_mean_over_its_own_block():
    problem, batches = Problem(), windows(6)
    tasks = {"a": 0.5, "b": 2.0, "c": 3.0}
    found, metrics = problem.step(Stochastic(6), batches, tasks=tasks)
    assert problem.asked == [("a",)] * 2 + [("b",)] * 2 + [("c",)] * 2
    parts = {task: problem.gradient(task, *batches[2 * i : 2 * i + 2]) for i, task in enumerate(tasks)}
    torch.testing.assert_close(found, sum(weight * parts[task][0] for task, weight in tasks.items()))
    for task, (gradient, loss) in parts.items():
        assert metrics[f"grad_norm/{task}"] == pytest.approx(tasks[task] * float(gradient.norm()))
        assert metrics[f"loss/{task}"] == pytest.approx(loss)


def test_micro_batch_resolution_averages_the_resolved_gradients():
    """PCGrad of two tasks by hand on every micro-batch; resolving their means would give something else."""
    problem, batches = Problem(), windows(4)
    found, metrics = problem.step(Sequential(4, resolve_every="micro_batch"), batches, PCGrad())
    rows = [[weight * problem.gradient(task, batch)[0] for task, weight in TASKS.items()] for batch in batches]
    assert all(a @ b < 0 for a, b in rows)
    expected = torch.stack([a + b - a @ b / (b @ b) * b - a @ b / (a @ a) * a for a, b in rows]).mean(0)
    torch.testing.assert_close(found, expected)
    assert metrics["resolved_norm"] == pytest.approx(float(expected.norm()))
    cosines = [float(a @ b / a.norm() / b.norm()) for a, b in rows]
    assert metrics["cosine/all"] == pytest.approx(min(cosines))
    at_once, _ = problem.step(Sequential(4), batches, PCGrad())
    assert float((at_once - expected).norm() / expected.norm()) > 1e-3


class Saved:
    """A tensor that a graph keeps for its backward pass."""

    def __init__(self, tensor):
        self.tensor = tensor


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_one_graph_at_a_time(estimator):
    """When the next losses are asked for, no earlier graph holds anything."""
    problem, saved = Problem(), weakref.WeakSet()

    def pack(tensor):
        saved.add(keep := Saved(tensor))
        return keep

    def losses(batch, names):
        assert len(saved) == 0
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda keep: keep.tensor):
            values = problem.losses(batch, names)
        assert len(saved) > 0
        return values

    GradientConductor(problem.parameters, TASKS, estimator, Linear(), Raw()).step(windows(2), losses)
    assert len(saved) == 0
