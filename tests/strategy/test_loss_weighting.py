"""UW, FAMO and DWA against autograd on their objectives, TorchJD, values by hand, and across a restart."""

from __future__ import annotations

from itertools import pairwise
from math import exp, log

import pytest
import torch
from strategy.problems import assert_refused
from torchjd import scalarization

from gcond import DWA, FAMO, UW, GradientConductor, GradNorm, Joint, Raw

METHODS = {"uw": UW, "famo": FAMO, "dwa": lambda: DWA(period=2)}
TASKS = {"near": 0.85, "far": 0.15}


def started(method, tasks=("a", "b")):
    method.check(dict.fromkeys(tasks, 1.0), ("all",))
    return method


def window(method, *losses):
    """Weigh each micro-batch's losses, then close the window; returns the last weights and the metrics."""
    losses = torch.tensor(losses, dtype=torch.float64)
    weights = [method.weigh(row) for row in losses][-1]
    return weights, method.after_window(losses.mean(0))


class Problem:
    """Two positive losses of three parameters whose batches differ; Adam outside, as for a network."""

    def __init__(self):
        self.point = torch.nn.Parameter(torch.tensor([1.5, -0.5, 0.3], dtype=torch.float64))
        self.optimizer = torch.optim.Adam([self.point], lr=0.05)

    def losses(self, batch, names):
        near = ((self.point - batch) ** 2).sum() + 0.1
        far = 20 * ((self.point + 1 + batch) ** 2).mean() + torch.exp(self.point[0])
        return {name: {"near": near, "far": far}[name] for name in names}

    @staticmethod
    def batches(step, count=2):
        return list(torch.randn(count, 3, generator=torch.Generator().manual_seed(step), dtype=torch.float64))


def train(method, steps):
    """The point after each step."""
    problem, path = Problem(), []
    conductor = GradientConductor([problem.point], TASKS, Joint(2), method, Raw(), clip_norm=None)
    for step in range(steps):
        conductor.step(problem.batches(step), problem.losses)
        problem.optimizer.step()
        path.append(problem.point.detach().clone())
    return path


# UW


@pytest.mark.oracle("uw", "stationary point s = log L")
def test_uw_settles_where_s_is_log_loss():
    """Constant losses: exp(-s) L = 1, so the weights become 1 / (2 L)."""
    method = started(UW(lr=0.1))
    for _ in range(300):
        weights, _ = window(method, [4.0, 0.25])
    torch.testing.assert_close(weights, torch.tensor([1 / 8, 2.0]).double(), rtol=1e-4, atol=0)
    torch.testing.assert_close(
        method.state_dict()["log_variances"], torch.tensor([log(4), log(0.25)]).double(), rtol=1e-4, atol=1e-4
    )


@pytest.mark.oracle("uw", "TorchJD in a training loop")
def test_uw_trains_network_and_variances_as_torchjd_does():
    path = train(UW(), 12)
    problem, twin = Problem(), scalarization.UW(2).double()
    adam = torch.optim.Adam(twin.parameters(), lr=0.025)
    for step in range(12):
        problem.optimizer.zero_grad()
        adam.zero_grad()
        for batch in problem.batches(step):
            losses = problem.losses(batch, ["near", "far"])
            (twin(torch.stack([losses["near"], losses["far"]])) / 2).backward()
        problem.optimizer.step()
        adam.step()
        torch.testing.assert_close(path[step], problem.point.detach())
    assert float(twin.log_var.detach().abs().min()) > 0.1


# FAMO


@pytest.mark.oracle("famo", "autograd twin of the objective")
@pytest.mark.parametrize("min_losses", [{}, {"far": -3.0, "near": 0.05}], ids=str)
@pytest.mark.parametrize("decay", [0.0, 1e-3])
def test_famo_is_its_objective_by_autograd(min_losses, decay):
    """Network: d/dtheta of sum (z_i / c) log D_i, c held. Logits: Adam on J^T (log D of the last window - of this)."""
    path = train(FAMO(min_losses, weight_decay=decay), 15)
    problem = Problem()
    bounds = torch.tensor([min_losses.get("near", 0.0), min_losses.get("far", 0.0)], dtype=torch.float64)
    logits = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([logits], lr=0.025, weight_decay=decay)
    previous, farthest = None, 0.0
    for step in range(15):
        z, seen, total = torch.softmax(logits, 0).detach(), [], 0.0
        for batch in problem.batches(step):
            losses = problem.losses(batch, ["near", "far"])
            gaps = torch.stack([losses["near"], losses["far"]]) - bounds + 1e-8
            c = (z / gaps).sum().detach()
            total = total + (z / c * torch.log(gaps)).sum() / 2
            seen.append(gaps.detach())
        problem.point.grad = torch.autograd.grad(total, problem.point)[0]
        problem.optimizer.step()
        torch.testing.assert_close(path[step], problem.point.detach())
        logs = torch.log(torch.stack(seen).mean(0))
        if previous is not None:
            (logits.grad,) = torch.autograd.grad(torch.softmax(logits, 0), logits, grad_outputs=previous - logs)
            adam.step()
            farthest = max(farthest, float(logits.detach().abs().max()))
        previous = logs
    assert farthest > 0.02


@pytest.mark.oracle("famo", "TorchJD's logits")
def test_famo_logits_move_as_torchjd_s():
    """TorchJD's `update` after its forward pass is one of our windows; ours keeps the first window's losses."""
    method, twin = started(FAMO()), scalarization.FAMO(2).double()
    random = torch.Generator().manual_seed(0)
    losses = torch.rand(20, 2, generator=random, dtype=torch.float64) + 0.1
    window(method, losses[0].tolist())
    for before, after in pairwise(losses):
        twin(before.clone().requires_grad_())
        twin.update(after)
        window(method, after.tolist())
    probe = torch.tensor([2.0, 0.5], dtype=torch.float64, requires_grad=True)
    twin(probe).backward()
    torch.testing.assert_close(method.weigh(probe.detach()), probe.grad)
    assert abs(float(probe.grad[0]) - 0.2) > 1e-3  # 1/2 : 2 at equal logits


def test_famo_refuses_a_loss_at_its_bound_even_if_the_mean_is_above():
    method = started(FAMO({"b": 1.0}))
    method.weigh(torch.tensor([1.0, 1.0]))
    method.weigh(torch.tensor([1.0, 9.0]))
    refusal = r"losses above 1.0 \(`min_losses`\), found 1.0 for task 'b'"
    assert_refused(refusal, method.after_window, torch.tensor([1.0, 5.0], dtype=torch.float64))


# DWA


@pytest.mark.oracle("dwa", "weights by hand")
def test_dwa_by_hand():
    """Periods of two windows; means (2, 2), then (1, 2): r = (.5, 1), weights 2 softmax(r / 2)."""
    method = started(DWA(temperature=2.0, period=2))
    for losses in ([1.0, 1.0], [3.0, 3.0], [1.5, 2.0], [0.5, 2.0]):
        weights, metrics = window(method, losses)
        assert weights.tolist() == [1, 1]
        assert metrics == {"dwa/weight/a": 1.0, "dwa/weight/b": 1.0}
    slow, fast = exp(0.5), exp(0.25)
    for losses in ([4.0, 1.0], [4.0, 3.0]):
        weights, _ = window(method, losses)
        torch.testing.assert_close(weights, torch.tensor([fast, slow]).double() * 2 / (fast + slow))
    faster, slower = exp(1 / 2), exp(4 / 2)  # means (4, 2) over (1, 2)
    weights, _ = window(method, [1.0, 1.0])
    torch.testing.assert_close(weights, torch.tensor([slower, faster]).double() * 2 / (faster + slower))


@pytest.mark.oracle("dwa", "TorchJD")
@pytest.mark.parametrize("period", [1, 3])
def test_dwa_is_torchjd_s(period):
    method, twin = started(DWA(temperature=0.7, period=period), "abc"), scalarization.DWA(temperature=0.7)
    random = torch.Generator().manual_seed(1)
    for step in range(20):
        losses = (torch.rand(3, generator=random, dtype=torch.float64) + 0.1).requires_grad_()
        weights, metrics = window(method, losses.tolist())
        twin(losses).backward()
        torch.testing.assert_close(weights, losses.grad)
        assert sum(metrics.values()) == pytest.approx(3)
        if step % period == period - 1:
            twin.step()


# all


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_restored_state_replaces_an_unfinished_window(make):
    trained, other = started(make()), started(make())
    for step in range(6):
        window(trained, [1.0 + step, 2.0])
    other.weigh(torch.tensor([-1.0, 1.0], dtype=torch.float64))
    kept = trained.state_dict()
    before = repr(kept)
    other.load_state_dict(kept)
    for _ in range(2):
        found, expected = window(other, [3.0, 2.0]), window(trained, [3.0, 2.0])
        assert torch.equal(found[0], expected[0])
        assert found[1] == expected[1]
    assert abs(float(found[0][0] / found[0][1]) - 1) > 0.01
    assert repr(kept) == before  # what was handed out before stays
    assert other.weigh(torch.tensor([1.0, 2.0])).dtype == torch.float32  # the losses'


@pytest.mark.parametrize("make", METHODS.values(), ids=METHODS)
def test_weights_replace_the_lambdas(make):
    """The first window's gradient: sum over tasks of the weights at the start, whatever the lambdas."""
    points = []
    for tasks in (TASKS, {"near": 1.0, "far": 7.0}):
        problem = Problem()
        conductor = GradientConductor([problem.point], tasks, Joint(2), make(), Raw(), clip_norm=None)
        conductor.step(problem.batches(0), problem.losses)
        points.append(problem.point.grad.clone())
    assert torch.equal(*points)


@pytest.mark.parametrize("make", [*METHODS.values(), lambda: GradNorm(group="all")], ids=[*METHODS, "gradnorm"])
def test_loss_that_is_not_positive_is_refused_by_name_and_leaves_nothing(make):
    parameter = torch.nn.Parameter(torch.ones(1))
    losses = lambda factor, names: {"good": parameter.sum(), "bad": parameter.sum() * factor}  # noqa: E731
    conductor = GradientConductor([parameter], {"good": 1.0, "bad": 1.0}, resolver=make())
    if isinstance(make(), DWA):  # which looks once its period of two is over
        conductor.step([-1.0], losses)
    before = repr(conductor.resolver.state_dict())
    for factor in (0.0, -0.5):
        assert_refused("losses (above|>=) 0.*found .*'bad'", conductor.step, [factor], losses)
        assert repr(conductor.resolver.state_dict()) == before
    if isinstance(make(), GradNorm):  # a first loss above 0 is not enough
        conductor.step([1.0], losses)
        assert_refused("losses >= 0", conductor.step, [-0.5], losses)
