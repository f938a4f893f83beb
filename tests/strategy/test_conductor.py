"""The whole step: what it logs, what it refuses, and that it continues where it stopped."""

from __future__ import annotations

import warnings
from itertools import combinations
from math import isnan, nan, sqrt

import pytest
import torch
from strategy import faulty
from strategy.faulty import window
from strategy.problems import (
    TASKS,
    ConvNet,
    assert_refused,
    flat_grad,
    image_batches,
    opposed_losses,
    prescribed,
    task_names,
)
from torch import nn

from gcond import EMA, GradientConductor, Joint, LionLARS, Raw, Resolution, Resolver, Sequential, Stochastic
from gcond.strategy import GCond, Linear, PCGrad, TorchJD
from gcond.strategy.named import ESTIMATORS, RESOLVERS, UPDATES


def vector(*values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def one_step(rows, resolver, update=None, clip_norm=None, tasks=None):
    """One step on a single parameter with the gradients `rows` [m, P], and what it logged."""
    parameter = vector(*[1.0] * len(rows[0]))
    tasks = tasks or dict.fromkeys(task_names(len(rows)), 1.0)
    conductor = GradientConductor([parameter], tasks, Sequential(1), resolver, update or Raw(), clip_norm)
    metrics = conductor.step([None], prescribed([parameter], rows))
    return parameter.grad, metrics


# What is logged


def test_metrics_by_hand():
    """(3, 4) and, lambda applied, (-2.5, 0): PCGrad makes them (0, 4) and (-1.6, 1.2)."""
    grad, metrics = one_step([[3, 4], [-5, 0]], PCGrad(), tasks={"t0": 1.0, "t1": 0.5})
    torch.testing.assert_close(grad, torch.tensor([-1.6, 5.2], dtype=torch.float64))
    expected = {
        "loss/t0": 7.0,
        "loss/t1": -5.0,
        "grad_norm/t0": 5.0,
        "grad_norm/t1": 2.5,
        "cosine/all": -0.6,
        "cosine_resolved/all": 4 * 1.2 / (4 * 2),
        "weight/t0": 1 + 7.5 / 25,
        "weight/t1": 1 + 7.5 / 6.25,
        "resolved_norm": sqrt(1.6**2 + 5.2**2),
        "correction": sqrt(2.1**2 + 1.2**2) / sqrt(0.5**2 + 4**2),  # from the sum (.5, 4) to (-1.6, 5.2)
        "clipped": 0.0,
        "resolved": 1.0,
    }
    assert {name: metrics[name] for name in expected} == pytest.approx(expected)
    assert not any(key.startswith(("pair_cosine", "count")) for key in metrics)  # of two tasks that all batches have


@pytest.mark.parametrize("resolver", [PCGrad, GCond])
def test_cosine_of_what_a_resolution_cancelled_is_not_rounding_noise(resolver):
    """Anti-parallel gradients cancel: PCGrad leaves neither, GCond only the winner, so that no cosine is defined."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        row = torch.randn(3, generator=generator, dtype=torch.float64)
        factor = -float(torch.rand(1, generator=generator)) * 3
        _, metrics = one_step(torch.stack([row, factor * row]), resolver())
        assert isnan(metrics["cosine_resolved/all"])


class Witness(Resolver):
    """Resolves nothing and keeps what it saw."""

    uses_history = True

    def __init__(self):
        self.seen = []

    def resolve(self, conflict):
        self.seen.append(conflict)
        return Resolution(torch.eye(len(conflict.tasks), dtype=torch.float64))


def test_what_a_resolver_sees():
    """Two steps of two micro-batches; lambdas are in the gradients and not in the losses."""
    parameter, witness = vector(1.0, 1.0), Witness()
    estimator = Sequential(2, resolve_every="micro_batch")
    conductor = GradientConductor({"head": [parameter]}, {"a": 2.0, "b": 0.5}, estimator, witness, Raw())

    def losses(batch, names):
        return {name: value for name, value in (("a", batch * parameter[0]), ("b", parameter.sum())) if name in names}

    for batches in ([1.0, 3.0], [-1.0, 5.0]):
        conductor.step(batches, losses)
    assert [c.step for c in witness.seen] == [0, 1, 2, 3]
    for c, batch, previous in zip(witness.seen, [1.0, 3.0, -1.0, 5.0], [0.0, 1.0, 3.0, -1.0], strict=True):
        rows = torch.tensor([[2 * batch, 0.0], [0.5, 0.5]], dtype=torch.float64)
        before = torch.tensor([[2 * previous, 0.0], [0.5, 0.5]], dtype=torch.float64) * (c.step > 0)
        torch.testing.assert_close(c.gram, rows @ rows.T)
        torch.testing.assert_close(c.group_grams["head"], rows @ rows.T)
        torch.testing.assert_close(c.cross, rows @ before.T)
        assert (c.tasks, c.losses.tolist(), c.lambdas.tolist()) == (("a", "b"), [batch, 2.0], [2.0, 0.5])


def test_what_a_resolver_without_task_gradients_sees():
    """One row, the weighted sum, under one joint name."""
    parameter, witness = vector(1.0), Witness()
    witness.needs_task_gradients = False
    conductor = GradientConductor([parameter], {"a": 2.0, "b": 0.5}, Joint(2), witness, Raw())
    conductor.step([1.0, 3.0], lambda batch, names: {"a": batch * parameter.sum(), "b": parameter.sum()})
    (c,) = witness.seen
    assert (c.tasks, c.losses.tolist(), c.lambdas.tolist()) == (("a+b",), [2 * 2.0 + 0.5], [1.0])
    assert c.gram.tolist() == [[4.5**2]]


# The order of clipping and update


@pytest.mark.parametrize("clip_norm", [None, 1.0, 6.0])
def test_clip_acts_on_the_resolved_gradient_before_the_update(clip_norm):
    """A gradient (3, 4) a first time, (.3, .4) a second time; only the first is clipped, and the EMA never is."""
    parameter = vector(1.0, 1.0)
    conductor = GradientConductor([parameter], {"t0": 1.0}, Sequential(1), Linear(), EMA(0.5), clip_norm)
    first = torch.tensor([0.6, 0.8] if clip_norm == 1.0 else [3.0, 4.0], dtype=torch.float64)
    second = torch.tensor([0.3, 0.4], dtype=torch.float64)
    metrics = conductor.step([None], prescribed([parameter], [[3, 4]]), diagnose=True)
    assert (metrics["clipped"], metrics["resolved_norm"]) == (float(clip_norm == 1.0), pytest.approx(5.0))
    torch.testing.assert_close(conductor.resolved_gradient, first)
    torch.testing.assert_close(parameter.grad, first)
    metrics = conductor.step([None], prescribed([parameter], [[0.3, 0.4]]))
    assert metrics["clipped"] == 0.0
    torch.testing.assert_close(parameter.grad, (0.25 * first + 0.5 * second) / 0.75)
    assert conductor.resolved_gradient is None


# Diagnosing


@pytest.mark.parametrize("update", [Raw, EMA, LionLARS])
def test_diagnosing_a_joint_strategy_changes_nothing_but_rounding(update):
    """Every second step is diagnosed in one of two equal trainings; float64, so that Adam amplifies little."""

    def train(diagnosed):
        model, logged = ConvNet().double(), []
        conductor = GradientConductor(model.parameter_groups(), TASKS, Joint(2), Linear(), update())
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, eps=1e-4)
        for step in range(6):
            batches = [b.double() for b in image_batches(2, seed=step)]
            logged.append(conductor.step(batches, opposed_losses(model), diagnosed and step % 2 == 1))
            optimizer.step()
        return flat_grad(model), logged

    (grad, plain), (expected, diagnosed) = train(False), train(True)
    torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-10)
    for step, (without, with_it) in enumerate(zip(plain, diagnosed, strict=True)):
        for key in ("loss/l1", "loss/ssim", "resolved_norm", "clipped"):
            assert without[key] == pytest.approx(with_it[key], rel=1e-7)
        assert ("cosine/head" in with_it) == (step % 2 == 1)


# Resuming


@pytest.mark.parametrize("device", ["meta", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_momentum_from_a_checkpoint_on_the_cpu_follows_the_gradient(device):
    """A checkpoint is read to the CPU; the state must join the parameters where they are."""
    parameter = nn.Parameter(torch.ones(3, device=device))
    conductor = GradientConductor([parameter], TASKS, Sequential(1), Linear(), EMA(0.9))
    state = conductor.state_dict() | {"update": {"steps": [1], "momentum": torch.ones(3)}}
    conductor.load_state_dict(state)
    conductor.gradients.merge_reached(torch.ones(1, 2, 1, dtype=torch.bool))
    direction = torch.ones(3, device=device)
    conductor.update.apply(direction, conductor.gradients)
    assert conductor.update.state_dict()["momentum"].device.type == device


# What is told of the last window


def test_each_pair_has_its_cosine_in_all_and_by_group():
    network = faulty.Network()
    groups = network.groups() | {"spare": [nn.Parameter(torch.ones(2))]}  # which no task reaches
    conductor = GradientConductor(groups, faulty.TASKS, resolver="pcgrad", accumulate=3)
    metrics = conductor.step(window(0), network.losses)
    last, shared = conductor.last, [*network.trunk.parameters(), *network.head.parameters()]
    rows = {}  # of each task's loss, lambda applied, over the parameters that all tasks share: trunk and head
    for task, weight in faulty.TASKS.items():
        loss = torch.stack([network.losses(batch, [task])[task] for batch in window(0)]).mean() * weight
        gradients = [g.flatten() for g in torch.autograd.grad(loss, shared)]
        rows[task] = {"all": torch.cat(gradients), "trunk": torch.cat(gradients[:2]), "head": torch.cat(gradients[2:])}
    for pair in combinations(faulty.TASKS, 2):
        for group in ("all", "trunk", "head"):
            expected = float(nn.functional.cosine_similarity(*(rows[task][group] for task in pair), 0))
            assert last.cosines[group][pair] == pytest.approx(expected, rel=1e-4)
        assert last.cosines["all"][pair] == metrics[f"pair_cosine/{','.join(pair)}"]
    for group in ("all", "trunk", "head"):
        assert min(last.cosines[group].values()) == pytest.approx(metrics[f"cosine/{group}"])
    assert isnan(metrics["cosine/spare"])
    assert last.norms["trunk"]["b"] == pytest.approx(float(rows["b"]["trunk"].norm()), rel=1e-4)
    assert last.losses == {task: metrics[f"loss/{task}"] for task in faulty.TASKS}
    assert (last.counts, last.metrics) == (dict.fromkeys(faulty.TASKS, 3), metrics)


def test_of_micro_batches_the_record_is_their_mean():
    network = faulty.Network()
    parts = (PCGrad(), Raw())
    by_micro_batch = GradientConductor(network, faulty.TASKS, Sequential(3, resolve_every="micro_batch"), *parts)
    by_micro_batch.step(window(0), network.losses)
    grams = []
    for batch in window(0):
        single = GradientConductor(network, faulty.TASKS, Sequential(1), *parts)
        single.step([batch], network.losses)
        grams.append(single.last.grams["all"])
    torch.testing.assert_close(by_micro_batch.last.grams["all"], torch.stack(grams).mean(0))


def test_the_summary_says_who_shares_what():
    network = faulty.Network()
    network.spare = nn.Linear(1, 1)
    conductor = GradientConductor(network, faulty.TASKS, accumulate=3)
    assert_refused("`summary`", conductor.summary)
    conductor.step(window(0), network.losses)
    told, _, *lines = conductor.summary().splitlines()
    assert told.endswith("a: 3, b: 3, c: 3")
    found = {line.split("  ")[0]: line.split() for line in lines}
    assert list(found) == ["a, b, c", "a alone", "b alone", "c alone", "none"]
    shared = sum(p.numel() for name, p in network.named_parameters() if name.startswith(("trunk", "head")))
    total = sum(p.numel() for p in network.parameters())
    assert found["a, b, c"][3:6] == ["4", str(shared), f"{shared / total:.1%}"]
    assert found["none"][1:3] == ["2", "2"]


def test_one_row_for_all_tasks_is_told_apart_by_a_diagnosis_alone():
    network = faulty.Network()
    conductor = GradientConductor(network, faulty.TASKS, Joint(3), Linear(), nonfinite="skip")
    conductor.step(window(0, loss=nan), network.losses)
    assert conductor.last is None  # a window that is left out leaves no record
    conductor.step(window(0), network.losses)
    assert conductor.summary().splitlines()[2].split()[:2] == ["a+b+c", "10"]
    conductor.step(window(0), network.losses, diagnose=True)
    assert "a alone" in conductor.summary()
    conductor.step(window(0, loss=nan), network.losses, diagnose=True)
    assert conductor.resolved_gradient is None


# The default device


@faulty.each_strategy
def test_the_default_device_changes_nothing(options):
    """On "meta", where whatever is made without a device has no numbers."""
    runs = [faulty.Run(options()), faulty.Run(options())]
    with torch.device("meta"):
        runs[1].conductor = GradientConductor(runs[1].network.groups(), faulty.TASKS, **options())
    for seed in range(2):
        batches = window(seed)
        for run, device in zip(runs, ("cpu", "meta"), strict=True):
            with torch.device(device):
                run.conductor.step(batches, run.network.losses)
                run.conductor.load_state_dict(run.conductor.state_dict())
            run.optimizer.step()
    assert runs[0].state() == runs[1].state()


# As few arguments as may be: parts by name, the defaults, and what an optimizer is told


@pytest.mark.parametrize("name", RESOLVERS)
def test_every_method_runs_by_its_name_with_the_estimator_that_suits_it(name):
    network = faulty.Network()
    conductor = GradientConductor(network.groups(), faulty.TASKS, resolver=name, accumulate=3)
    assert isinstance(conductor.estimator, Sequential if conductor.resolver.needs_task_gradients else Joint)
    assert conductor.estimator.accumulation_steps == 3
    conductor.step(window(0), network.losses)
    assert any(p.grad is not None and p.grad.any() for p in network.parameters())


def test_names_are_the_objects():
    network = faulty.Network()
    for estimator, found in (("joint", Joint(3)), ("sequential", Sequential(3)), ("stochastic", Stochastic(3))):
        assert GradientConductor(network, faulty.TASKS, estimator, "linear", accumulate=3).estimator == found
    for update, kind in (("raw", Raw), ("ema", EMA), ("lion_lars", LionLARS)):
        assert type(GradientConductor(network, faulty.TASKS, update=update).update) is kind
    resolvers = ("mgda", TorchJD("MGDA"))
    named, built = (GradientConductor(network, faulty.TASKS, resolver=each).resolver for each in resolvers)
    assert (named.name, named.tolerance) == (built.name, built.tolerance)
    assert {*ESTIMATORS, *UPDATES} == {"joint", "sequential", "stochastic", "raw", "ema", "lion_lars"}


def test_the_defaults_leave_the_optimizer_what_is_the_optimizer_s():
    """GCond of each micro-batch's task gradients, unclipped and without momentum of its own."""
    network = faulty.Network()
    conductor = GradientConductor(network, faulty.TASKS)
    assert (type(conductor.resolver), type(conductor.update), conductor.clip_norm) == (GCond, Raw, None)
    assert conductor.estimator == Sequential(1)
    plain = GradientConductor(network, faulty.TASKS, resolver=Linear())
    assert plain.estimator == Joint(1)


@pytest.mark.parametrize(
    ("update", "optimizer", "told"),
    [
        ("ema", lambda p: torch.optim.AdamW(p), "EMA averages .*beta1 or momentum 0.9"),
        ("lion_lars", lambda p: torch.optim.SGD(p, momentum=0.8), "LionLARS averages .*momentum 0.8"),
        ("ema", lambda p: torch.optim.AdamW(p, betas=(0.0, 0.95)), None),
        ("ema", lambda p: torch.optim.SGD(p), None),
        (EMA(0.0), lambda p: torch.optim.AdamW(p), None),
        ("raw", lambda p: torch.optim.AdamW(p), None),
        ("raw", lambda p: torch.optim.AdamW(p[2:]), "lacks 2 .*trunk.weight.*has 0"),
        ("raw", lambda p: torch.optim.AdamW([*p, nn.Parameter(torch.ones(1))]), "lacks 0 .*has 1"),
    ],
)
def test_an_optimizer_that_does_not_fit_is_told(update, optimizer, told):
    network = faulty.Network()
    conductor = GradientConductor(network, faulty.TASKS, update=update)
    with pytest.warns(UserWarning, match=told) if told else warnings.catch_warnings():
        if not told:
            warnings.simplefilter("error")
        conductor.attach(optimizer(list(network.parameters())))


def test_two_optimizers_and_a_frozen_layer_fit():
    network = faulty.Network()
    conductor = GradientConductor(network, faulty.TASKS)
    network.own["a"].requires_grad_(False)
    optimizers = [torch.optim.SGD(part.parameters()) for part in (network.trunk, network.head, network.own)]
    with warnings.catch_warnings(action="error"):
        conductor.attach(*optimizers)
    for wrong in ((), (optimizers,)):
        with pytest.raises(ValueError, match=r"`attach`: expected one or several torch\.optim\.Optimizer"):
            conductor.attach(*wrong)
