"""The loops that users write: each trains as it would without a conductor, or is refused in a sentence that helps.

Joint and Linear must give plain training, to the bit. Files of their own have push style (strategy/test_push), partial
labels (test_partial_labels), other changes of a model (test_changes), more of torch.compile (test_compile), several
processes (test_processes), TorchJD (methods/test_torchjd) and frameworks (tests/examples).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from strategy.problems import assert_refused, seeded
from torch import Tensor, nn, optim
from torch.utils.checkpoint import checkpoint

from gcond import EMA, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, TorchJD

TASKS = {"a": 0.7, "b": 0.3}
K, STEPS = 2, 4


class Net(nn.Module):
    """[B, 6] -> a prediction for each of two tasks."""

    @seeded(0)
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.trunk = nn.Linear(6, 8), nn.Linear(8, 8)
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 1)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.trunk(torch.relu(self.backbone(x))))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(x)
        return self.a(features), self.b(features)


def data(dtype: torch.dtype = torch.float32) -> list[list[Tensor]]:
    """K micro-batches for each step."""
    return list(torch.randn(STEPS, K, 5, 6, generator=torch.Generator().manual_seed(1)).to(dtype).unbind())


def every_loss(outputs: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    a, b = outputs
    return {"a": (a.float() - 1).square().mean(), "b": (b.float() + 2).abs().mean()}


def losses_of(called: Callable[[Tensor], Any]) -> Any:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        values = every_loss(called(batch))
        return {name: values[name] for name in names}

    return losses


def conductor_of(model: Any, resolver: Any = None, estimator: Any = None, **settings: Any) -> GradientConductor:
    parts = (estimator or Joint(K), resolver or Linear(), settings.pop("update", None) or Raw())
    return GradientConductor(model, TASKS, *parts, **({"clip_norm": None} | settings))


def adamw(model: nn.Module) -> list[Any]:
    return [optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)]


def plain(model: nn.Module, optimizers: Any = adamw, losses: Any = None, after: Any = None) -> nn.Module:
    """Ordinary training on the weighted sum, K micro-batches a step."""
    losses, steps = losses or losses_of(model), optimizers(model)
    for window in data(next(model.parameters()).dtype):
        model.zero_grad()
        for batch in window:
            values = losses(batch, list(TASKS))
            (sum(weight * values[name] for name, weight in TASKS.items()) / K).backward()
        for optimizer in steps:
            optimizer.step()
        if after:
            after(model)
    return model


def conducted(
    model: nn.Module, optimizers: Any = adamw, losses: Any = None, after: Any = None, **settings: Any
) -> nn.Module:
    """The same by a conductor, without zero_grad."""
    conductor, steps = conductor_of(model, **settings), optimizers(model)
    for window in data(next(model.parameters()).dtype):
        conductor.step(list(window), losses or losses_of(model))
        for optimizer in steps:
            optimizer.step()
        if after:
            after(model)
    return model


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between their weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((p.detach().double() - q.detach().double()).abs().max()) for p, q in pairs)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


# (a) Heads on a frozen backbone, and its traps


def frozen() -> Net:
    model = Net()
    model.backbone.requires_grad_(False)
    return model


def test_heads_on_a_frozen_backbone():
    expected = plain(frozen())
    assert apart(conducted(frozen()), expected) == 0
    assert apart(expected, frozen()) > 1e-3
    for estimator in (Sequential(K), Sequential(K, "per_task"), Sequential(K, resolve_every="micro_batch")):
        assert apart(conducted(frozen(), estimator=estimator), expected) < 1e-6
    assert torch.equal(
        conducted(frozen(), resolver=PCGrad(), estimator=Sequential(K)).backbone.weight, Net().backbone.weight
    )


def test_a_layer_that_thaws_later_gets_each_step_s_gradient_alone():
    """At a learning rate of 0 the gradient is the same in every step; it would add up, were it not the conductor's."""
    model = frozen()
    conductor, norms = conductor_of(model, PCGrad(), Sequential(K)), []
    for step in range(4):
        model.backbone.requires_grad_(step > 0)
        conductor.step(list(data()[0]), losses_of(model))
        norms.append(0.0 if model.backbone.weight.grad is None else float(model.backbone.weight.grad.norm()))
    assert norms[0] == 0
    assert norms[1] > 0
    assert norms[1:] == [norms[1]] * 3


@pytest.mark.parametrize("estimator", [Joint(K), Sequential(K)])
def test_a_layer_that_freezes_later_is_not_moved_by_momentum(estimator):
    model = Net()
    conductor = conductor_of(model, estimator=estimator, update=EMA(0.9))
    [optimizer] = adamw(model)
    for step, window in enumerate(data()):
        if step == 2:
            model.backbone.requires_grad_(False)
            held = model.backbone.weight.clone()
        conductor.step(list(window), losses_of(model))
        optimizer.step()
    assert torch.equal(model.backbone.weight, held)


def test_heads_outside_of_the_conductor_are_refused():
    model = Net()
    conductor = conductor_of(model.trunk, PCGrad(), Sequential(K))
    assert_refused(
        "`parameters`: .* reaches a leaf that the conductor does not hold",
        conductor.step,
        list(data()[0]),
        losses_of(model),
    )


def test_what_is_done_to_gradients_around_a_step():
    """zero_grad before it changes nothing; another backward pass after it adds, one before it is dropped."""
    model, window = Net(), list(data()[0])
    conductor = conductor_of(model, PCGrad(), Sequential(K))
    conductor.step(window, losses_of(model))
    alone = gradient(model).clone()
    model.zero_grad()
    conductor.step(window, losses_of(model))
    assert torch.equal(gradient(model), alone)
    (0.5 * model.trunk.weight.square().sum()).backward()
    added = model.trunk.weight.grad.clone()
    conductor.step(window, losses_of(model))
    assert torch.equal(gradient(model), alone)
    torch.testing.assert_close(added, model.trunk.weight.grad + model.trunk.weight)


# (e) float16, GradScaler, clipping, EMA of the weights


@pytest.mark.parametrize("estimator", [Joint(K), Sequential(K)])
def test_float16_with_a_scaler_clipping_and_averaged_weights(estimator):
    def half(model: nn.Module) -> Any:
        def called(batch: Tensor) -> Any:
            with torch.autocast("cpu", dtype=torch.float16):
                return model(batch)

        return losses_of(called)

    def finish(model: nn.Module, optimizer: Any, scaler: Any, averaged: Any) -> None:
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 0.5)
        scaler.step(optimizer)
        scaler.update()
        averaged.update_parameters(model)

    found = []
    for conducts in (False, True):
        model = Net()
        parts = (*adamw(model), torch.amp.GradScaler("cpu", init_scale=2.0**20))
        averaged = optim.swa_utils.AveragedModel(model, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.9))
        conductor = conductor_of(model, estimator=estimator)
        for window in data():
            if conducts:
                conductor.step(list(window), half(model), scaler=parts[1])
            else:
                model.zero_grad()
                for batch in window:
                    values = half(model)(batch, list(TASKS))
                    parts[1].scale(sum(TASKS[name] * values[name] for name in TASKS) / K).backward()
            finish(model, *parts, averaged)
        found.append((model, averaged, parts[1].get_scale()))
    (plainly, average, scale), (model, other_average, other_scale) = found
    tolerance = 0 if isinstance(estimator, Joint) else 1e-4
    assert apart(model, plainly) <= tolerance
    assert apart(other_average, average) <= tolerance
    assert scale == other_scale
    assert apart(plainly, Net()) > 1e-3


# (f) A compiled model: all of it, or what the tasks share


@pytest.mark.parametrize("resolver", [PCGrad, partial(TorchJD, "UPGrad")])
def test_a_compiled_model_keeps_heads_apart_as_one_with_a_compiled_trunk(resolver):
    found = {}
    for what in ("nothing", "trunk", "model"):
        torch._dynamo.reset()
        model = Net()
        called: Any = model
        if what == "model":
            called = torch.compile(model, backend="aot_eager")
        if what == "trunk":
            features = torch.compile(model.features, backend="aot_eager")
            called = lambda x, f=features, m=model: (m.a(f(x)), m.b(f(x)))  # noqa: E731
        conductor_of(model, resolver(), Sequential(K)).step(list(data()[0]), losses_of(called))
        found[what] = gradient(model)
    torch.testing.assert_close(found["trunk"], found["nothing"])
    torch.testing.assert_close(found["model"], found["nothing"])


# (l) Optimizers


def matrices(model: nn.Module, others: bool = False) -> list[nn.Parameter]:
    return [p for p in model.parameters() if (p.ndim == 2) != others]


def decayed_apart(model: nn.Module) -> list[Any]:
    groups = [{"params": matrices(model), "weight_decay": 0.1}, {"params": matrices(model, True), "weight_decay": 0.0}]
    return [optim.AdamW(groups, lr=1e-2)]


OPTIMIZERS: dict[str, Any] = {
    "SGD": lambda model: [optim.SGD(model.parameters(), lr=1e-2, momentum=0.9, nesterov=True)],
    "AdamW, groups": decayed_apart,
    "AdamW, fused": lambda model: [optim.AdamW(model.parameters(), lr=1e-2, fused=True)],
    "AdamW, foreach": lambda model: [optim.AdamW(model.parameters(), lr=1e-2, foreach=True)],
    "Muon and AdamW": lambda model: [
        optim.Muon(matrices(model), lr=1e-2),
        optim.AdamW(matrices(model, True), lr=1e-2),
    ],
    "Adafactor": lambda model: [optim.Adafactor(model.parameters(), lr=1e-2)],
    "NAdam": lambda model: [optim.NAdam(model.parameters(), lr=1e-2)],
    "RAdam": lambda model: [optim.RAdam(model.parameters(), lr=1e-2)],
}


@pytest.mark.parametrize("optimizers", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_any_optimizer(optimizers):
    expected = plain(Net(), optimizers)
    assert apart(conducted(Net(), optimizers), expected) == 0
    assert apart(expected, Net()) > 1e-3


def test_a_closure():
    """L-BFGS evaluates several times in a step; the weighted losses fall."""
    model, window = Net(), list(data()[0])
    conductor = conductor_of(model, PCGrad(), Sequential(K))
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure() -> float:
        metrics = conductor.step(window, losses_of(model))
        return sum(weight * metrics[f"loss/{name}"] for name, weight in TASKS.items())

    values = [float(optimizer.step(closure)) for _ in range(3)]
    assert values == sorted(values, reverse=True)
    assert conductor.steps > 3


# (n) Tied weights, checkpointing, sparse gradients


class Tied(Net):
    """The second layer is the first one's transpose, and one tensor more often in `parameters()`."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(6, 6)
        self.trunk = nn.Linear(6, 6)
        self.trunk.weight = self.backbone.weight
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 1)
        for place, parameter in enumerate(self.parameters()):
            nn.init.normal_(parameter, std=0.4, generator=torch.Generator().manual_seed(place))


def test_tied_weights():
    assert apart(conducted(Tied()), plain(Tied())) == 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints(reentrant):
    def checkpointed(model: Net) -> Any:
        def called(batch: Tensor) -> Any:
            features = checkpoint(model.features, batch.requires_grad_(reentrant), use_reentrant=reentrant)
            return model.a(features), model.b(features)

        return losses_of(lambda batch: called(batch.detach().clone()))

    models = [Net() for _ in range(3)]
    expected = plain(models[0], losses=checkpointed(models[0]))
    assert apart(expected, plain(Net())) < 1e-6
    assert apart(conducted(models[1], losses=checkpointed(models[1])), expected) == 0
    resolved = conducted(
        models[2], losses=checkpointed(models[2]), resolver=PCGrad(), estimator=Sequential(K, "per_task")
    )
    assert apart(resolved, conducted(Net(), resolver=PCGrad(), estimator=Sequential(K))) < 1e-6


# (o) A bfloat16 model; dtypes and devices that are mixed, or hold no numbers


def test_a_model_in_bfloat16():
    def started() -> nn.Module:
        return Net().bfloat16()

    assert apart(conducted(started()), plain(started())) == 0
    assert apart(conducted(started()), started()) > 1e-3


def mixed() -> Net:
    """The trunk in float64, the rest in float32."""
    model = Net()
    model.trunk.double().register_forward_pre_hook(lambda _, given: (given[0].double(),))
    model.trunk.register_forward_hook(lambda _, given, out: out.float())
    return model


def test_two_dtypes_or_devices_are_refused_with_a_way_round():
    refusal = r"`parameters`: expected one device and one dtype, .*float32 on cpu \(.*float64 on cpu \(trunk"
    assert_refused(refusal + r".*model.float\(\).*requires_grad_\(False\)", conductor_of, mixed())
    model = Net()
    model.trunk.to("meta")
    assert_refused(r"`parameters`: expected one device .*meta.*fully_shard", conductor_of, model)
    expected, model = plain(Net()), mixed().float()
    for hooks in (model.trunk._forward_pre_hooks, model.trunk._forward_hooks):
        hooks.clear()
    assert apart(conducted(model), expected) == 0


@pytest.mark.parametrize(("resolver", "estimator"), [(Linear, Joint), (PCGrad, Sequential)])
def test_a_conductor_for_each_dtype(resolver, estimator):
    """Each takes its step while the others' parameters are frozen. Conflicts are settled among its own parameters."""
    model = mixed()
    kinds = [[p for p in model.parameters() if p.dtype == dtype] for dtype in (torch.float32, torch.float64)]
    conductors = [conductor_of(kind, resolver(), estimator(K)) for kind in kinds]
    [optimizer] = adamw(model)
    for window in data():
        for conductor, kind in zip(conductors, kinds, strict=True):
            model.requires_grad_(False)
            for parameter in kind:
                parameter.requires_grad_(True)
            conductor.step(list(window), losses_of(model))
        model.requires_grad_(True)
        optimizer.step()
    if resolver is Linear:
        assert apart(model, plain(mixed())) == 0
    assert apart(model, mixed()) > 1e-3


def test_a_conductor_built_before_its_model_has_values():
    """`to_empty` makes parameters anew, as for an optimizer that was built before."""
    model = Net().to("meta")
    conductor = conductor_of(model)
    model.to_empty(device="cpu").load_state_dict(Net().state_dict())
    assert_refused(
        "`parameters`: .*build conductor and optimizer anew", conductor.step, list(data()[0]), losses_of(model)
    )
    assert gradient(model).count_nonzero() == 0
    assert apart(conducted(model), plain(Net())) == 0


def test_a_copy_of_a_model_is_another_model():
    model = Net()
    conductor, other = conductor_of(model), deepcopy(model)
    assert_refused("`(losses|parameters)`: ", conductor.step, list(data()[0]), losses_of(other))
