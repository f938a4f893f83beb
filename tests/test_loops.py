"""The loops that users write: each trains as it would without a conductor, or is refused in a sentence that helps.

Joint and Linear must give plain training, to the bit. Files of their own have push style (strategy/test_push), partial
labels (test_estimate), frozen, tied and other changed layers (test_gradients, test_changes), scalers
(test_scaler), torch.compile (test_compile), several processes (test_processes), TorchJD (methods/test_torchjd),
frameworks and optimizers (tests/test_examples).
"""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from strategy.problems import assert_refused, seeded
from torch import Tensor, nn, optim

from gcond import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential

TASKS = {"a": 0.7, "b": 0.3}
K, STEPS = 2, 4


class Net(nn.Module):
    """[B, 6] -> a prediction for each of two tasks."""

    @seeded(0)
    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.trunk = nn.Linear(6, 8), nn.Linear(8, 8)
        self.a, self.b = nn.Linear(8, 3), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = torch.tanh(self.trunk(torch.relu(self.backbone(x))))
        return self.a(features), self.b(features)


def windows(dtype: torch.dtype = torch.float32) -> list[Tensor]:
    """K micro-batches for each step."""
    return list(torch.randn(STEPS, K, 5, 6, generator=torch.Generator().manual_seed(1)).to(dtype).unbind())


def losses_of(called: Callable[[Tensor], Any]) -> Any:
    def losses(batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        a, b = called(batch)
        values = {"a": (a.float() - 1).square().mean(), "b": (b.float() + 2).abs().mean()}
        return {name: values[name] for name in names}

    return losses


def conductor_of(model: Any, resolver: Any = None, estimator: Any = None) -> GradientConductor:
    return GradientConductor(model, TASKS, estimator or Joint(K), resolver or Linear(), Raw(), clip_norm=None)


def adamw(model: nn.Module) -> optim.Optimizer:
    return optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)


def plain(model: nn.Module) -> nn.Module:
    """Ordinary training on the weighted sum, K micro-batches a step."""
    losses, optimizer = losses_of(model), adamw(model)
    for window in windows(next(model.parameters()).dtype):
        model.zero_grad()
        for batch in window:
            values = losses(batch, list(TASKS))
            (sum(weight * values[name] for name, weight in TASKS.items()) / K).backward()
        optimizer.step()
    return model


def conducted(model: nn.Module) -> nn.Module:
    """The same by a conductor, without zero_grad."""
    conductor, optimizer = conductor_of(model), adamw(model)
    for window in windows(next(model.parameters()).dtype):
        conductor.step(list(window), losses_of(model))
        optimizer.step()
    return model


def apart(one: nn.Module, other: nn.Module) -> float:
    """The largest difference between their weights."""
    pairs = zip(one.parameters(), other.parameters(), strict=True)
    return max(float((p.detach().double() - q.detach().double()).abs().max()) for p, q in pairs)


def gradient(model: nn.Module) -> Tensor:
    return torch.cat(
        [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def test_what_is_done_to_gradients_around_a_step():
    """zero_grad before it changes nothing; another backward pass after it adds, one before it is dropped."""
    model, window = Net(), list(windows()[0])
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


def test_a_closure():
    """L-BFGS evaluates several times in a step; the weighted losses fall."""
    model, window = Net(), list(windows()[0])
    conductor = conductor_of(model, PCGrad(), Sequential(K))
    optimizer = optim.LBFGS(model.parameters(), lr=0.1, max_iter=3)

    def closure():
        metrics = conductor.step(window, losses_of(model))
        return sum(weight * metrics[f"loss/{name}"] for name, weight in TASKS.items())

    values = [float(optimizer.step(closure)) for _ in range(3)]
    assert values == sorted(values, reverse=True)
    assert conductor.steps > 3


def test_a_model_in_bfloat16():
    def started():
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


@pytest.mark.parametrize(("resolver", "estimator"), [(Linear, Joint), (PCGrad, Sequential)])
def test_a_conductor_for_each_dtype(resolver, estimator):
    """Each takes its step while the others' parameters are frozen. Conflicts are settled among its own parameters."""
    model = mixed()
    kinds = [[p for p in model.parameters() if p.dtype == dtype] for dtype in (torch.float32, torch.float64)]
    conductors = [conductor_of(kind, resolver(), estimator(K)) for kind in kinds]
    optimizer = adamw(model)
    for window in windows():
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
        "`parameters`: .*build conductor and optimizer anew", conductor.step, list(windows()[0]), losses_of(model)
    )
    assert gradient(model).count_nonzero() == 0
    assert apart(conducted(model), plain(Net())) == 0
