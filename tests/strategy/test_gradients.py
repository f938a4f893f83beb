"""The flat buffer: views that autograd and optimizers understand, and inner products that are exact enough."""

from __future__ import annotations

import pytest
import torch
from strategy.problems import TASKS, ConvNet, image_batches, linear, opposed_losses, plain_gradients, prescribed
from torch import nn

from gcond import CAGrad, GCond, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy import gradients as module
from gcond.strategy.gradients import TaskGradients

ADAMW = {"fused": {"fused": True}, "foreach": {"foreach": True}, "single": {"foreach": False, "fused": False}}


def train(model, losses, batches, estimator=None, options=None, groups=None):
    """Values of all parameters after one step of AdamW per batch; without an estimator, those of ordinary training."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, betas=(0.9, 0.95), weight_decay=0.05, **(options or {}))
    conductor = estimator and linear(groups or model.parameters(), estimator)
    for batch in batches:
        if conductor:
            conductor.step([batch], losses)
        else:
            plain_gradients(model, losses, batch)
        optimizer.step()
    return [p.detach().clone() for p in model.parameters()]


# Views


@pytest.mark.parametrize("options", ADAMW.values(), ids=ADAMW)
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_training_is_plain_training(options, memory_format):
    """Joint and linear is ordinary training, bit for bit; a task at a time it is, up to rounding."""
    batches = [b.to(memory_format=memory_format) for b in image_batches(6)]

    def trained(estimator):
        model = ConvNet().to(memory_format=memory_format)
        return train(model, opposed_losses(model), batches, estimator, options)

    expected = trained(None)
    assert not torch.equal(expected[0], ConvNet().encoder[0].weight)
    torch.testing.assert_close(trained(Joint(1)), expected, rtol=0, atol=0)
    torch.testing.assert_close(trained(Sequential(1)), expected, rtol=2e-4, atol=2e-4)


def test_parameter_with_gaps_in_memory():
    """A slice of a larger tensor: its strides cannot stand in the flat buffer."""
    found = []
    for with_conductor in (True, False):
        model, generator = nn.Linear(3, 4), torch.Generator().manual_seed(0)
        model.weight = nn.Parameter(torch.randn(4, 6, generator=generator)[:, ::2])
        model.bias = nn.Parameter(torch.empty_strided((4,), (3,)).normal_(generator=generator))
        assert (model.weight.stride(), model.bias.stride()) == ((6, 2), (3,))
        batches = torch.randn(5, 7, 3, generator=generator)
        found.append(train(model, opposed_losses(model), batches, Joint(1) if with_conductor else None))
    torch.testing.assert_close(*found, rtol=0, atol=0)


# Which parameters


class Branches(nn.Module):
    """A trunk for both tasks, a head for each, and a parameter that nothing reaches."""

    def __init__(self, dtype=torch.float32):
        super().__init__()
        self.trunk = nn.Parameter(torch.tensor([1.0, -2.0, 0.5], dtype=dtype))
        self.first = nn.Parameter(torch.tensor([2.0, 1.0], dtype=dtype))
        self.unused = nn.Parameter(torch.tensor([7.0], dtype=dtype))
        self.second = nn.Parameter(torch.tensor([-1.0], dtype=dtype))

    def losses(self, batch, names):
        """Trunk gradients (1, 0, 0) and (-4, 3, 0): cosine -.8, critical; each head's gradient is its own value."""
        values = {
            "l1": self.trunk[0] + 0.5 * (self.first**2).sum(),
            "ssim": 20 - 4 * self.trunk[0] + 3 * self.trunk[1] + 0.5 * (self.second**2).sum(),
        }
        return {name: values[name] for name in names}


@pytest.mark.parametrize("make", [Linear, PCGrad, CAGrad, GCond, lambda: GCond(smooth=False)])
@pytest.mark.parametrize("estimator", [Sequential(2), Stochastic(2)])
def test_heads_of_one_task_take_no_part_in_the_conflict(make, estimator):
    """They are updated by their own task's gradient; the trunk is resolved as if they did not exist.

    What no task reaches has no gradient, so that no optimizer decays it.
    """
    model = Branches(torch.float64)
    conductor = GradientConductor(model.parameters(), TASKS, estimator, make(), Raw())
    metrics = conductor.step([0, 1], model.losses)
    torch.testing.assert_close(model.first.grad, 0.85 * model.first.detach())
    torch.testing.assert_close(model.second.grad, 0.15 * model.second.detach())
    assert model.unused.grad is None
    assert metrics["cosine/all"] == pytest.approx(-0.8)
    assert metrics["grad_norm/l1"] == pytest.approx(0.85)

    trunk = nn.Parameter(model.trunk.detach().clone())
    alone = GradientConductor([trunk], {"t0": 1.0, "t1": 1.0}, Sequential(1), make(), Raw())
    alone.step([0], prescribed([trunk], [[0.85, 0, 0], [-0.6, 0.45, 0]]))
    torch.testing.assert_close(model.trunk.grad, trunk.grad)
    whole = torch.cat([model.trunk.grad, model.first.grad, model.second.grad])
    assert metrics["resolved_norm"] == pytest.approx(float(whole.norm()))


def test_frozen_tied_and_repeated_parameters():
    """Frozen ones stay as they are; a tied or repeated one counts once, and its gradient is the whole one."""
    found = []
    for estimator in (Joint(1), None):
        model = ConvNet()
        model.encoder[0].weight.requires_grad_(False)
        model.tied = nn.Linear(6, 2, bias=False)
        model.tied.weight = model.head.weight

        def losses(batch, names, model=model):
            hidden = torch.tanh(model.body(model.encoder(batch).flatten(1)))
            return opposed_losses(lambda _: model.head(hidden) + 2 * model.tied(hidden))(batch, names)

        groups = {"head": [model.tied.weight, *model.head.parameters()], "rest": list(model.parameters())}
        found.append(train(model, losses, image_batches(3), estimator, groups=groups))
        assert model.encoder[0].weight.grad is None
    torch.testing.assert_close(*found, rtol=0, atol=0)
    conductor = linear(groups, Joint(1))
    assert conductor.gradients.size == sum(p.numel() for p in model.parameters() if p.requires_grad)


# Inner products


def filled(parameters, rows, values):
    gradients = TaskGradients(parameters, rows)
    gradients.rows.copy_(values)
    return gradients


@pytest.mark.parametrize("chunk", [1, 3, 7, 1000])
def test_statistics_across_chunk_borders(monkeypatch, chunk):
    """Against float64 `J @ J.T`, with groups that alternate in the buffer and parameters of one task alone."""
    monkeypatch.setitem(module.CHUNK_ELEMENTS, "cpu", chunk)
    torch.manual_seed(0)
    sizes = {"encoder": (5, 8), "head": (7, 1)}
    parameters = {name: [nn.Parameter(torch.zeros(n)) for n in counts] for name, counts in sizes.items()}
    values, reference = torch.randn(3, 21), torch.randn(3, 21)
    gradients = filled(parameters, 3, values)
    reached = torch.ones(3, 4, dtype=torch.bool)
    reached[:, 1] = torch.tensor([False, True, False])  # the second encoder parameter, entries 5 to 12, is task 1's
    gradients.merge_reached(reached[None])
    found = gradients.summarise(gradients.products(reference))

    own, previous = values.double(), reference.double()
    shared = torch.ones(21, dtype=torch.bool)
    shared[5:13] = False
    torch.testing.assert_close(found.gram, own[:, shared] @ own[:, shared].T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.cross, own[:, shared] @ previous[:, shared].T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.exclusive, (own[:, 5:13] ** 2).sum(1), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.group_grams["encoder"], own[:, :5] @ own[:, :5].T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(found.group_grams["head"], own[:, 13:] @ own[:, 13:].T, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(sum(found.group_grams.values()), found.gram, rtol=1e-12, atol=1e-12)
    assert found.gram.dtype == torch.float64
    torch.testing.assert_close(gradients.dot(values[0], values[1]), own[0] @ own[1], rtol=1e-12, atol=1e-12)
