"""A conductor's state knows tasks and parameters by their names, wherever they lie."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategy.faulty import STRATEGIES, Run, each_strategy, plain, window
from strategy.problems import TASKS, ConvNet, assert_refused, flat_grad, image_batches, opposed_losses, saved
from torch import Tensor, nn

from gcond import EMA, SAMGS, GCond, GradientConductor, LionLARS, PCGrad, Raw, Sequential
from gcond.strategy.gradients import TaskGradients

PARTS = {
    "gcond": lambda: (Sequential(2), GCond(), EMA(0.9)),
    "lion": lambda: (Sequential(2), GCond(), LionLARS()),
    "sam-gs": lambda: (Sequential(2), SAMGS(), Raw()),
}


@each_strategy
def test_resume_is_bit_identical(options):
    """Every third step is diagnosed; the parameters begin elsewhere, and all states come back from a file."""

    def trained(run: Run, seeds: range) -> Any:
        logged = []
        for seed in seeds:
            logged.append(run.conductor.step(window(seed), run.network.losses, diagnose=seed % 3 == 0))
            run.optimizer.step()
        return plain([logged, run.state()])

    whole, continued = Run(options()), Run(options())
    trained(whole, range(3))
    parts = [[run.conductor, run.optimizer, run.network] for run in (whole, continued)]
    given = [part.state_dict() for part in parts[0]]
    states, kept = saved(given), repr(plain(given[0]))
    expected = trained(whole, range(3, 7))
    for part, state in zip(parts[1], states, strict=True):
        part.load_state_dict(state)
    assert repr(plain(given[0])) == kept  # what was handed out before stays
    assert repr(trained(continued, range(3, 7))) == repr(expected)


def step(conductor: GradientConductor, model: nn.Module, seed: int) -> Tensor:
    conductor.step([batch.double() for batch in image_batches(2, seed)], opposed_losses(model))
    return flat_grad(model)


ORDERS = {
    "reversed": lambda model: list(model.named_parameters())[::-1],
    "in groups": lambda model: {
        name: [pair for pair in model.named_parameters() if pair[0].startswith(name)]
        for name in ("head", "encoder", "body")
    },
    "channels last": lambda model: model.to(memory_format=torch.channels_last).named_parameters(),
}


@pytest.mark.parametrize("parts", PARTS)
@pytest.mark.parametrize("order", ORDERS)
def test_any_order_and_layout_of_the_parameters_continues(order, parts):
    first = ConvNet().double()
    conductor = GradientConductor(first.named_parameters(), TASKS, *PARTS[parts]())
    for seed in range(2):
        step(conductor, first, seed)
    state = saved(conductor.state_dict())

    other = ConvNet().double()
    resumed = GradientConductor(ORDERS[order](other), TASKS, *PARTS[parts]())
    resumed.load_state_dict(state)
    torch.testing.assert_close(step(resumed, other, 2), step(conductor, first, 2), rtol=1e-9, atol=1e-12)


def test_what_is_frozen_when_the_state_is_saved_or_loaded_changes_nothing():
    """The body freezes after the first step and thaws before the third."""

    def trained(resume_at: int | None, frozen_at_resume: bool = True) -> Tensor:
        model = ConvNet().double()
        conductor = GradientConductor(model, TASKS, *PARTS["gcond"]())
        for seed in range(4):
            model.body.requires_grad_(seed not in (1, 2) if seed != resume_at else not frozen_at_resume)
            if seed == resume_at:
                state = saved(conductor.state_dict())
                conductor = GradientConductor(model, TASKS, *PARTS["gcond"]())
                conductor.load_state_dict(state)
                model.body.requires_grad_(seed not in (1, 2))
            step(conductor, model, seed)
        return flat_grad(model)

    expected = trained(None)
    for resume_at in (1, 2, 3):
        for frozen in (True, False):
            assert torch.equal(trained(resume_at, frozen), expected)


def test_a_state_that_does_not_fit_is_refused_with_what_differs():
    model, other = ConvNet(), ConvNet()
    other.head = nn.Linear(6, 3)
    conductor = GradientConductor(model, TASKS, *PARTS["gcond"]())
    conductor.step(image_batches(2), opposed_losses(model))
    state = conductor.state_dict()
    but_one = [pair for pair in model.named_parameters() if pair[0] != "head.weight"]
    for parameters, tasks, settings, given, refusal in (
        (model, TASKS | {"classify": 1.0}, {}, state, r"differing: \['classify'\]; .* then use `add_task`"),
        (but_one, TASKS, {}, state, r"differing: \['head.weight'\]"),
        (model.parameters(), TASKS, {}, state, "body.bias"),
        (model, TASKS, {}, {"steps": 3, "reached": torch.ones(2, 9)}, "an older version's"),
        (other, TASKS, {}, state, r"head.weight of shape \(2, 6\), .* found \(3, 6\)"),
        (model, TASKS, {"buffer_dtype": "bfloat16"}, state, "kept as torch.float32, which torch.bfloat16 would round"),
    ):
        resumed = GradientConductor(parameters, tasks, *PARTS["gcond"](), **settings)
        before = plain(resumed.state_dict())
        assert_refused(refusal, resumed.load_state_dict, given)
        assert plain(resumed.state_dict()) == before
    for parts, given, refusal in (
        ((GCond(), LionLARS()), state, "the state of GCond and LionLARS, found GCond and EMA"),
        ((PCGrad(), EMA()), state, "the state of PCGrad and EMA, found GCond and EMA"),
        ((GCond(), EMA()), state | {"update": {}}, "EMA keeps"),
    ):
        resumed = GradientConductor(model, TASKS, Sequential(2), *parts)
        assert_refused(refusal, resumed.load_state_dict, given)
        assert resumed.steps == 0
    wide = GradientConductor(model, TASKS, *PARTS["gcond"](), buffer_dtype="float64")
    wide.load_state_dict(state)
    wide.step(image_batches(2), opposed_losses(model))


def test_a_state_that_was_read_to_another_device_is_brought_back():
    """As by torch.load(map_location="cuda"); what a far tensor's numbers meet on the CPU would be refused there."""

    class Elsewhere(torch.Tensor):
        """On the CPU, and refused by a generator and by operations with plain tensors; `cpu` or `to` bring it back."""

        @classmethod
        def __torch_function__(cls, function, types, arguments=(), settings=None):
            name = function.__name__
            assert name in ("cpu", "to", "clone", "__deepcopy__", "__get__", "dim", "numel", "size"), name
            with torch._C.DisableTorchFunctionSubclass():
                found = function(*arguments, **(settings or {}))
            return found.as_subclass(Tensor) if name in ("cpu", "to") else found

    def away(state: Any) -> Any:
        if isinstance(state, Tensor):
            return state.as_subclass(Elsewhere)
        if isinstance(state, dict):
            return {key: away(value) for key, value in state.items()}
        return [away(value) for value in state] if isinstance(state, list) else state

    for options in (STRATEGIES["gcond stochastic"], STRATEGIES["gradnorm"], STRATEGIES["uw"]):
        runs = [Run(options()), Run(options())]
        for seed in range(2):
            runs[0].step(window(seed))
        state = saved(runs[0].conductor.state_dict())
        moved = state | {name: away(state[name]) for name in ("generator", "resolver")}
        runs[1].network.load_state_dict(runs[0].network.state_dict())
        runs[1].optimizer.load_state_dict(runs[0].optimizer.state_dict())
        runs[1].conductor.load_state_dict(moved)
        assert plain(runs[1].step(window(2))) == plain(runs[0].step(window(2)))


@each_strategy
def test_a_state_within_a_window_is_that_before_it_and_a_window_can_be_dropped(options):
    run, whole = Run(options()), Run(options())
    for each in (run, whole):
        each.step(window(0))
    before = whole.state()
    batches = window(1)
    with run.conductor.micro_batch():
        run.conductor.backward(run.network.losses(batches[0], run.conductor.serves))
    if run.conductor.estimator.resolves_micro_batches:
        assert_refused("`state_dict`: expected no window", run.conductor.state_dict)
        return
    with pytest.warns(UserWarning, match="the 1 micro-batches of the open window are not in it"):
        assert run.state() == before
    assert (run.conductor.discard(), run.conductor.discard()) == (1, 0)
    assert plain(run.step(batches)) == plain(whole.step(batches))
    assert run.state() == whole.state()


@pytest.mark.parametrize("where", ["combine", "swap", "write"])
def test_an_interrupted_step_leaves_no_half_written_history(where, monkeypatch):
    run, again = Run(STRATEGIES["gcond lion"]()), Run(STRATEGIES["gcond lion"]())
    run.train([window(0), window(1)])
    whole = getattr(TaskGradients, where)

    def interrupted(*arguments: Any) -> None:
        whole(*arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(TaskGradients, where, interrupted)
    with pytest.raises(KeyboardInterrupt):
        run.step(window(2))
    monkeypatch.undo()
    assert all(parameter.grad is None for parameter in run.network.parameters())
    assert run.conductor.state_dict()["reference"] is None
    parts = [[each.conductor, each.optimizer, each.network] for each in (run, again)]
    for part, state in zip(parts[1], saved([part.state_dict() for part in parts[0]]), strict=True):
        part.load_state_dict(state)
    for seed in (3, 4):
        assert plain(again.step(window(seed))) == plain(run.step(window(seed)))
    assert again.state() == run.state()


def test_a_compiled_model_has_the_names_of_the_plain_one():
    model = ConvNet()
    compiled = torch.compile(model, backend="eager")
    names = [GradientConductor(each, TASKS).state_dict()["handed_over"] for each in (model, compiled)]
    assert names[0] == names[1] == [name for name, _ in model.named_parameters()]
    conductor = GradientConductor(model, TASKS)
    state = conductor.state_dict()
    state["handed_over"] = [f"_orig_mod.{name}" for name in state["handed_over"]]  # as states once had them
    conductor.load_state_dict(state | {"layout": [[f"_orig_mod.{name}", *rest] for name, *rest in state["layout"]]})


def test_names_that_occur_twice_are_told_apart():
    parts = [ConvNet(), ConvNet()]
    conductor = GradientConductor({f"net{i}": part for i, part in enumerate(parts)}, TASKS, Sequential(1), PCGrad())
    names = conductor.state_dict()["handed_over"]
    assert len(set(names)) == len(names) == 2 * len(list(parts[0].parameters()))


def test_what_the_conductor_was_built_of_cannot_be_replaced():
    conductor = GradientConductor(ConvNet(), TASKS, *PARTS["gcond"]())
    for what in ("tasks", "estimator", "resolver", "update", "processes", "accumulate", "buffer_dtype", "seed"):
        with pytest.raises(AttributeError, match=what):
            setattr(conductor, what, getattr(conductor, what, None))
    with pytest.raises(TypeError):
        conductor.tasks["l1"] = 0.5
    assert dict(conductor.tasks) == TASKS
