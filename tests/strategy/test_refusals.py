"""What a user may hand over, and the sentence that answers what he may not: it names what was expected and found."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from functools import partial
from math import inf, nan
from typing import Any

import pytest
import torch
from strategy.problems import TASKS, ConvNet, assert_refused, flat_grad, image_batches, opposed_losses
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from gcond.strategy import (
    DWA,
    EMA,
    FAMO,
    SAMGS,
    UW,
    CAGrad,
    GCond,
    GradDrop,
    GradNorm,
    GradOPS,
    Joint,
    Linear,
    LionLARS,
    PCGrad,
    Raw,
    Replicated,
    Sequential,
    Stochastic,
)
from gcond.strategy import GradientConductor as Conductor

MODEL = ConvNet()


class Stream(IterableDataset):
    """Data without a length."""

    def __iter__(self) -> Any:
        return iter(())


def conductor_of(parameters: Any, k: int = 2) -> Conductor:
    return Conductor(parameters, TASKS, Sequential(k), PCGrad(), Raw())


# Values out of their range, by class and setting
RANGES: dict[Any, dict[str, list[Any]]] = {
    GCond: {
        "thresholds": [(-0.5, -0.8, 0.0), (-0.8, -0.5, -0.5), (-1.1, -0.5, 0.0), (nan, -0.5, 0.0), (-0.5, 0.0)],
        "tie_breaking_weights": [(0.0, 0.0), (nan, 0.2), (0.8, nan), (0.8, inf), (-0.1, 1.0)],
        "projection_max_iters": [0],
        "remap_power": [0.0, nan],
        "norm_ema_beta": [1.0, -0.1],
        "dominance_window": [-1],
        "norm_cap": [0.0, nan],
        "stability_reference": ["previous"],
        "conflict_margin": [-1.0, nan],
        "vanishing": ["never"],
    },
    CAGrad: {"c": [1.0, -0.1, nan], "rescale": [3], "average": ["median"]},
    GradNorm: {"alpha": [-1.0, nan], "lr": [0.0, inf]},
    GradDrop: {"leak": [-0.1, 1.1, {"t0": 2.0}, nan]},
    GradOPS: {"weights": ["r_alpha"], "alpha": [-3.0]},
    partial(GradOPS, "unverified_r_alpha"): {"alpha": [None, nan]},
    SAMGS: {"psi": ["mean"], "beta1": [1.0], "beta2": [-0.1], "gamma": [1.5]},
    UW: {"lr": [0.0, nan]},
    FAMO: {"lr": [0.0], "weight_decay": [-1.0, nan]},
    DWA: {"temperature": [0.0, inf], "period": [0]},
    EMA: {"beta": [1.0, -0.1]},
    LionLARS: {"beta": [1.5], "clip": [0.0, nan], "coefficient": [-1.0, inf]},
    Joint: {"accumulation_steps": [0]},
    Sequential: {"accumulation_steps": [-2], "forward": ["twice"], "resolve_every": ["epoch"]},
    Stochastic: {"accumulation_steps": [2.5]},
}


def test_a_setting_out_of_range_is_named():
    for build, settings in RANGES.items():
        for setting, values in settings.items():
            for value in values:
                assert_refused(f"`{setting}`: expected .*, found ", build, **{setting: value})


def test_a_model_and_its_parts_serve_as_parameters():
    def gradient(given: Callable[[ConvNet], Any]) -> Tensor:
        model = ConvNet()
        conductor_of(given(model)).step(image_batches(2), opposed_losses(model))
        return flat_grad(model)

    expected = gradient(lambda model: model.named_parameters())
    for given in (
        lambda model: model,
        lambda model: dict(model.named_children()),
        lambda model: {"all": nn.ModuleList(model.children())},
        lambda model: model.parameters(),
        lambda model: [model.encoder[0].weight, *model.named_parameters()],
    ):
        torch.testing.assert_close(gradient(given), expected)


def test_what_are_no_parameters():
    point = nn.Parameter(torch.zeros(2))
    for parameters, message in [
        (MODEL.head.weight, "found Parameter for 'all'"),
        (dict(MODEL.named_parameters()), "found Parameter for 'encoder.0.weight'"),
        ([{"params": list(MODEL.parameters())}], r"found dict in the place of all\[0\]"),
        ([3.0], r"found float in the place of all\[0\]"),
        ("model", "found str for 'all'"),
        (None, "found NoneType for 'all'"),
        ([], "at least one that requires a gradient"),
        ([torch.zeros(2)], "at least one that requires a gradient"),
        ((parameter for parameter in []), "can be read only once"),
        ([("w", nn.Parameter(torch.zeros(2, dtype=torch.complex64)))], "found w of dtype torch.compl"),
        ([("w", MODEL.head.weight * 1)], "leaf tensors.*, found w computed"),
        (nn.LazyLinear(3), "found weight of a lazy module"),
        ([point, nn.Parameter(point.detach().double())], "one device and one dtype"),
    ]:
        assert_refused(f"`parameters`: expected .*{message}", conductor_of, parameters)


def test_what_is_no_strategy():
    joint_only = "`estimator`: expected Joint, as .* weights losses.*, found Sequential"
    zero = ({"l1": 1.0, "ssim": 0.0}, {"head": MODEL.head})
    for settings, message in [
        ({"tasks": ["a", "b"]}, r"`tasks`: expected a mapping .*found \['a', 'b'\]"),
        ({"tasks": None}, "`tasks`: expected a mapping .*found None"),
        ({"tasks": {0: 1.0, 1: 1.0}}, "`tasks`: .*found {0: 1.0, 1: 1.0}"),
        ({"tasks": {"a": "1", "b": 1.0}}, "`tasks`: .*found {'a': '1'"),
        ({"tasks": {"a": torch.ones(1, requires_grad=True)}}, "`tasks`: .*found"),
        ({"tasks": {}}, "`tasks`: .*found {}"),
        ({"tasks": {"l1": -0.1, "ssim": 1.0}}, "`tasks`: .* found {'l1': -0.1"),
        ({"tasks": {"l1": nan, "ssim": 1.0}}, "`tasks`: .* found {'l1': nan"),
        ({"tasks": {"l1": 0.0, "ssim": 0.0}}, "`tasks`: .* not all 0"),
        ({"resolver": PCGrad}, r"`resolver`: expected an object .*the class PCGrad; write PCGrad\(\)"),
        ({"resolver": "pc_grad"}, "`resolver`: expected an object .*'pcgrad', .*found 'pc_grad'"),
        ({"estimator": "per_task"}, "`estimator`: expected .*'joint', .*found 'per_task'"),
        ({"estimator": "stochastic", "accumulate": 3}, "`accumulation_steps`: expected a multiple of 2.*found 3"),
        ({"estimator": Sequential(4), "accumulate": 2}, "`accumulate`: expected 4 as in `estimator`"),
        ({"accumulate": 0}, "`accumulation_steps`: expected an integer >= 1"),
        ({"estimator": Joint}, r"`estimator`: expected an object .*write Joint\(\)"),
        ({"estimator": 4}, "`estimator`: expected an object .*found 4"),
        ({"update": torch.optim.SGD(MODEL.parameters(), lr=1.0)}, "`update`: expected an object"),
        ({"update": EMA}, r"`update`: .*write EMA\(\)"),
        ({"processes": Replicated}, r"`processes`: .*write Replicated\(\)"),
        ({"processes": 2}, "`processes`: expected an object .*found 2"),
        ({"clip_norm": nan}, "`clip_norm`: expected None or a number > 0, found nan"),
        ({"clip_norm": 0.0}, "`clip_norm`: expected None or a number > 0, found 0.0"),
        ({"nonfinite": "ignore"}, '`nonfinite`: expected "raise" or "skip", found \'ignore\''),
        ({"nonfinite": None}, '`nonfinite`: expected "raise" or "skip", found None'),
        ({"reference_dtype": "bf16"}, "`reference_dtype`: expected None or a floating-point dtype"),
        ({"buffer_dtype": torch.int32}, "`buffer_dtype`: expected None or a floating-point dtype"),
        ({"reference_dtype": torch.bfloat16, "resolver": PCGrad()}, "PCGrad keeps no previous task gradients"),
        ({"estimator": Joint(2), "resolver": PCGrad()}, "`estimator`: .*PCGrad needs a gradient per task, found Joint"),
        ({"estimator": Joint(2), "resolver": GCond()}, "`estimator`: .*GCond needs a gradient per task, found Joint"),
        *(({"estimator": Sequential(1), "resolver": each}, joint_only) for each in (UW(), FAMO(), DWA())),
        ({"tasks": {"l1": 1.0}, "estimator": Sequential(1), "resolver": UW()}, joint_only),
        ({"estimator": Stochastic(5)}, "`accumulation_steps`: expected a multiple of 2.*found 5"),
        ({"estimator": Sequential(2), "resolver": GradNorm()}, r"`group`: .*'head'.* found \['all'\]"),
        (
            {"tasks": zero[0], "parameters": zero[1], "estimator": Sequential(2), "resolver": GradNorm()},
            r"`tasks`: expected every lambda above 0.* GradNorm .* \['ssim'\]",
        ),
        ({"resolver": GradDrop({"t9": 0.1})}, r"`leak`: expected tasks among .*'l1'.*, found \['t9'\]"),
        (
            {"estimator": Joint(2), "resolver": FAMO({"c": 0.0})},
            r"`min_losses`: expected tasks among .*, found \['c'\]",
        ),
    ]:
        assert_refused(message, Conductor, **({"parameters": MODEL, "tasks": TASKS} | settings))


def test_what_are_no_losses():
    wrong = [
        (lambda values: values | {"l1": 0.0}, "task 'l1', found 0.0; leave a task out that the micro-batch lacks"),
        (lambda values: values | {"l1": None}, "task 'l1', found None; leave a task out"),
        (lambda values: values | {"extra": values["l1"]}, "expected a mapping from these names, .*'extra'"),
        (lambda values: {}, "expected the loss of at least one task"),
        (lambda values: sum(values.values()), "expected a mapping from these names, .*found Tensor"),
        (lambda values: tuple(values.values()), "expected a mapping from these names, .*found tuple"),
        (lambda values: None, "expected a mapping from these names, .*found NoneType"),
        (lambda values: values | {"l1": torch.tensor(1)}, "task 'l1', .*torch.int64, requires_grad=False; was it"),
        (lambda values: values | {"l1": values["l1"] * 1j}, "task 'l1', .*torch.complex64"),
        (lambda values: values | {"l1": values["l1"].detach()}, "task 'l1', .*requires_grad=False; was it"),
        (lambda values: {name: value.expand(2) for name, value in values.items()}, r"a scalar .* found shape \(2,\)"),
    ]
    ask = opposed_losses(MODEL)
    for estimator in (Joint(2), Sequential(2), Sequential(2, "per_task"), Stochastic(2)):
        conductor = Conductor(MODEL, TASKS, estimator, Linear(), Raw())
        for answer, message in wrong:
            losses = lambda batch, names, answer=answer: answer(ask(batch, names))  # noqa: E731
            assert_refused(f"`losses`: .*{message}", conductor.step, image_batches(2), losses)
    no_function = r"`losses`: expected a function losses\(batch, names\), found dict"
    assert_refused(no_function, conductor.step, image_batches(2), {"l1": 1.0})


def test_what_are_no_batches():
    loader = DataLoader(torch.cat(image_batches(5)), batch_size=4)
    for batches, message in [
        (loader, r"an iterator of more, such as iter\(loader\), found 5"),
        ({"x": 1, "y": 2}, "found one dict; put it in a list"),
        ([], "found 0"),
        (image_batches(1), "found 1"),
        (iter(image_batches(1)), "found only 1"),
        (DataLoader(Stream()), r"such as iter\(loader\), found a loader that does not know its length"),
    ]:
        expected = f"`batches`: expected 2 micro-batches.*{message}"
        assert_refused(expected, conductor_of(MODEL).step, batches, opposed_losses(MODEL))


@pytest.mark.parametrize("setting", ["resolver", "update"])
def test_what_remembers_serves_one_conductor(setting):
    """Else the second's steps would go on from the first's memory. What keeps nothing may serve both."""
    keeps: dict[str, Any] = {"resolver": GCond(), "update": EMA()}
    keeps_not: dict[str, Any] = {"resolver": PCGrad(), "update": Raw()}
    shared = keeps_not | {setting: keeps[setting]}

    def stepper(parts: dict[str, Any]) -> Callable[[], Any]:
        model = ConvNet()
        return partial(Conductor(model, TASKS, Sequential(1), **parts).step, image_batches(1), opposed_losses(model))

    first, second, third = stepper(shared), stepper(shared), stepper(keeps_not)
    for step in (first, third, first):
        step()
    assert_refused(f"`{setting}`: expected a .* own", second)
    stepper(keeps_not | {setting: deepcopy(keeps[setting])})()
    failed = {setting: {"resolver": GCond, "update": EMA}[setting]()}
    wrong = Conductor(MODEL, TASKS, Sequential(1), **keeps_not | failed)
    assert_refused("`losses`", wrong.step, image_batches(1), lambda batch, names: {"mistyped": batch.sum()})
    stepper(keeps_not | failed)()


def test_what_has_learnt_is_not_wiped_by_a_second_conductor():
    """UW, FAMO and DWA begin anew for the tasks of a conductor that is built."""
    model, resolver = ConvNet(), UW(lr=0.1)
    Conductor(model, TASKS, Joint(1), resolver).step(image_batches(1), opposed_losses(model))
    learnt = resolver.state_dict()["log_variances"]
    assert learnt.any()
    assert_refused("`resolver`: expected a UW.* own", Conductor, model, TASKS, Joint(1), resolver)
    assert torch.equal(resolver.state_dict()["log_variances"], learnt)
