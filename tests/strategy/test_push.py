"""Push style: losses are handed over one micro-batch at a time, and the bits are those of `step`."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from strategy.faulty import STRATEGIES, TASKS, K, Network, Run, window
from strategy.problems import assert_refused, flat_grad

from gcond.strategy import GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic


def pushed(run: Run, batches: Any, one_by_one: bool = False) -> list[dict[str, float]]:
    """The windows of `batches`, each loss in a graph of its own or all of a micro-batch in one."""
    conductor, records = run.conductor, []
    for batch in batches:
        with conductor.micro_batch(run.scaler):
            served = conductor.serves
            for names in [[name] for name in served] if one_by_one else [served]:
                conductor.backward(run.network.losses(batch, names))
        assert all(parameter.grad is None for parameter in run.network.parameters())
        if conductor.ready:
            records.append(conductor.resolve())
            run.move()
    return records


def both(make: Any, windows: list[Any], scaled: bool = False, one_by_one: bool = False) -> tuple[Run, Run]:
    """A run by `step` and one in push style, after the same windows; their records are the same."""
    runs = [Run(make(), torch.amp.GradScaler("cpu", init_scale=1024.0) if scaled else None) for _ in range(2)]
    records = runs[0].train(windows)
    assert repr(pushed(runs[1], [batch for batches in windows for batch in batches], one_by_one)) == repr(records)
    return runs[0], runs[1]


@pytest.mark.parametrize("name", STRATEGIES)
def test_push_is_step(name):
    step, push = both(STRATEGIES[name], [window(seed) for seed in range(3)])
    assert push.state() == step.state()
    assert len(push.gradients) == 3
    assert all(map(torch.equal, push.gradients, step.gradients))


def test_a_graph_for_each_task_is_forward_per_task():
    step, push = both(STRATEGIES["gcond bfloat16"], [window(0), window(1)], one_by_one=True)
    assert push.state() == step.state()


@pytest.mark.parametrize("name", ["gcond lion", "pcgrad, its order", "gcond micro-batch", "famo"])
@pytest.mark.parametrize("wrong", [{"gradient": 1e38}, {"loss": float("nan")}], ids=["overflow", "nan"])
def test_windows_that_are_left_out_end_where_step_ends_them(name, wrong):
    """Resolved by micro-batch, a window ends with the first one that is wrong."""
    make = lambda: STRATEGIES[name]() | {"nonfinite": "skip"}  # noqa: E731
    step, push = both(make, [window(0)], scaled=True)
    batches = [*window(1, **wrong), *window(2)]
    left_out = K if step.conductor.estimator.resolves_micro_batches else 1
    taken = iter(batches)
    records = [step.step(taken) for _ in range(left_out + 1)]
    assert repr(pushed(push, batches)) == repr(records)
    assert [record.get("skipped", 0) for record in records] == [1] * left_out + [0]
    assert push.state() == step.state()


def test_a_window_that_is_not_finite_is_told():
    run = Run({"estimator": Sequential(K), "resolver": PCGrad(), "update": Raw()})
    with pytest.raises(FloatingPointError, match="task 'b'"):
        pushed(run, window(0, loss=float("nan")))
    pushed(run, window(1))
    assert run.conductor.steps == 1


def conductor_of(network: Network, estimator: Any = None) -> GradientConductor:
    return GradientConductor(network, TASKS, estimator or Sequential(2), Linear(), Raw(), clip_norm=None)


def push(conductor: GradientConductor, network: Network, seed: int = 0) -> None:
    with conductor.micro_batch():
        conductor.backward(network.losses(window(seed)[0], conductor.serves))


def test_what_is_no_push():
    network = Network()
    batch, every = window(0)[0], list(TASKS)
    conductor = conductor_of(network)
    assert not conductor.ready
    assert not conductor.flush()
    assert_refused("`backward`: .*within", conductor.backward, network.losses(batch, every))
    assert_refused("`resolve`: .*after at least one", conductor.resolve)
    push(conductor, network)
    assert_refused("`step`: expected no window", conductor.step, [batch] * 2, network.losses)
    assert_refused("`backward`: .*within", conductor.backward, network.losses(batch, every))
    push(conductor, network)
    assert conductor.ready
    assert_refused("`micro_batch`: expected `resolve` after 2", push, conductor, network)
    conductor.resolve()

    def twice() -> None:
        with conductor.micro_batch():
            conductor.backward(network.losses(batch, ["a"]))
            conductor.backward(network.losses(batch, ["a", "b"]))

    def nested() -> None:
        with conductor.micro_batch():
            push(conductor, network)

    def other_scaler() -> None:
        push(conductor, network)
        with conductor.micro_batch(torch.amp.GradScaler("cpu")):
            """Nothing."""

    assert_refused("`losses`: .*'b', 'c'", twice)
    assert_refused("`micro_batch`: expected one at a time", nested)
    assert_refused("`scaler`: expected the same", other_scaler)


def test_an_exception_ends_the_window():
    network = Network()
    conductor = conductor_of(network)

    def fail() -> None:
        with conductor.micro_batch():
            conductor.backward(network.losses(window(1)[0], ["a"]))
            raise KeyError("absent")

    for _ in range(2):
        push(conductor, network)
        with pytest.raises(KeyError, match="absent"):
            fail()
        assert all(parameter.grad is None for parameter in network.parameters())
    for seed in (0, 1):
        push(conductor, network, seed)
    conductor.resolve()
    found = flat_grad(list(network.parameters()))
    conductor_of(network).step([window(0)[0], window(1)[0]], network.losses)
    assert torch.equal(found, flat_grad(list(network.parameters())))


def test_parameters_that_change_within_a_window_are_refused():
    network = Network()
    conductor = conductor_of(network)
    push(conductor, network)
    network.head.bias.requires_grad_(False)
    push(conductor, network)
    assert_refused("`parameters`: .*within a window", conductor.resolve)
    push(conductor, network)
    push(conductor, network)
    conductor.resolve()
    assert network.head.bias.grad is None


def test_which_tasks_a_micro_batch_serves():
    network = Network()
    for estimator, served in ((Joint(3), [list(TASKS)] * 3), (Stochastic(6), [["a"]] * 2 + [["b"]] * 2 + [["c"]] * 2)):
        conductor = conductor_of(network, estimator)
        for names in served:
            assert conductor.serves == names
            push(conductor, network)
        assert conductor.serves == []
        conductor.resolve()


def test_a_graph_that_is_kept_between_tasks_is_compiled_for_it():
    network = Network()
    compiled = torch.compile(network.trunk, backend="aot_eager")
    found = []
    for style in ("step", "push"):
        conductor = GradientConductor(network, {"a": 0.5, "c": 0.5}, Sequential(1), PCGrad(), Raw(), clip_norm=None)

        def losses(batch: Any, names: Any) -> Any:
            features = network.head(torch.tanh(compiled(batch.x)))
            return {name: (network.own[name](features) - 1).square().mean() for name in names}

        batch = window(0)[0]
        if style == "step":
            conductor.step([batch], losses)
        else:
            with conductor.micro_batch():
                conductor.backward(losses(batch, conductor.serves))
            conductor.resolve()
        found.append(flat_grad(list(network.parameters())).clone())
    assert torch.equal(*found)
