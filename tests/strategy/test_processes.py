"""Several processes, one arbitration: 1, 2 and 4 with the same micro-batches; gloo on the CPU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import torch.distributed as dist
from strategy import ranks
from strategy.faulty import plain
from strategy.problems import assert_refused
from strategy.ranks import CASES, TASKS, Case, K, Model, images, losses_of
from torch.distributed._composable.replicate import replicate
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from gcond import GCond, GradDrop, GradientConductor, Joint, Linear, PCGrad, Raw, Sequential, Stochastic
from gcond.strategy import SAMGS
from gcond.strategy.processes import Replicated, ReplicatedPerRank, Sharded, SingleProcess

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64: what another order of sums leaves after three steps
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]
BY_TURNS = ("micro-batch", "stochastic", "lion")  # cases whose BatchNorm meets micro-batches in another order


@pytest.fixture(scope="session")
def group(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[int], ranks.Group]]:
    """Processes by their number, started when they are first needed."""
    groups = {size: ranks.Group(size, tmp_path_factory.mktemp("processes")) for size in (2, 4)}
    yield groups.__getitem__
    for each in groups.values():
        each.pool.shutdown()


@pytest.fixture
def two(group) -> ranks.Group:
    return group(2)


@cache
def alone(name: str) -> dict[str, Any]:
    return ranks.trained(name, "SingleProcess")


@cache
def together(group: ranks.Group, name: str) -> list[dict[str, Any]]:
    return group(ranks.trained, name)


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same numbers are logged, and the same gradients stand in `p.grad`, step for step."""
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own["metrics"].keys() == other["metrics"].keys()
        for key, value in other["metrics"].items():
            assert own["metrics"][key] == pytest.approx(value, rel=1e-9, abs=1e-11, nan_ok=True), (step, key)
            if key.startswith(("wins/", "zone/", "resolved")) and key != "resolved_norm":
                assert own["metrics"][key] == value, (step, key)
        torch.testing.assert_close(own["gradients"], other["gradients"], **EXACT)


def assert_same_model(found: Any, expected: Any, name: str) -> None:
    by_turns = any(word in name for word in BY_TURNS)
    for key, value in expected.items():
        if not (by_turns and "running_" in key):
            torch.testing.assert_close(found[key], value, **EXACT)


# One arbitration


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", CASES)
def test_any_number_of_processes_arbitrates_alike(name, size, group):
    """And all processes hold the same network to the bit."""
    expected, runs = alone(name), together(group(size), name)
    for own in runs:
        assert_same(own["records"], expected["records"])
        assert_same_model(own["model"], expected["model"], name)
        for record, other in zip(own["records"], expected["records"], strict=True):
            torch.testing.assert_close(record["resolved"], other["resolved"], **EXACT)
        assert repr(plain(own["model"])) == repr(plain(runs[0]["model"]))


def test_there_is_something_to_arbitrate():
    for name in ("gcond", "gcond stochastic", "fewer parameters than processes"):
        metrics = [record["metrics"] for record in alone(name)["records"]]
        assert sum(value for each in metrics for key, value in each.items() if key.startswith("wins/")) > 0
    assert all(record["metrics"]["clipped"] == 1 for record in alone("gcond forward per task")["records"])
    for name in ("pcgrad", "pcgrad micro-batch"):
        assert max(record["metrics"]["correction"] for record in alone(name)["records"]) > 0.01


@pytest.mark.parametrize("size", [1, *SIZES])
@pytest.mark.parametrize("name", ["gcond", "gcond stochastic", "pcgrad", "sam-gs", "gradnorm micro-batch"])
def test_what_two_processes_saved_any_number_continues(name, size, group):
    states = [own["state"] for own in together(group(2), name)]
    assert repr(plain(states[0][0])) == repr(plain(states[1][0]))
    found = [ranks.continued(name, states[0], "SingleProcess")]
    if size > 1:
        found = group(size)(ranks.continued, name, states[0])
    for own in found:
        assert_same(own, alone(name)["records"][2:])


def test_saved_history_is_that_of_one_process(two):
    expected = alone("gcond")["state"][0]["reference"]
    for own in together(two, "gcond"):
        torch.testing.assert_close(own["state"][0]["reference"], expected, **EXACT)


def test_weights_that_are_permuted_in_training_change_nothing(two):
    for records in two(ranks.permuted):
        assert_same(records, alone("gcond")["records"])


@pytest.mark.parametrize("counts", [(1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", ranks.PUSHED)
def test_a_window_that_ends_early_is_that_of_one_process(name, counts, two):
    """And so it is where one process has more micro-batches, or other tasks, than the other."""
    for found in two(ranks.pushed, name, counts):
        torch.testing.assert_close(found, ranks.pushed(name, counts, "SingleProcess"), **EXACT)


@pytest.mark.parametrize("name", ["gcond", "pcgrad micro-batch"])
def test_per_rank_is_the_mean_of_processes_that_resolve_for_themselves(name, two):
    """As published. The gradients of the same network at every step; BatchNorm's statistics are the batch's."""
    estimator = CASES[name].parts()[0]
    half = lambda: (replace(estimator, accumulation_steps=K // 2), *CASES[name].parts()[1:])  # noqa: E731
    case = Case(half, settings=CASES[name].settings)
    shares = [range(0, K, 2), range(1, K, 2)] if estimator.resolves_micro_batches else [range(K // 2), range(K // 2, K)]
    halves = [ranks.Run(case, SingleProcess(), lr=0.0, own=share).steps(0, ranks.STEPS) for share in shares]
    for process in two(ranks.trained, name, "ReplicatedPerRank", Model, 0.0):
        for found, *both in zip(process["records"], *halves, strict=True):
            for key, gradient in found["gradients"].items():
                mean = (both[0]["gradients"][key] + both[1]["gradients"][key]) / 2
                torch.testing.assert_close(gradient, mean, **EXACT)
            weights = torch.tensor([[each["metrics"][f"weight/{task}"] for task in TASKS] for each in both])
            assert [found["metrics"][f"weight/{task}"] for task in TASKS] == pytest.approx(weights.mean(0).tolist())
            assert not torch.equal(*weights)
        first = process["records"][0]  # before momentum counts
        square = sum(float(gradient.square().sum()) for gradient in first["gradients"].values())
        assert first["metrics"]["resolved_norm"] == pytest.approx(math.sqrt(square))


# What is refused


@pytest.fixture
def in_name() -> Iterator[Callable[[int], None]]:
    """torch.distributed with so many processes, of which all but this one are made up."""
    yield lambda size: dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    dist.destroy_process_group()


@pytest.mark.parametrize("size", [2, 4])
def test_what_cannot_be_shared_is_refused(size, in_name):
    in_name(size)
    in_turns, odd, multiple = ranks.in_turns(), K * size + 1, "`accumulation_steps`: expected a multiple of"
    for processes, estimator, resolver, refusal in [
        (None, Joint(K), Linear(), f"`processes`: found {size} processes in torch.distributed"),
        (Replicated(), Joint(odd), Linear(), f"{multiple} {size}, "),
        (ReplicatedPerRank(), Sequential(odd), GCond(), f"{multiple} {size}, "),
        (Replicated(), Stochastic(3 * size + 3), GCond(), f"{multiple} {3 * size}, "),
        (Replicated(), in_turns, GCond(), '`resolve_every`: expected "window", as GCond remembers'),
        (Replicated(), in_turns, SAMGS(), '`resolve_every`: expected "window", as SAMGS remembers'),
        (Sharded(), Joint(K), Linear(), "`processes`: expected parameters of fully_shard"),
    ]:
        assert_refused(refusal, GradientConductor, Model(), TASKS, estimator, resolver, Raw(), processes=processes)


def test_what_sharded_parameters_cannot_do_is_refused(in_name, two):
    for said in two(ranks.sharded_says, "lacks a task"):
        assert "`losses`: " in said
        assert "in every micro-batch" in said
    for wrong in ("not reduced", "body not reduced"):
        for said in two(ranks.sharded_says, wrong):
            assert "leave set_requires_gradient_sync(False) out" in said
    in_name(2)
    model, half = ranks.sharded_model(), Model()
    fully_shard(half.body, mesh=init_device_mesh("cpu", (2,)))
    joint = (Joint(K), Linear())
    for network, parts, processes, refusal in [
        (model, (Sequential(K), GradDrop()), None, "`resolver`: .* found GradDrop"),
        (model, (ranks.in_turns(), PCGrad()), None, '`resolve_every`: expected "window" with Sharded'),
        (model, joint, Replicated(), "`processes`: expected Sharded.*, found Replicated"),
        (model, joint, SingleProcess(), "`processes`: expected Sharded.*, found SingleProcess"),
        (half, joint, None, r"`parameters`: .* all sharded .*, found encoder\[0\] not sharded"),
    ]:
        groups = network.parameter_groups()
        assert_refused(refusal, GradientConductor, groups, TASKS, *parts, Raw(), processes=processes)


def test_a_share_of_the_window_is_asked_for(one_of_one):
    conductor = GradientConductor(Model(), TASKS, Joint(K), Linear(), Raw(), processes=Replicated())
    assert_refused("`batches`: expected 12 micro-batches", conductor.step, [None] * (K + 1), None.__eq__)


def test_sharded_without_processes_is_refused():
    assert_refused(r"`processes`: Sharded expects torch.distributed to be initialised", Sharded)


def test_a_process_that_differs_is_named_in_all(two):
    for found in two(ranks.unlike):
        for said, pattern in found:
            assert re.match(pattern, said), (pattern, said)


def test_processes_that_come_later_are_noticed(in_name):
    model = Model()
    conductor, told = (
        GradientConductor(model, TASKS, Joint(1), Linear(), Raw(), processes=processes)
        for processes in (None, SingleProcess())
    )
    conductor.step(images(0, 1), losses_of(model))
    in_name(2)
    refusal = r"`processes`: found 2 processes in torch.distributed; expected Replicated"
    assert_refused(refusal, conductor.step, images(0, 1), losses_of(model))
    told.step(images(0, 1), losses_of(model))


def test_processes_that_become_fewer_are_noticed(one_of_one):
    conductor = GradientConductor(Model(), TASKS, Joint(1), Linear(), Raw(), processes=Replicated())
    conductor.processes.size = 2
    refusal = r"`processes`: expected process 0 of 2, .* found process 0 of 1"
    assert_refused(refusal, conductor.step, [], None.__eq__)


def fsdp1(model: torch.nn.Module) -> torch.nn.Module:
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


@pytest.mark.usefixtures("one_of_one")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapped", [DistributedDataParallel, replicate, fsdp1])
def test_a_model_that_reduces_its_gradients_itself_is_refused(wrapped):
    for estimator in (Joint(1), Sequential(1), Stochastic(3)):
        for processes in (SingleProcess, Replicated):
            model = torch.nn.Linear(192, 2)
            called = wrapped(torch.nn.Sequential(torch.nn.Flatten(), model))
            conductor = GradientConductor(model, TASKS, estimator, Linear(), Raw(), processes=processes())
            losses = lambda batch, names, called=called: {name: called(batch.float()).sum() for name in names}  # noqa: E731
            refusal = r"`parameters`: found a model in (Distr|Fully).*DataParallel"
            for _ in range(2):
                assert_refused(refusal, conductor.step, images(0, estimator.accumulation_steps), losses)


# Not finite in one process: nobody waits for the others


@pytest.mark.parametrize("where", ["loss", "gradient"])
@pytest.mark.parametrize("resolver", ["gcond", "pcgrad"])
@pytest.mark.parametrize("kind", ["Replicated", "ReplicatedPerRank"])
def test_all_processes_raise_skip_and_rescale_together(kind, resolver, where, two):
    own = "NotFinite: step 1: the loss of task 'ssim' is nan"
    if where == "gradient":
        own = "GradientNotFinite: step 1: the gradient of task 'ssim' is not finite, first in parameter body.weight"
    other = f"{own.split(':')[0]}: step 1: another process found a {where} that is not finite"
    first, last = (found["said"] for found in two(ranks.not_finite, kind, where, resolver, "raise"))
    assert (first, last) == (own if kind == "Replicated" else other, own)
    for found in two(ranks.not_finite, kind, where, resolver, "skip"):
        assert (found["said"], found["skipped"]) == ("", 1)
        assert found["gradients"] == [None] * len(found["gradients"])
        if resolver == "gcond":  # PCGrad has met the micro-batches before
            before, after = (plain(state | {"steps": 0, "skipped": 0}) for state in found["state"])
            assert repr(before) == repr(after)
    for found in two(ranks.not_finite, kind, where, resolver, "scaler"):
        if where == "loss":
            assert found["said"].startswith("NotFinite: step 1")
        else:  # an overflow in one lowers the scale of all
            assert (found["said"], found["skipped"], found["scale"], found["moved"]) == ("", 1, 512, False)


def test_a_problem_that_one_process_cannot_solve_is_everybody_s(two):
    for said, _ in two(ranks.unsolved, "raise"):
        assert said.startswith("Unsolved: FairGrad, resolution 0: there is no solution")
    assert two(ranks.unsolved, "skip") == [("", 1.0)] * 2


# What is sent


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "rows"), [("joint", 1), ("gcond", 3), ("gcond stochastic", 3), ("joint diagnosed", 3)]
)
def test_a_window_moves_m_plus_one_times_the_parameters(name, rows, size, group):
    """But for what the number of processes does not divide, which goes with the losses."""
    numbers = [p.numel() for p in Model().parameters()]
    rest = sum(numbers) % size
    small = 2 * 3 + rows * len(numbers) + rows * rest  # losses, their number, which row reaches which parameter
    products = 4 * 2 * rows**2  # of four parameter groups
    batchnorm = 2 * 8 + 2  # means and variances of eight channels, the number of updates and its square
    for process in together(group(size), name):
        assert process["counts"] == {
            "reduce_scatter/calls": ranks.STEPS * rows,
            "reduce_scatter/numbers": ranks.STEPS * rows * (sum(numbers) - rest),
            "all_gather/calls": ranks.STEPS,
            "all_gather/numbers": ranks.STEPS * (sum(numbers) - rest),
            "all_reduce/calls": ranks.STEPS * 3,
            "all_reduce/numbers": ranks.STEPS * (small + products + batchnorm),
        }


def test_per_rank_moves_one_gradient(two):
    numbers = [p.numel() for p in Model().parameters()]
    for process in two(ranks.trained, "gcond", "ReplicatedPerRank"):
        small = 3 + 3 * len(numbers) + 18  # wrong or missing, reached and BatchNorm
        assert process["counts"]["all_reduce/numbers"] == ranks.STEPS * (sum(numbers) + small)
        assert process["counts"]["all_gather_object/calls"] == ranks.STEPS


# FSDP2


@pytest.mark.parametrize(
    ("name", "reshard"),
    [
        pytest.param(name, reshard, marks=() if (name, reshard) == ("gcond", True) else pytest.mark.slow)
        for name in ranks.SHARDED
        for reshard in (True, False)
    ],
)
def test_sharded_is_one_process(name, reshard, two):
    for found in two(ranks.sharded, name, reshard):
        assert_same(found["records"], alone(name)["records"])
        assert_same_model(found["model"], alone(name)["model"], name)
        assert_same(found["continued"], found["records"][2:])


@pytest.mark.slow
def test_sharded_gradient_that_is_not_finite_is_named_everywhere(two):
    for said in two(ranks.sharded_says, "not finite"):
        assert said.startswith("GradientNotFinite: step 0: the gradient of task 'ssim' is not finite, first in")


# BatchNorm's running statistics


def test_merged_is_one_process_that_takes_all_in_order(two):
    expected = ranks.Normed()
    for batch in ranks.vectors(8):
        expected(batch)
    for state, sums, said in two(ranks.normed, "in train"):
        assert (sums, said) == (1, "")
        torch.testing.assert_close(state, expected.state_dict(), rtol=1e-12, atol=1e-12)


def test_only_modules_that_were_updated_are_merged(two):
    before = ranks.Normed().state_dict()
    for state, sums, said in two(ranks.normed, "in eval"):
        assert (sums, said) == (0, "")
        torch.testing.assert_close(state, before, rtol=0, atol=0)
    for state, _, _ in two(ranks.normed, "one in eval"):
        torch.testing.assert_close(state["norms.0.running_mean"], before["norms.0.running_mean"], rtol=1e-12, atol=0)
        assert state["norms.1.num_batches_tracked"] == before["norms.1.num_batches_tracked"] + 8


def test_what_is_not_merged(two):
    """Different numbers of updates are refused by all; SyncBatchNorm is left alone, and so is all after an error."""
    for _, _, said in two(ranks.normed, "unequal"):
        assert "expected as many updates of a module in each of the 2 processes" in said
    for rank, (state, sums, said) in enumerate(two(ranks.normed, "synchronised")):
        assert (int(state["num_batches_tracked"]), sums, said) == (rank, 0, "")
    assert [found[1:] for found in two(ranks.normed, "fails")] == [(0, "ArithmeticError: nan")] * 2
