"""Several processes, one arbitration: 1, 2 and 4 with the same micro-batches; gloo on the CPU."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from strategy import ranks
from strategy.faulty import plain
from strategy.problems import assert_refused
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from gcond import GradientConductor, Joint, Linear, Raw, Replicated, Sequential, Sharded, SingleProcess, Stochastic

EXACT = {"rtol": 1e-9, "atol": 1e-11}  # float64: what another order of sums leaves after three steps
SIZES = [2, pytest.param(4, marks=pytest.mark.slow)]
SHARDED = {f"sharded {name}": case for name, case in ranks.SHARDED.items()}
BY_TURNS = ("micro-batch", "stochastic", "lion")  # cases whose BatchNorm meets micro-batches in another order


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="session")
def two(folder: Path) -> list[dict[str, Any]]:
    work = ["arbitrated_once", "per_rank", "refused", "not_finite", "unsolved", "unlike", "permuted", "pushed"]
    return ranks.started(2, [*work, "sharded_gcond", "sharded_refused"], folder)


@pytest.fixture(scope="session")
def four(folder: Path, two: object) -> list[dict[str, Any]]:
    return ranks.started(4, ["arbitrated_once", "continued", "refused"], folder)


@pytest.fixture(scope="session")
def two_sharded(folder: Path) -> list[dict[str, Any]]:
    return ranks.started(2, ["sharded", "sharded_not_finite"], folder)


@pytest.fixture
def found(size: int, request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return request.getfixturevalue({2: "two", 4: "four"}[size])


@cache
def alone(name: str) -> dict[str, Any]:
    return ranks.trained((ranks.CASES | SHARDED)[name], SingleProcess())


def assert_same(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """The same numbers are logged, and the same gradients stand in `p.grad`, step for step."""
    for step, (own, other) in enumerate(zip(found, expected, strict=True)):
        assert own["metrics"].keys() == other["metrics"].keys()
        for key, value in other["metrics"].items():
            assert own["metrics"][key] == pytest.approx(value, rel=1e-9, abs=1e-11, nan_ok=True), (step, key)
            if key.startswith(("wins/", "zone/", "resolved")) and key != "resolved_norm":
                assert own["metrics"][key] == value, (step, key)
        torch.testing.assert_close(own["gradients"], other["gradients"], **EXACT)


# One arbitration


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", ranks.CASES)
def test_any_number_of_processes_arbitrates_alike(name, size, found):
    """And all processes hold the same network to the bit."""
    expected, runs = alone(name), [process["arbitrated_once"][name] for process in found]
    for own in runs:
        assert_same(own["records"], expected["records"])
        by_turns = any(word in name for word in BY_TURNS)
        for key, value in expected["model"].items():
            if not (by_turns and "running_" in key):
                torch.testing.assert_close(own["model"][key], value, **EXACT)
            assert torch.equal(own["model"][key], runs[0]["model"][key])


def test_there_is_something_to_arbitrate():
    for name in ("gcond", "gcond stochastic", "heads", "fewer parameters than processes"):
        metrics = [record["metrics"] for record in alone(name)["records"]]
        assert sum(value for each in metrics for key, value in each.items() if key.startswith("wins/")) > 0
    assert all(record["metrics"]["clipped"] == 1 for record in alone("gcond clipped")["records"])
    for name in ("pcgrad", "pcgrad micro-batch", "upgrad"):
        assert max(record["metrics"]["correction"] for record in alone(name)["records"]) > 0.01


def test_diagnosis_keeps_the_whole_resolved_gradient(two):
    expected = alone("joint diagnosed")["records"]
    for own in (process["arbitrated_once"]["joint diagnosed"]["records"] for process in two):
        for record, other in zip(own, expected, strict=True):
            torch.testing.assert_close(record["resolved"], other["resolved"], **EXACT)


# Saved and continued


def assert_equal_states(state: Any, other: Any) -> None:
    assert repr(plain(state)) == repr(plain(other))


@pytest.mark.parametrize("name", ranks.SAVED)
def test_all_processes_save_the_same_state_which_one_continues(name, two, folder):
    case = ranks.CASES[name]
    assert_equal_states(*(process["arbitrated_once"][name]["state"]["conductor"] for process in two))
    state = torch.load(folder / "saved by two.pt", weights_only=True)[name]
    assert_same(ranks.continued_from(state, case, SingleProcess()), alone(name)["records"][2:])


def test_saved_history_is_that_of_one_process(two):
    expected = alone("gcond")["state"]["conductor"]["reference"]
    for process in two:
        found = process["arbitrated_once"]["gcond"]["state"]["conductor"]["reference"]
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ranks.SAVED)
def test_what_two_processes_saved_four_continue(name, four):
    for process in four:
        assert_same(process["continued"][name], alone(name)["records"][2:])


# As published


@pytest.mark.parametrize("name", ranks.PER_RANK)
def test_per_rank_is_the_mean_of_processes_that_resolve_for_themselves(name, two):
    case = replace(ranks.CASES[name], lr=0.0, settings={"clip_norm": None})
    estimator = case.parts()[0]
    halves = replace(estimator, accumulation_steps=ranks.K // 2)
    half = replace(case, parts=lambda: (halves, *case.parts()[1:]))
    share = two_shares(estimator)
    runs = []
    for rank in range(2):
        batches = lambda seed, rank=rank: [case.batches(seed)[index] for index in share[rank]]  # noqa: E731
        runs.append(ranks.Run(replace(half, batches=batches), SingleProcess()).steps(0, ranks.STEPS))
    differ = False
    for step, (one, other) in enumerate(zip(*runs, strict=True)):
        for process in two:
            record = process["per_rank"][name]["records"][step]
            for key, gradient in record["gradients"].items():
                expected = (one["gradients"][key] + other["gradients"][key]) / 2
                torch.testing.assert_close(gradient, expected, **EXACT)
            for task in ranks.TASKS:
                mean = (one["metrics"][f"weight/{task}"] + other["metrics"][f"weight/{task}"]) / 2
                assert record["metrics"][f"weight/{task}"] == pytest.approx(mean)
            square = sum(float(gradient.square().sum()) for gradient in record["gradients"].values())
            assert record["metrics"]["resolved_norm"] == pytest.approx(math.sqrt(square))
        differ |= any(one["metrics"][f"weight/{task}"] != other["metrics"][f"weight/{task}"] for task in ranks.TASKS)
    assert differ


def two_shares(estimator: Any) -> list[list[int]]:
    """By hand: halves of the window, or every other micro-batch where each is resolved by itself."""
    if estimator.resolves_micro_batches:
        return [list(range(0, ranks.K, 2)), list(range(1, ranks.K, 2))]
    return [list(range(ranks.K // 2)), list(range(ranks.K // 2, ranks.K))]


# Refused


def assert_said(said: ranks.Said) -> None:
    for found, pattern in said:
        assert re.match(pattern, found), (pattern, found)


@pytest.mark.parametrize("size", SIZES)
def test_what_cannot_be_shared_is_refused(size, found):
    for process in found:
        assert_said(process["refused"])


def test_what_sharded_parameters_cannot_do_is_refused(two):
    for process in two:
        assert_said(process["sharded_refused"])


def test_a_process_that_differs_is_named_in_all(two):
    for process in two:
        assert_said(process["unlike"])


def test_sharded_without_processes_is_refused():
    assert_refused(r"`processes`: Sharded expects torch.distributed to be initialised", Sharded)


# Processes that change in training


def test_weights_that_are_permuted_in_training_change_nothing(two):
    for process in two:
        assert_same(process["permuted"]["records"], alone("gcond")["records"])


@pytest.mark.parametrize("counts", [(1, 1), (1, 2)], ids=str)
@pytest.mark.parametrize("name", ranks.PUSHED)
def test_a_window_that_ends_early_is_that_of_one_process(name, counts, two):
    """And so it is where one process has more micro-batches, or other tasks, than the other."""
    expected = ranks.pushed_by(SingleProcess(), ranks.PUSHED[name], counts)
    for process in two:
        found = process["pushed"][f"{name}, {counts[0]} and {counts[1]}"]
        for own, other in zip(found, expected, strict=True):
            torch.testing.assert_close(own, other, **EXACT)


@pytest.fixture
def two_in_name() -> Iterator[Callable[[], None]]:
    """torch.distributed with two processes, of which the other one is made up."""
    yield lambda: dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=2)
    dist.destroy_process_group()


def test_processes_that_come_later_are_noticed(two_in_name):
    model = ranks.ConvNet()
    conductor = GradientConductor(model, ranks.TASKS, Joint(1), Linear(), Raw())
    told = GradientConductor(model, ranks.TASKS, Joint(1), Linear(), Raw(), processes=SingleProcess())
    window, losses = ranks.image_batches(1), ranks.three_losses(model)
    conductor.step(window, losses)
    two_in_name()
    refusal = r"`processes`: found 2 processes in torch.distributed; expected Replicated"
    assert_refused(refusal, conductor.step, window, losses)
    told.step(window, losses)


def test_processes_that_become_fewer_are_noticed(one_of_one):
    conductor = GradientConductor(ranks.ConvNet(), ranks.TASKS, Joint(1), Linear(), Raw(), processes=Replicated())
    conductor.processes.size = 2
    refusal = r"`processes`: expected process 0 of 2, .* found process 0 of 1"
    assert_refused(refusal, conductor.step, [], None.__eq__)


def wrapped_by_replicate(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed._composable.replicate import replicate

    return replicate(model)


def wrapped_by_fsdp1(model: torch.nn.Module) -> torch.nn.Module:
    from torch.distributed.fsdp import FullyShardedDataParallel

    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)


@pytest.mark.usefixtures("one_of_one")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("wrapped", [DistributedDataParallel, wrapped_by_replicate, wrapped_by_fsdp1])
def test_a_model_that_reduces_its_gradients_itself_is_refused(wrapped):
    for estimator in (Joint(1), Sequential(1), Stochastic(3)):
        for processes in (SingleProcess, Replicated):
            model = torch.nn.Linear(192, 2)
            called = wrapped(torch.nn.Sequential(torch.nn.Flatten(), model))
            conductor = GradientConductor(model, ranks.TASKS, estimator, Linear(), Raw(), processes=processes())
            window = ranks.image_batches(estimator.accumulation_steps)
            refusal = r"`parameters`: found a model in (Distr|Fully).*DataParallel"
            assert_refused(refusal, conductor.step, window, ranks.three_losses(called))


# Not finite in one process: nobody waits for the others


@pytest.mark.parametrize("strategy", ["gcond", "pcgrad"])
@pytest.mark.parametrize("kind", ["Replicated", "ReplicatedPerRank"])
def test_all_processes_raise_skip_and_rescale_together(kind, strategy, two):
    met = lambda process, where, mode: process["not_finite"][f"{kind}, {where}, {strategy}, {mode}"]  # noqa: E731
    gradient = "GradientNotFinite: step 1: the gradient of task 'ssim' is not finite, first in parameter body.weight"
    for where, own in {"loss": "NotFinite: step 1: the loss of task 'ssim' is nan", "gradient": gradient}.items():
        first, last = [met(process, where, "raise")["message"] for process in two]
        other = f"{own.split(':')[0]}: step 1: another process found a {where} that is not finite"
        assert (first, last) == (own if kind == "Replicated" else other, own)
        for process in two:
            skipped = met(process, where, "skip")
            assert (skipped["message"], skipped["skipped"]) == ("", 1)
            assert skipped["gradients"] == [None] * len(skipped["gradients"])
            if strategy == "gcond":  # PCGrad has met the micro-batches before
                before, after = [
                    {key: value for key, value in state.items() if key not in ("steps", "skipped")}
                    for state in skipped["state"]
                ]
                assert_equal_states(before, after)
    for process in two:  # an overflow in one lowers the scale of all
        overflow = met(process, "gradient", "scaler")
        assert (overflow["message"], overflow["skipped"], overflow["scale"], overflow["moved"]) == ("", 1, 512, False)
        assert met(process, "loss", "scaler")["message"].startswith("NotFinite: step 1")


def test_a_problem_that_one_process_cannot_solve_is_everybody_s(two):
    for process in two:
        said, _ = process["unsolved"]["raise"]
        assert said.startswith("Unsolved: FairGrad, resolution 0: there is no solution")
        assert process["unsolved"]["skip"] == ("", 1.0)


# What is sent


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    ("name", "rows"), [("joint", 1), ("gcond", 3), ("gcond stochastic", 3), ("joint diagnosed", 3)]
)
def test_a_window_moves_m_plus_one_times_the_parameters(name, rows, size, found):
    parameters = sum(p.numel() for p in ranks.ConvNet().parameters())
    assert parameters % 4 == 0
    small = 2 * 3 + rows * len(
        list(ranks.ConvNet().parameters())
    )  # losses, their number, and which row reaches which parameter
    products = 3 * 2 * rows**2  # of three parameter groups
    batchnorm = 2 * 8 + 2  # means and variances of eight channels, the number of updates and its square
    for process in found:
        assert process["arbitrated_once"][name]["counts"] == {
            "reduce_scatter/calls": ranks.STEPS * rows,
            "reduce_scatter/numbers": ranks.STEPS * rows * parameters,
            "all_gather/calls": ranks.STEPS,
            "all_gather/numbers": ranks.STEPS * parameters,
            "all_reduce/calls": ranks.STEPS * 3,
            "all_reduce/numbers": ranks.STEPS * (small + products + batchnorm),
        }


def test_per_rank_moves_one_gradient(two):
    parameters = sum(p.numel() for p in ranks.ConvNet().parameters())
    for process in two:
        counts = process["per_rank"]["gcond forward per task"]["counts"]
        small = 3 + 3 * len(list(ranks.ConvNet().parameters())) + 18  # wrong or missing, reached and BatchNorm
        assert counts["all_reduce/numbers"] == ranks.STEPS * (parameters + small)
        assert counts["all_gather_object/calls"] == ranks.STEPS


# FSDP2


def assert_sharded_as_whole(own: dict[str, Any], name: str) -> None:
    expected = alone(f"sharded {name}")
    assert_same(own["records"], expected["records"])
    torch.testing.assert_close(own["model"], expected["model"], **EXACT)


def test_sharded_gcond_is_gcond(two):
    for process in two:
        assert_sharded_as_whole(process["sharded_gcond"]["gcond"], "gcond")


@pytest.mark.slow
def test_sharded_is_one_process(two_sharded):
    for process in two_sharded:
        for name, own in process["sharded"].items():
            assert_sharded_as_whole(own, name.removesuffix(", kept"))
        assert_same(process["sharded"]["gcond"]["continued"], process["sharded"]["gcond"]["records"][2:])


@pytest.mark.slow
def test_sharded_gradient_that_is_not_finite_is_named_everywhere(two_sharded):
    for process in two_sharded:
        assert process["sharded_not_finite"]["message"] == (
            "GradientNotFinite: step 0: the gradient of task 'ssim' is not finite, first in parameter first.weight"
        )
