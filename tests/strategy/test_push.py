"""Push style: losses are handed over one micro-batch at a time, and the bits are those of `step`."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from strategy.faulty import STRATEGIES, TASKS, K, Network, Run, window
from strategy.problems import assert_refused, flat_grad

from gcond.strategy import GradientConductor, Linear, Raw, Sequential


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


@pytest.mark.parametrize(("name", "one_by_one"), [*((name, False) for name in STRATEGIES), ("gcond bfloat16", True)])
def test_push_is_step(name, one_by_one):
    """A graph for each task is `forward="per_task"`."""
    step, push = Run(STRATEGIES[name]()), Run(STRATEGIES[name]())
    windows = [window(seed) for seed in range(3)]
    assert repr(pushed(push, chain(*windows), one_by_one)) == repr(step.train(windows))
    assert push.state() == step.state()
    assert len(push.gradients) == 3
    assert all(map(torch.equal, push.gradients, step.gradients))


@pytest.mark.parametrize("name", ["gcond lion", "pcgrad, its order", "gcond micro-batch", "famo"])
@pytest.mark.parametrize("wrong", [{"gradient": 1e38}, {"loss": float("nan")}], ids=["overflow", "nan"])
def test_windows_that_are_left_out_end_where_step_ends_them(name, wrong):
    """Resolved by micro-batch, a window ends with the first one that is wrong."""
    step, push = (
        Run(STRATEGIES[name]() | {"nonfinite": "skip"}, torch.amp.GradScaler("cpu", init_scale=1024.0))
        for _ in range(2)
    )
    batches = [*window(0), *window(1, **wrong), *window(2)]
    left_out = K if step.conductor.estimator.resolves_micro_batches else 1
    taken = iter(batches)
    records = [step.step(taken) for _ in range(left_out + 2)]
    assert repr(pushed(push, batches)) == repr(records)
    assert [record.get("skipped", 0) for record in records] == [0] + [1] * left_out + [0]
    assert push.state() == step.state()


def conductor_of(network: Network, estimator: Any = None) -> GradientConductor:
    return GradientConductor(network, TASKS, estimator or Sequential(2), Linear(), Raw(), clip_norm=None)


def push(conductor: GradientConductor, network: Network, seed: int = 0) -> None:
    with conductor.micro_batch():
        conductor.backward(network.losses(window(seed)[0], conductor.serves))


def test_what_is_no_push():
    network = Network()
    batch, every = window(0)[0], list(TASKS)
    conductor = conductor_of(network)
    assert (conductor.ready, conductor.flush()) == (False, False)
    assert_refused("`resolve`: .*after at least one", conductor.resolve)
    for _ in range(2):
        assert_refused("`backward`: .*within", conductor.backward, network.losses(batch, every))
        push(conductor, network)
        if not conductor.ready:
            assert_refused("`step`: expected no window", conductor.step, [batch] * 2, network.losses)
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

    def apart() -> None:
        with conductor.micro_batch():
            losses = network.losses(batch, every)
            for name in every:
                conductor.backward({name: losses[name]})

    with pytest.raises(RuntimeError, match=r"`losses`: .*share a part in one call of `backward`"):
        apart()
    assert_refused("`losses`: .*'b', 'c'", twice)
    assert_refused("`micro_batch`: expected one at a time", nested)
    assert_refused("`scaler`: expected the same", other_scaler)


def test_micro_batches_of_two_conductors_may_overlap():
    """What both have set meanwhile is put back, in whatever order they end."""
    networks = [Network(), Network()]
    first, second = map(conductor_of, networks)
    settings = lambda: (torch._functorch.config.donated_buffer, torch.compiler.config.cache_key_tag)  # noqa: E731
    before = settings()
    with first.micro_batch(), second.micro_batch():
        assert settings() != before
        for network, conductor in zip(networks, (first, second), strict=True):
            conductor.backward(network.losses(window(0)[0], list(TASKS)))
    assert settings() == before


def test_an_exception_ends_the_window():
    network = Network()
    conductor = conductor_of(network)

    def fail() -> None:
        with conductor.micro_batch():
            conductor.backward(network.losses(window(1)[0], ["a"]))
            raise KeyError("absent")

    push(conductor, network)
    with pytest.raises(KeyError, match="absent"):
        fail()
    assert all(parameter.grad is None for parameter in network.parameters())
    for seed in (0, 1):
        push(conductor, network, seed)
    conductor.resolve()
    found = flat_grad(network)
    conductor_of(network).step([window(0)[0], window(1)[0]], network.losses)
    assert torch.equal(found, flat_grad(network))


@pytest.mark.parametrize("buffer_dtype", [None, "bfloat16"])
def test_a_backward_pass_of_ones_own(buffer_dtype):
    """Within a micro-batch it would go into some task's gradient; between two of them it is nobody's."""

    def gradient(*places: str) -> Any:
        network = Network()
        conductor = GradientConductor(network, TASKS, Sequential(2), Linear(), buffer_dtype=buffer_dtype)
        own = lambda place: place in places and network.head.weight.square().sum().backward()  # noqa: E731
        for batch in window(0)[:2]:
            with conductor.micro_batch():
                own("before")
                conductor.backward(network.losses(batch, ["a"]))
                own("in between")
                conductor.backward(network.losses(batch, ["b", "c"]))
                own("after")
            own("outside")
        conductor.resolve()
        return flat_grad(network)

    assert torch.equal(gradient("outside"), gradient())
    for place in ("before", "in between", "after"):
        assert_refused("`losses`: expected them .* found a gradient of head.weight", gradient, place)


def test_an_exception_that_is_caught_within_a_micro_batch_does_not_count():
    """The rows hold a part of a backward pass, as after an allocation that failed."""
    network = Network()
    conductor = conductor_of(network)

    def caught() -> None:
        with conductor.micro_batch():
            try:
                losses = network.losses(window(0)[0], list(TASKS))
                losses["b"].register_hook(lambda _: exec("raise MemoryError"))
                conductor.backward(losses)
            except MemoryError:
                """As a loop that leaves such batches out."""

    assert_refused("`losses`: .*caught within the micro-batch; catch it outside", caught)
    assert not conductor.flush()


def test_what_the_caller_does_to_its_losses_afterwards_is_its_own():
    network = Network()
    conductor = conductor_of(network, Sequential(1))
    with conductor.micro_batch():
        losses = network.losses(window(0)[0], list(TASKS))
        expected = losses["a"].item()
        conductor.backward(losses)
        losses["a"].detach().add_(7.0)
    assert conductor.resolve()["loss/a"] == pytest.approx(expected)


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
