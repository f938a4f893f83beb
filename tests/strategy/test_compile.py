"""A model of `torch.compile` has the same gradients under every estimator."""

from __future__ import annotations

import shutil

import pytest
import torch
from strategy.problems import (
    ESTIMATORS,
    TASKS,
    ConvNet,
    Net,
    TwoHeads,
    batch_of,
    flat_grad,
    image_batches,
    opposed_losses,
    two_head_losses,
)
from torch._inductor.utils import fresh_cache

from gcond.strategy import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic

needs_a_compiler = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not on PATH"),
]
each_backend = pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=needs_a_compiler)])
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def conductor_of(model, estimator, tasks=TASKS, **settings):
    resolver = Linear() if isinstance(estimator, Joint) else PCGrad()
    return GradientConductor(model, tasks, estimator, resolver, Raw(), clip_norm=None, **settings)


def train(model, called, estimator, sizes=(4, 4, 4), push=False):
    """What three steps of SGD saw, [steps, P]; `called` is the model or what torch.compile made of it."""
    conductor = conductor_of(model, estimator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for seed, size in enumerate(sizes):
        images = image_batches(2, seed, size)
        window = images if isinstance(model, ConvNet) else [batch_of(2 * seed + place, size) for place in range(2)]
        for batch in window if push else []:
            with conductor.micro_batch():
                conductor.backward(opposed_losses(called)(batch, conductor.serves))
        conductor.resolve() if push else conductor.step(window, opposed_losses(called))
        gradients.append(flat_grad(model).clone())
        optimizer.step()
    return torch.stack(gradients)


def trained_as_it_is(estimator, make=Net, **options):
    model = make()
    return train(model, model, estimator, **options)


@each_backend
@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_gradients_are_those_of_the_model_as_it_is(estimator, backend):
    make = Net if backend == "aot_eager" else ConvNet
    for push in (False, True)[: 1 + (estimator == Sequential(2))]:
        model = make()
        found = train(model, torch.compile(model, backend=backend), estimator, push=push)
        torch.testing.assert_close(found, trained_as_it_is(estimator, make), **CLOSE)


@each_backend
@pytest.mark.parametrize("dynamic", [True, None])
def test_micro_batches_of_several_sizes(dynamic, backend):
    """Graphs of any size: their backward passes are compiled at once, where torch tells donated buffers otherwise."""
    model, sizes = Net(), (4, 3, 5)
    found = train(model, torch.compile(model, backend=backend, dynamic=dynamic), Sequential(2), sizes)
    torch.testing.assert_close(found, trained_as_it_is(Sequential(2), sizes=sizes), **CLOSE)


def test_nothing_is_compiled_twice():
    """Neither the hooks on parameters nor gradients that are views make torch compile the model again in a step."""
    model, graphs = Net(), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    train(model, torch.compile(model, backend=backend), Sequential(2))
    assert len(graphs) == 1


def test_a_model_compiled_before_the_step_is_refused_and_the_advice_helps():
    """By a backward pass outside the conductor; what the conductor sets is put back."""
    config = torch._functorch.config

    def found(estimator, donates=True):
        torch._dynamo.reset()
        model = Net()
        with config.patch(donated_buffer=donates):
            compiled = torch.compile(model, backend="aot_eager")
            compiled(batch_of(0, 4)).sum().backward()
            gradients = train(model, compiled, estimator)
            with pytest.raises(ZeroDivisionError):
                conductor_of(model, estimator).step([0, 0], lambda batch, names: 1 / 0)
            assert config.donated_buffer == donates
        return gradients

    with pytest.raises(RuntimeError, match=r'`forward`: .*donated_buffer = False.*, or forward="per_task"'):
        found(Sequential(2))
    for estimator, donates in ((Sequential(2, "per_task"), True), (Sequential(2), False)):
        torch.testing.assert_close(found(estimator, donates), trained_as_it_is(estimator), **CLOSE)


def two_heads(estimator, backend=None, steps=2, **settings):
    model = TwoHeads()
    called = torch.compile(model, backend=backend) if backend else model
    conductor = conductor_of(model, estimator, **settings)
    metrics = [conductor.step([batch_of(seed), batch_of(9 + seed)], two_head_losses(called)) for seed in range(steps)]
    assert model.heads["unread"].weight.grad is None
    return flat_grad(model), metrics


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not on PATH")
def test_what_was_compiled_for_one_backward_pass_is_not_taken_from_disk_for_several():
    """torch's cache on disk does not tell a backward pass that writes into saved tensors from one that does not."""
    with fresh_cache():
        two_heads(Stochastic(2), "inductor", steps=1)
        torch._dynamo.reset()
        found, _ = two_heads(Sequential(2), "inductor", steps=1)
    torch.testing.assert_close(found, two_heads(Sequential(2), steps=1)[0], **CLOSE)


@each_backend
@pytest.mark.parametrize(
    ("estimator", "settings"),
    [
        *((estimator, {}) for estimator in ESTIMATORS[1:]),
        *((estimator, {"tasks": {"l1": 1.0, "ssim": 0.0}}) for estimator in (Sequential(2), Stochastic(2))),
        (Sequential(2), {"buffer_dtype": "float32"}),
    ],
    ids=repr,
)
def test_heads_inside_a_compiled_model_stay_apart(estimator, settings, backend):
    """A compiled model gives zeros for the other task's head; the update and all that is logged are the eager model's.

    A head that no loss reads, which a compiled model gives zeros too, has no gradient.
    """
    (found, logged), (expected, by_eager) = (two_heads(estimator, each, **settings) for each in (backend, None))
    torch.testing.assert_close(found, expected, **CLOSE)
    for own, other in zip(logged, by_eager, strict=True):
        if "tasks" in settings:  # the head of lambda 0 cannot be told from others, so that it is the part of a norm
            own, other = ({k: v for k, v in each.items() if "grad_norm" not in k} for each in (own, other))
        assert own == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)
