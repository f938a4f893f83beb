"""What a new user writes: it works, or one sentence says what was expected."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from strategy.problems import ConvNet, flat_grad, image_batches, opposed_losses
from torch import Tensor, nn
from torch.utils.data import DataLoader

from gcond.strategy import EMA, Joint, Linear, PCGrad, Raw, Sequential
from gcond.strategy import GradientConductor as Conductor
from gcond.strategy.processes import Replicated

TASKS = {"l1": 0.85, "ssim": 0.15}
MODEL = ConvNet()


def conductor_of(parameters: Any, k: int = 2) -> Conductor:
    return Conductor(parameters, TASKS, Sequential(k), PCGrad(), Raw())


# Parameters


@pytest.mark.parametrize(
    "parameters",
    [
        lambda model: model,
        lambda model: dict(model.named_children()),
        lambda model: {"all": nn.ModuleList(model.children())},
        lambda model: model.parameters(),
        lambda model: [model.encoder[0].weight, *model.named_parameters()],
    ],
)
def test_a_model_and_its_parts_serve_as_parameters(parameters):
    def gradient(given: Any) -> Tensor:
        model = ConvNet()
        conductor = conductor_of(given(model))
        conductor.step(image_batches(2), opposed_losses(model))
        return flat_grad(list(model.parameters()))

    torch.testing.assert_close(gradient(parameters), gradient(lambda model: model.named_parameters()))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        (MODEL.head.weight, "found Parameter for 'all'"),
        (dict(MODEL.named_parameters()), "found Parameter for 'encoder.0.weight'"),
        ([{"params": list(MODEL.parameters())}], r"found dict in the place of all\[0\]"),
        ([3.0], r"found float in the place of all\[0\]"),
        ("model", "found str for 'all'"),
        (None, "found NoneType for 'all'"),
        ((parameter for parameter in []), "can be read only once"),
        (
            [("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))],
            "real parameters, found w of dtype torch.complex64",
        ),
        ([("w", MODEL.head.weight * 1)], "leaf tensors, found w"),
        (nn.LazyLinear(3), "found weight of a lazy module"),
    ],
)
def test_what_are_no_parameters(parameters, message):
    with pytest.raises(ValueError, match=f"`parameters`: expected .*{message}"):
        conductor_of(parameters)


# Tasks and the parts of a strategy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tasks": ["a", "b"]}, r"`tasks`: expected a mapping .*found \['a', 'b'\]"),
        ({"tasks": None}, "`tasks`: expected a mapping .*found None"),
        ({"tasks": {0: 1.0, 1: 1.0}}, "`tasks`: expected names and numbers .*found {0: 1.0, 1: 1.0}"),
        ({"tasks": {"a": "1", "b": 1.0}}, "`tasks`: expected names and numbers .*found {'a': '1'}"),
        ({"tasks": {"a": torch.ones(1, requires_grad=True)}}, "`tasks`: expected names and numbers"),
        ({"resolver": PCGrad}, r"`resolver`: expected an object .*the class PCGrad; write PCGrad\(\)"),
        ({"resolver": "pcgrad"}, "`resolver`: expected an object .*found 'pcgrad'"),
        ({"estimator": Joint}, r"`estimator`: expected an object .*write Joint\(\)"),
        ({"estimator": 4}, "`estimator`: expected an object .*found 4"),
        ({"update": torch.optim.SGD(MODEL.parameters(), lr=1.0)}, "`update`: expected an object"),
        ({"update": EMA}, r"`update`: .*write EMA\(\)"),
        ({"processes": Replicated}, r"`processes`: .*write Replicated\(\)"),
        ({"processes": 2}, "`processes`: expected an object .*found 2"),
        ({"clip_norm": float("nan")}, "`clip_norm`: expected None or a number > 0, found nan"),
    ],
)
def test_what_is_no_strategy(settings, message):
    with pytest.raises(ValueError, match=message):
        Conductor(MODEL, **({"tasks": TASKS} | settings))


# Losses


def stepped(answer: Any, lambdas: dict[str, float] = TASKS) -> None:
    model = ConvNet()
    ask = opposed_losses(model)
    conductor = Conductor(model, lambdas, Joint(1), Linear(), Raw())
    conductor.step(image_batches(1), lambda batch, names: answer(ask(batch, names)))


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (
            lambda values: values | {"ssim": 0.0},
            "task 'ssim', found 0.0; for a task that the batch lacks return a zero",
        ),
        (
            lambda values: values | {"ssim": None},
            "task 'ssim', found None; for a task that the batch lacks return a zero",
        ),
        (lambda values: values | {"ssim": 0}, "task 'ssim', found 0; for a task"),
        (lambda values: sum(values.values()), "expected a mapping from exactly these names .*found Tensor"),
        (lambda values: tuple(values.values()), "expected a mapping from exactly these names .*found tuple"),
        (lambda values: None, "expected a mapping from exactly these names .*found NoneType"),
        (lambda values: values | {"ssim": torch.tensor(1)}, "task 'ssim', .*torch.int64, requires_grad=False; was it"),
        (lambda values: values | {"ssim": values["ssim"] * 1j}, "task 'ssim', .*torch.complex64"),
        (lambda values: values | {"ssim": values["ssim"].detach()}, "task 'ssim', .*requires_grad=False; was it"),
    ],
)
def test_what_are_no_losses(answer, message):
    with pytest.raises(ValueError, match=f"`losses`: .*{message}"):
        stepped(answer)


def test_losses_that_are_no_function():
    with pytest.raises(ValueError, match=r"`losses`: expected a function losses\(batch, names\), found dict"):
        conductor_of(MODEL).step(image_batches(2), {"l1": 1.0})


# Batches


class Loop:
    """Counts the micro-batches that `losses` has seen."""

    def __init__(self, model: nn.Module) -> None:
        self.ask, self.seen = opposed_losses(model), 0

    def __call__(self, batch: Tensor, names: Sequence[str]) -> dict[str, Tensor]:
        self.seen += 1
        return self.ask(batch, names)


def test_an_iterator_of_a_data_loader_serves_window_after_window():
    model = ConvNet()
    losses, conductor = Loop(model), conductor_of(model)
    loader = iter(DataLoader(torch.cat(image_batches(5)), batch_size=4))
    for taken in (2, 4):
        conductor.step(loader, losses)
        assert losses.seen == taken
    with pytest.raises(ValueError, match=r"`batches`: expected accumulation_steps = 2 .*found only 1"):
        conductor.step(loader, losses)


@pytest.mark.parametrize(
    ("batches", "message"),
    [
        (
            DataLoader(torch.cat(image_batches(5)), batch_size=4),
            r"an iterator of more, such as iter\(loader\), found 5",
        ),
        ({"x": 1, "y": 2}, "found one dict; put it in a list"),
        ([], "found 0"),
    ],
)
def test_what_are_no_batches(batches, message):
    with pytest.raises(ValueError, match=f"`batches`: expected accumulation_steps = 2 micro-batches .*{message}"):
        conductor_of(MODEL).step(batches, opposed_losses(MODEL))
