"""A model of `torch.compile` has the same gradients under every estimator."""

from __future__ import annotations

import shutil

import pytest
import torch
from strategy.problems import ESTIMATORS, ConvNet, flat_grad, image_batches, opposed_losses
from torch import nn
from torch._inductor.utils import fresh_cache

from gcond.strategy import EMA, GCond, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic

TASKS = {"l1": 0.85, "ssim": 0.15}
INDUCTOR = pytest.param(
    "inductor",
    marks=[
        pytest.mark.slow,
        pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not on PATH"),
    ],
)
each_estimator = pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)


@pytest.fixture(autouse=True)
def _nothing_compiled():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


class MLP(nn.Module):
    """Images [B, 3, 8, 8] -> [B, 2]."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Linear(192, 6)
            self.head = nn.Linear(6, 2)

    def forward(self, images):
        return self.head(torch.tanh(self.body(images.flatten(1))))


def conductor_of(model, estimator):
    return GradientConductor(
        model.parameters(), TASKS, estimator, Linear() if isinstance(estimator, Joint) else PCGrad(), Raw()
    )


def train(model, called, estimator, sizes=(4, 4, 4), **step):
    """What three steps of SGD saw, [steps, P]; `called` is the model or what torch.compile made of it."""
    conductor = conductor_of(model, estimator)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    gradients = []
    for seed, size in enumerate(sizes):
        conductor.step(image_batches(2, seed, size), opposed_losses(called), **step)
        gradients.append(flat_grad(list(model.parameters())).clone())
        optimizer.step()
    return torch.stack(gradients)


@each_estimator
@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
def test_gradients_are_those_of_the_model_as_it_is(estimator, backend):
    make = MLP if backend == "aot_eager" else ConvNet
    plain, compiled = make(), make()
    found = train(compiled, torch.compile(compiled, backend=backend), estimator)
    torch.testing.assert_close(found, train(plain, plain, estimator), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("dynamic", [True, None])
def test_micro_batches_of_several_sizes(dynamic, backend):
    """Graphs of any size: their backward passes are compiled at once, where torch tells donated buffers otherwise."""
    plain, compiled = MLP(), MLP()
    called = torch.compile(compiled, backend=backend, dynamic=dynamic)
    found = train(compiled, called, Sequential(2), sizes=(4, 3, 5))
    torch.testing.assert_close(found, train(plain, plain, Sequential(2), sizes=(4, 3, 5)), rtol=1e-4, atol=1e-6)


def test_nothing_is_compiled_twice():
    """Neither the hooks on parameters nor gradients that are views make torch compile the model again in a step."""
    model, graphs = MLP(), []

    def backend(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    train(model, torch.compile(model, backend=backend), Sequential(2))
    assert len(graphs) == 1


def donating(model):
    """The compiled model, as a backward pass outside the conductor leaves it."""
    compiled = torch.compile(model, backend="aot_eager")
    compiled(image_batches(1)[0]).sum().backward()
    return compiled


def test_a_model_compiled_before_the_step_is_refused_with_advice():
    model = MLP()
    called = donating(model)
    with pytest.raises(RuntimeError, match=r'`forward`: .*donated_buffer = False.*, or forward="per_task"'):
        train(model, called, Sequential(2))


@pytest.mark.parametrize("advice", ["per_task", "donated_buffer"])
def test_the_advice_helps(advice):
    plain, model = MLP(), MLP()
    estimator = Sequential(2, "per_task") if advice == "per_task" else Sequential(2)
    with torch._functorch.config.patch(donated_buffer=advice == "per_task"):
        found = train(model, donating(model), estimator)
    torch.testing.assert_close(found, train(plain, plain, estimator), rtol=1e-4, atol=1e-6)


def test_other_errors_of_a_backward_pass_are_left_as_they_are():
    parameter = nn.Parameter(torch.ones(2))
    shared = parameter.square().sum()
    conductor = GradientConductor([parameter], {"t": 1.0}, Joint(1), Linear(), Raw())
    shared.backward()
    with pytest.raises(RuntimeError, match="Trying to backward through the graph a second time"):
        conductor.step([None], lambda batch, names: {"t": shared})


def test_setting_for_donated_buffers_is_put_back():
    before = torch._functorch.config.donated_buffer
    model = MLP()
    train(model, model, Sequential(2))
    with pytest.raises(ZeroDivisionError):
        conductor_of(model, Sequential(2)).step([0, 0], lambda batch, names: 1 / 0)
    assert torch._functorch.config.donated_buffer == before


class TwoHeads(nn.Module):
    """Images [B, 3, 8, 8] -> a prediction [B, 1] for each task, from a head of its own, and one that no loss reads."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.body = nn.Linear(192, 6)
            self.heads = nn.ModuleDict({name: nn.Linear(6, 1) for name in (*TASKS, "unread")})

    def forward(self, images):
        features = torch.tanh(self.body(images.flatten(1)))
        return {name: head(features) for name, head in self.heads.items()}


def two_head_losses(called):
    def losses(images, names):
        outputs = called(images)
        values = {"l1": (outputs["l1"] - 1).abs().mean(), "ssim": ((outputs["ssim"] + 2) ** 2).mean()}
        return {name: values[name] for name in names}

    return losses


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor compiles with g++, which is not on PATH")
def test_what_was_compiled_for_one_backward_pass_is_not_taken_from_disk_for_several():
    """torch's cache on disk does not tell a backward pass that writes into saved tensors from one that does not."""

    def gradient(estimator, compile_it):
        torch._dynamo.reset()
        model = TwoHeads()
        conductor = conductor_of(model, estimator)
        conductor.step(image_batches(2), two_head_losses(torch.compile(model) if compile_it else model))
        return flat_grad(list(model.parameters()))

    with fresh_cache():
        gradient(Stochastic(2), compile_it=True)
        found = gradient(Sequential(2), compile_it=True)
    torch.testing.assert_close(found, gradient(Sequential(2), compile_it=False), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("backend", ["aot_eager", INDUCTOR])
@pytest.mark.parametrize("estimator", ESTIMATORS[1:], ids=repr)
@pytest.mark.parametrize("buffer_dtype", [None, "float64"])
@pytest.mark.parametrize("lambdas", [TASKS, {"l1": 1.0, "ssim": 0.0}], ids=repr)
def test_heads_inside_a_compiled_model_stay_apart(estimator, backend, buffer_dtype, lambdas):
    """A compiled model gives zeros for the other task's head; the update and all that is logged are the eager model's.

    A head that no loss reads, which a compiled model gives zeros too, has no gradient.
    """

    def stepped(compile_it):
        model = TwoHeads()
        losses = two_head_losses(torch.compile(model, backend=backend) if compile_it else model)
        conductor = GradientConductor(
            model, lambdas, estimator, PCGrad(), Raw(), clip_norm=None, buffer_dtype=buffer_dtype
        )
        metrics = [conductor.step(image_batches(2, seed), losses) for seed in range(2)]
        assert model.heads["unread"].weight.grad is None
        return flat_grad(list(model.parameters())), metrics

    (found, logged), (expected, by_eager) = stepped(True), stepped(False)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    for own, other in zip(logged, by_eager, strict=True):
        if lambdas["ssim"] == 0:  # whose head cannot be told from others, so that it is the part of a norm
            own, other = ({k: v for k, v in each.items() if "grad_norm" not in k} for each in (own, other))
        assert own == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)


@pytest.mark.slow
def test_one_step_of_the_masked_autoencoder():
    from gcond.model import MaskedAutoencoder

    generator = torch.Generator().manual_seed(0)
    batches = [torch.randn(4, 3, 64, 64, generator=generator) for _ in range(2)]
    hidden = torch.stack([torch.randperm(16, generator=generator)[:12] for _ in range(4)])

    def step(compile_it):
        torch.manual_seed(0)
        model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1)
        called = torch.compile(model, backend="aot_eager") if compile_it else model

        def losses(images, names):
            predictions = called(images, hidden)
            values = {"l1": (predictions - 0.3).abs().mean(), "ssim": (predictions + 0.1).square().mean()}
            return {name: values[name] for name in names}

        conductor = GradientConductor(model.parameter_groups(), TASKS, Sequential(2), GCond(), EMA(0.9))
        metrics = conductor.step(batches, losses)
        torch.optim.AdamW(model.parameters(), lr=1e-3).step()
        return flat_grad(list(model.parameters())), metrics, model

    plain, expected, _ = step(False)
    found, metrics, model = step(True)
    assert float((found - plain).norm()) < 1e-5 * float(plain.norm())
    assert metrics == pytest.approx(expected, rel=1e-4, abs=1e-6, nan_ok=True)
    assert bool(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]).isfinite().all())
