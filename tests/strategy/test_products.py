"""Inner products in both ways of computing them, and what a window allocates."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from strategy.faulty import STRATEGIES, Run, each_strategy, window
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gcond.strategy import EMA, GCond, GradientConductor, PCGrad, Raw, Sequential
from gcond.strategy import products as module


def exact(rows, other):
    """With numpy's extended precision."""
    rows, other = rows.float().numpy().astype(np.longdouble), other.float().numpy().astype(np.longdouble)
    return torch.from_numpy((rows @ other.T).astype(np.float64))


WAYS = [
    pytest.param("chunks", id="by chunks"),
    pytest.param("each pair", id="the compiled function, not compiled"),
    pytest.param("compiled", id="compiled", marks=pytest.mark.slow),
]


def way(name, monkeypatch):
    if name == "chunks":
        monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", 37)
        return module.by_chunks
    if name == "each pair":
        monkeypatch.setattr(module, "_compiler", lambda: module._each_pair)
    return module.compiled


@pytest.mark.parametrize("name", WAYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tasks", [1, 2, 5])
def test_products_are_those_of_extended_precision(name, dtype, tasks, monkeypatch):
    """Wherever the part begins."""
    products = way(name, monkeypatch)
    torch.manual_seed(0)
    whole = torch.randn(2, tasks, 1000).to(dtype)
    for start, stop in [(0, 1000), (16, 1000), (5, 900), (7, 9), (3, 3)]:
        rows, other = whole[:, :, start:stop]
        for reference in (other, None):
            sums = torch.ones(tasks, 2 * tasks, dtype=torch.float64)
            products(sums, rows, reference)
            torch.testing.assert_close(sums[:, :tasks] - 1, exact(rows, rows), rtol=1e-12, atol=1e-13)
            across = exact(rows, other if reference is not None else torch.zeros_like(other))
            torch.testing.assert_close(sums[:, tasks:] - 1, across, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("name", WAYS[:2])
def test_tiny_numbers_do_not_vanish(name, monkeypatch):
    rows = torch.full((2, 100), 1e-24)
    sums = torch.zeros(2, 4, dtype=torch.float64)
    way(name, monkeypatch)(sums, rows, None)
    assert sums[:, :2].tolist() == [[pytest.approx(1e-46, rel=1e-6)] * 2] * 2


@pytest.mark.slow
def test_compiled_conductor_gives_the_same_steps():
    def run(compiled):
        run = Run({**STRATEGIES["gcond stochastic"](), "compiled": compiled})
        metrics = run.train([window(seed) for seed in range(4)])
        return metrics, run.gradients

    plain, found = run(False), run(True)
    for expected, metrics in zip(plain[0], found[0], strict=True):
        assert metrics == pytest.approx(expected, rel=1e-9, abs=1e-12, nan_ok=True)
    for expected, gradient in zip(plain[1], found[1], strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-9)


def test_bfloat16_buffers_are_close_to_float32():
    options = STRATEGIES["gcond bfloat16"]
    low, exact = Run(options()), Run(options() | {"buffer_dtype": None})
    for run in (low, exact):
        run.train(window(seed) for seed in range(2))
        assert {p.grad.dtype for p in run.network.parameters()} == {torch.float32}
    assert low.conductor.gradients.rows.dtype == torch.bfloat16
    for found, expected in zip(low.gradients, exact.gradients, strict=True):
        assert 1e-5 < float((found - expected).norm() / expected.norm()) < 3e-2


class Allocations(TorchDispatchMode):
    """Sizes in numbers of what operations make, views and results in place left out."""

    def __init__(self):
        super().__init__()
        self.sizes = []
        self._known = set()

    def __torch_dispatch__(self, operation, types, arguments=(), keywords=None):
        given = {
            id(tensor.untyped_storage())
            for tensor in tree_leaves((arguments, keywords))
            if isinstance(tensor, torch.Tensor)
        }
        made = operation(*arguments, **(keywords or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(tensor.untyped_storage()) not in given:
                self.sizes.append(tensor.numel())
        return made


@each_strategy
def test_no_temporary_has_the_size_of_a_row(options, monkeypatch):
    """From the third window on: all that a method needs is there by then. Blocks do not change the gradient."""
    whole, run, allocations = Run(options()), Run(options()), Allocations()
    whole.train([window(seed) for seed in range(3)])
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", 2)
    run.train([window(seed) for seed in range(2)])
    with allocations:
        run.conductor.step(window(2), run.network.losses)
    run.move()
    assert max(allocations.sizes) < run.conductor.gradients.size
    for found, expected in zip(run.gradients, whole.gradients, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("estimator", "resolver", "options", "expected"),
    [
        (Sequential(2), GCond(), {}, 4 * 4),  # bytes a parameter: two rows and two of the window before
        (Sequential(2), GCond(), {"reference_dtype": torch.bfloat16}, 2 * 4 + 2 * 2),
        (Sequential(2), GCond(), {"buffer_dtype": "bfloat16"}, 4 * 2),
        (Sequential(2), PCGrad(), {}, 2 * 4),
        (Sequential(2, resolve_every="micro_batch"), PCGrad(), {}, 3 * 4),
    ],
)
def test_what_is_held(estimator, resolver, options, expected):
    """In rows, history and resolved gradient."""
    weight = torch.nn.Parameter(torch.ones(1000))
    conductor = GradientConductor([weight], {"a": 0.7, "b": 0.3}, estimator, resolver, Raw(), **options)
    target = torch.randn(2, 1000)
    for _ in range(3):
        conductor.step([0, 1], lambda k, names: {name: ((weight - target[k]) ** 2).sum() for name in names})
    held = [conductor.gradients.rows, conductor._reference, conductor._direction]
    assert sum(tensor.nbytes for tensor in held if tensor is not None) == expected * 1000


def test_low_precision_reference_changes_nothing_but_the_comparison_with_it():
    """Gradients that bfloat16 holds exactly: then the steps are those of a float32 reference, to the bit."""

    def steps(**options):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.zeros(50))
        settings = {"stability_reference": "accumulated", "tie_breaking_weights": (1.0, 0.0)}
        conductor = GradientConductor(
            [weight], {"a": 1.0, "b": 1.0}, Sequential(1), GCond(**settings), EMA(0.5), clip_norm=None, **options
        )
        found = []
        for slopes in torch.randint(-3, 4, (5, 2, 50)).float():
            found.append(conductor.step([slopes], lambda slopes, names: dict(zip(names, slopes @ weight, strict=True))))
            found[-1]["gradient"] = weight.grad.tolist()
        return found

    plain = steps()
    assert any(metrics["wins/a"] for metrics in plain)
    assert any(metrics["wins/b"] for metrics in plain)
    assert steps(reference_dtype="bfloat16") == plain
