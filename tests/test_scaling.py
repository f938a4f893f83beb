"""docs/scaling.md holds what scripts/scaling.py computes, and that counts what processes really send."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import scaling_counts
import script_files
import torch.distributed as dist

scaling = script_files.load("scaling")


SEVERAL = [pytest.param(size, marks=pytest.mark.slow) for size in (2, 4)]


@pytest.fixture(scope="module", params=[1, *SEVERAL])
def counted(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[int, list[Any]]:
    """The number of processes, and what each of them counted; one process is this one."""
    size = request.param
    if size > 1:
        return size, scaling_counts.started(size, tmp_path_factory.mktemp(f"scaling-{size}"))
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        return size, [{case: scaling_counts.window(case) for case in scaling_counts.CASES if "FSDP2" not in case}]
    finally:
        dist.destroy_process_group()


def setting(name: str, processes: int) -> Any:
    model = scaling_counts.perceptron()
    return scaling.Setting(
        processes=processes,
        micro_batches=scaling_counts.K,
        tasks=len(scaling_counts.TASKS),
        rows=1 if scaling.KINDS[name].joint else len(scaling_counts.TASKS),
        parameters=sum(p.numel() for p in model.parameters()),
        tensors=len(list(model.parameters())),
        groups=len(scaling_counts.groups(model)),
    )


@pytest.mark.parametrize("case", scaling_counts.CASES)
def test_the_model_sends_what_processes_send(case, counted):
    size, found = counted
    if case not in found[0]:
        pytest.skip("fully_shard over one process sends nothing")
    name = case.removesuffix(", stochastic")
    expected = scaling.KINDS[name].sent(setting(name, size))
    for process in found:
        assert process[case]["told"] == dict(expected)
        if not name.startswith(("FSDP2", "per rank")):  # which send something by torch's own hand
            assert process[case]["asked"] == dict(expected)


@pytest.mark.parametrize("counted", SEVERAL, indirect=True)
@pytest.mark.parametrize("name", ["FSDP2", "FSDP2, one row"])
def test_the_model_sends_what_fsdp_sends(name, counted):
    size, found = counted
    at = setting(name, size)
    padded = sum(-(-len(p) // size) * size * p[0].numel() for p in scaling_counts.perceptron().parameters())
    expected = scaling.fsdp(replace(at, parameters=padded))
    for process in found:
        for key, number in expected.items():
            assert process[name]["asked"][key] == number


def test_every_kind_but_the_bar_is_counted():
    assert {case.removesuffix(", stochastic") for case in scaling_counts.CASES} == set(scaling.KINDS) - {"plain"}


def test_the_page_holds_the_script_s_tables():
    page = scaling.PAGE.read_text(encoding="utf-8")
    assert scaling.filled(page) == page, "run: python scripts/scaling.py --write"


def test_a_page_without_its_blocks_is_refused():
    with pytest.raises(ValueError, match=r"scaling.md: expected one block `<!-- answer: .* found 0"):
        scaling.filled("# Scaling")


# Time, by hand: P = 25 M float32 numbers at 25 GB/s take 4 ms

MACHINE = scaling.Machine(forward_s=0.01, bytes_per_s=25e9, latency_s=0.0)
PARAMETERS = 25_000_000


def test_extra_time_by_hand():
    assert scaling.ring_s(MACHINE, 4, PARAMETERS) == pytest.approx(0.003)
    assert scaling.extra_s(MACHINE, 4, 3, PARAMETERS) == pytest.approx(0.006)
    late = replace(MACHINE, latency_s=1e-3)
    assert scaling.extra_s(late, 4, 3, PARAMETERS) == pytest.approx(0.006 + 2 * 0.003 + 2 * 2 * 0.002)
    # stochastic, 3 micro-batches: 90 ms, and 6 ms for the all-reduce; sequential, three tasks: 210 ms
    assert scaling.extra_share(MACHINE, "stochastic", 3, PARAMETERS, 4, 3) == pytest.approx(6 / 96)
    assert scaling.extra_share(MACHINE, "sequential", 3, PARAMETERS, 4, 3) == pytest.approx(6 / 216)
    assert scaling.extra_share(MACHINE, "per task", 3, PARAMETERS, 4, 3) == pytest.approx(6 / 276)


@pytest.mark.parametrize("estimator", scaling.ESTIMATORS)
@pytest.mark.parametrize("tasks", scaling.TASKS)
@pytest.mark.parametrize("share", [0.01, 0.05])
def test_the_formula_is_the_model_s_limit(estimator, tasks, share):
    def costs(own: int) -> float:
        return scaling.extra_share(MACHINE, estimator, tasks, PARAMETERS, 10**9, own)

    own = scaling.enough(MACHINE, estimator, tasks, PARAMETERS, share)
    assert costs(own) <= share
    assert own == 1 or costs(own - 1) > share


def test_one_process_and_one_task_cost_nothing():
    assert scaling.extra_s(scaling.PAPER, 1, 5, PARAMETERS) == 0
    assert scaling.extra_s(MACHINE, 8, 1, PARAMETERS) == 0


@cache
def printed() -> str:
    return scaling.own_machine(replace(MACHINE, forward_s=0.015), PARAMETERS)


def test_the_table_of_one_s_own_machine(capsys):
    scaling.main(["--forward-ms", "15", "--parameters", "25e6"])
    assert capsys.readouterr().out.strip() == printed()
    with pytest.raises(SystemExit):
        scaling.main(["--forward-ms", "0"])
    assert "`--forward-ms`: expected a number > 0, found 0.0" in capsys.readouterr().err


@pytest.mark.slow
def test_networks_have_as_many_parameters_as_the_page_says():
    from gcond.config import build
    from gcond.synthetic_run import composed

    for network in scaling.NETWORKS:
        cfg = composed([f"model={network.name}", "scale=paper", "dataset=ct"])
        parameters = list(build(cfg.model, channels=1).parameters())
        assert (sum(p.numel() for p in parameters), len(parameters)) == (network.parameters, network.tensors)
