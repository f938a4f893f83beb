"""bench/: each bench once at its smallest size, and the arithmetic behind its numbers."""

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from engine.runs import TINY as TINY_RUN
from script_files import ROOT, load

from gcond.config import compose
from gcond.data.images import TensorImages
from gcond.engine.trainer import Trainer
from gcond.strategy import GCond
from gcond.study import bench
from gcond.synthetic_run import SyntheticRun
from gcond.timing import Ratio, interleaved, interval

CPU, GPU = torch.device("cpu"), torch.device("cuda")
TINY = ["model=mobilenetv3_small_050", "model.width=32", "model.depth=1", "scale.image_size=64"]
TINY += ["scale.accumulation_steps=2", "scale.micro_batch=2"]
GB = 10**9
steps, memory, data = (load(f"bench/{name}") for name in ("steps", "memory", "data"))


# Times


def test_ratio_is_the_median_of_paired_ratios():
    """A machine that slows down tenfold in the middle changes no ratio; the ratio of medians would be 5.5."""
    base = np.array([1.0, 1.0, 10.0, 10.0, 10.0])
    assert Ratio.of(2 * base, base) == Ratio(2.0, 2.0, 2.0)
    assert Ratio.of(np.array([1.0, 2.0, 9.0]), np.ones(3)).median == 2.0


def test_interval_covers_the_median_as_often_as_it_says():
    """500 samples of 25 normal numbers: 95 % up to three standard errors (1 %) and the bootstrap's own bias (2 %)."""
    random = np.random.default_rng(0)
    covered = [low <= 0 <= high for low, high in (interval(random.normal(size=25)) for _ in range(500))]
    assert 0.92 <= np.mean(covered) <= 0.98


def test_everyone_takes_one_turn_in_every_round_after_being_prepared():
    turns = []
    works = {name: lambda name=name: turns.append(name) for name in "abc"}
    times = interleaved(works, 4, CPU, warm_up=2, prepare=lambda name: turns.append(f"before {name}"))
    assert {name: len(taken) for name, taken in times.items()} == {"a": 4, "b": 4, "c": 4}
    rounds = [turns[i : i + 6] for i in range(0, len(turns), 6)]
    assert len(rounds) == 6
    for played in rounds:
        assert sorted(played[1::2]) == ["a", "b", "c"]
        assert [f"before {name}" for name in played[1::2]] == played[::2]
    assert len({tuple(played) for played in rounds}) > 1  # the order changes


# Steps


def test_a_case_has_the_paper_s_shape_and_counts_its_passes_by_hand():
    (table4,) = steps.settings("table4", CPU, "16GB", [])
    cfg = table4.config("gcond_sequential_per_task")
    assert (cfg.model.name, cfg.scale.image_size, cfg.scale.accumulation_steps) == ("convnext_tiny", 128, 24)
    passes = {"gcond_sequential_per_task": (2, 2), "plain": (1, 1), "pcgrad": (1, 2), "gcond_stochastic": (1, 1)}
    assert {name: steps.passes(table4.config(name)) for name in passes} == passes
    on_gpu = steps.settings("table4", GPU, "16GB", ["strategy=pcgrad,baseline"])
    shapes = [(each.config("baseline").precision, each.own, each.config("pcgrad").scale.image_size) for each in on_gpu]
    assert shapes == [("fp32", False, 256), ("fp32", True, 256), ("bf16", False, 256), ("bf16", True, 256)]
    assert set(on_gpu[0].methods) == {"plain", "forward", "forward and backward", "baseline", "pcgrad"}


def test_the_control_moves_the_weights_as_baseline_does():
    """So what it leaves out is the conductor, and nothing of the training. SGD, which forgives no factor."""
    cfg = compose(["scale=paper", "dataset=ct", "strategy=baseline", "scale.warmup_epochs=0", "optimizer=sgd", *TINY])
    ours, theirs = SyntheticRun(cfg, CPU), steps.Plain(cfg, CPU)
    start = torch.cat([p.detach().flatten().clone() for p in theirs.model.parameters()])
    for _ in range(3):
        ours.step()
        theirs.step()
    ends = [torch.cat([p.detach().flatten() for p in each.model.parameters()]) for each in (ours, theirs)]
    assert (ends[0] - ends[1]).norm() < 1e-3 * (ends[1] - start).norm()


def test_the_largest_that_fits_wherever_the_search_starts():
    for limit in range(40):
        for start in (1, 2, 7, 8, 30, 39, 170):
            tried: list[int] = []
            assert steps.largest(lambda n: tried.append(n) or n <= limit, start) == (limit or None)  # noqa: B023
            assert min(tried) >= 1
            assert len(set(tried)) == len(tried) <= 17


def test_ratios_of_own_batches_are_per_image(monkeypatch):
    """By hand: 2 s for 8 images against 3 s for 4 is three times as long an image; PCGrad fits at no batch."""
    monkeypatch.setattr(steps, "describe", lambda device: "a GPU")
    sizes = {"plain": 8, "baseline": 8, "gradnorm": 4, "pcgrad": None}
    found = {method: None if size is None else (size, 11.0) for method, size in sizes.items()}
    monkeypatch.setattr(steps, "peak_alone", lambda setting, method, device, start: found[method])
    monkeypatch.setattr(steps, "work_of", lambda setting, method, device, more: method)
    seconds = {"plain": 1.0, "baseline": 2.0, "gradnorm": 3.0, "forward": 32.0, "forward and backward": 96.0}
    monkeypatch.setattr(
        steps, "interleaved", lambda works, rounds, device: {name: np.full(rounds, seconds[name]) for name in works}
    )
    own = steps.settings("table4", GPU, "16GB", ["precision=fp32", "strategy=baseline,gradnorm,pcgrad"])[1]
    rows = bench.table(steps.measure(own, GPU, rounds=3))
    times = rows[(rows.quantity == "time")].set_index("strategy").value
    assert [times[name] for name in ("plain", "gradnorm")] == [0.5, 3.0]
    assert "pcgrad" not in times
    largest = rows[rows.quantity == "largest_micro_batch"].set_index("strategy").value
    assert largest["gradnorm"] == 4
    assert np.isnan(largest["pcgrad"])
    assert rows[(rows.quantity == "bound") & (rows.strategy == "gradnorm")].value.item() == (1 + 2 * 2) / (1 + 2)
    assert set(rows.case) == {"each its largest in 16GB"}


def run_steps(folder: Path, *words: str) -> int:
    return steps.main([*words, "--device", "cpu", "--rounds", "2", "--results", str(folder)])


def test_a_case_is_measured_once_and_its_page_written(tmp_path, monkeypatch):
    words = ["table3", "dataset=ct", "strategy=baseline,pcgrad,gcond_stochastic,gcond_sequential", *TINY]
    assert run_steps(tmp_path, *words) == 0
    rows = bench.read(tmp_path)
    ratios = rows[rows.quantity == "time"].set_index(["strategy", "against"])
    assert set(ratios.index.get_level_values(1)) == {"baseline", "gcond_sequential", "gcond_sequential_per_task"}
    assert (ratios.low <= ratios.value).all()
    assert 0 < ratios.value["forward", "baseline"] < ratios.value["pcgrad", "baseline"]
    assert "PCGrad" in (tmp_path / "bench.md").read_text()
    monkeypatch.setattr(steps, "measure", None)  # would be called
    assert run_steps(tmp_path, *words) == 0
    monkeypatch.setattr(steps, "measure", lambda *_: [dict(rows.iloc[0]) | {"value": 9.0}])
    assert run_steps(tmp_path, *words, "--anew") == 0
    again = bench.read(tmp_path)
    assert len(again) == len(rows)
    assert again.value.iloc[0] == 9.0


def test_planted_conflict_has_the_cosine_that_is_said():
    rows = steps.task_gradients(4, 200_000, CPU)
    unit = rows / rows.norm(dim=1, keepdim=True)
    expected = [[0.297 if (i - j) % 2 == 0 else -0.297 for j in range(4)] for i in range(4)]
    cosines = (unit @ unit.T - torch.tensor(expected)).fill_diagonal_(0)
    assert cosines.abs().max() < 0.01


@pytest.mark.slow
def test_the_arbitration_alone_is_measured_in_copies(tmp_path, monkeypatch):
    monkeypatch.setattr(steps, "TASKS", (2,))
    assert run_steps(tmp_path, "resolve", "--parameters", "2000") == 0
    rows = bench.read(tmp_path)
    time_of = rows[rows.quantity == "time"].set_index("strategy")
    assert set(time_of.against) == {steps.COPY}
    assert {"GCond", "GCond, compiled", "TorchJD's CAGrad", "statistics"} <= set(time_of.index)
    assert (time_of.value > 0).all()


# Memory


def test_plans_are_those_that_are_recorded():
    """So the bench makes what results/bench.csv has; a strategy that is newer than the record may be missing there."""
    rows = bench.read(ROOT / "results")
    rows = rows[rows.bench == "memory"]
    names = [name for name in bench.KEY if name not in ("parameters", "against", "quantity", "unit")]
    recorded = {tuple(row) for row in rows[names].fillna(-1).astype(object).itertuples(index=False)}
    known = sorted(set(rows.strategy))
    planned = bench.table(plan.about() for plan in memory.plans(known, "16GB"))
    made = {tuple(row) for row in planned[names].fillna(-1).astype(object).itertuples(index=False)}
    assert made == recorded


@pytest.mark.slow
def test_memory_is_planned_once(tmp_path, monkeypatch):
    shapes = {"model": "mobilenetv3_small_050", "image_size": 64, "precision": "bf16"}
    few_steps = shapes | {"accumulation_steps": 2}
    few = [memory.Plan("pcgrad", **shapes, graph=graph, tasks=m) for graph in memory.GRAPHS[::2] for m in (2, 3)]
    few += [memory.Plan("gcond_stochastic", **few_steps, buffers="bfloat16 buffers", budget="0.05GB")]
    few += [memory.Plan("uw", **few_steps, budget="0.001GB")]
    monkeypatch.setattr(memory, "plans", lambda strategies, budget: few)
    assert memory.main(["--results", str(tmp_path)]) == 0
    rows = bench.read(tmp_path)
    peak = rows[rows.quantity == "peak"].set_index(["tasks", "case"]).value
    kept = "graph kept until the next"
    assert peak[2][""] < peak[2][kept] < peak[3][kept]
    row_mb = 4 * rows.parameters.iloc[0] / 2**20
    assert peak[3][""] - peak[2][""] == pytest.approx(row_mb, rel=1e-4)
    largest = rows[rows.quantity == "largest_micro_batch"].set_index("strategy").value
    assert largest["gcond_stochastic"] > 8
    assert np.isnan(largest["uw"])
    assert rows[rows.quantity == "peak_at_1"].value.max() < GB / 2**20
    monkeypatch.setattr(memory, "measure", None)  # would be called
    assert memory.main(["--results", str(tmp_path)]) == 0


# Data


def test_a_part_stops_the_one_around_it():
    """By hand: 1 s of nothing, 2 + 4 s of arbitration around 3 s of data, 5 s of nothing; then a second lap."""
    clock = iter([0, 1, 3, 6, 10, 15, 16, 18, 18])
    watch = data.Stopwatch(lambda: next(clock))
    with watch.part("arbitration"), watch.part("data"):
        pass
    watch.lap()
    with pytest.raises(ValueError, match="made"), watch.part("passes"):
        raise ValueError("made")
    watch.lap()
    nothing = dict.fromkeys(data.PARTS, 0)
    assert watch.laps == [
        nothing | {"other": 1 + 5, "arbitration": 2 + 4, "data": 3},
        nothing | {"other": 1, "passes": 2},
    ]


def test_a_stall_is_found_where_it_is(monkeypatch):
    """Every image 10 ms late, four images a step; every arbitration 30 ms."""
    take, resolve, step = TensorImages.__getitem__, GCond.resolve, Trainer.step
    monkeypatch.setattr(TensorImages, "__getitem__", lambda *a: (time.sleep(0.01), take(*a))[1])
    monkeypatch.setattr(GCond, "resolve", lambda *a: (time.sleep(0.03), resolve(*a))[1])
    laps = data.run_watched([*TINY_RUN, "strategy=gcond_stochastic"], steps=2)
    assert len(laps) == 2
    assert (laps.data >= 0.04).all()
    assert (laps.arbitration >= 0.03).all()
    assert (laps[["passes", "windowing", "optimizer", "other"]] > 0).all(axis=None)
    assert (laps.transfer == 0).all()
    assert Trainer.step is step  # all is as it was


@pytest.mark.slow
def test_a_step_is_traced(tmp_path):
    words = ["trace", "--cases", "photos:memory:1", "--steps", "2", "--rounds", "2"]
    assert data.main([*words, "--results", str(tmp_path), "--device", "cpu", "scale=smoke"]) == 0
    rows = bench.read(tmp_path).set_index("quantity")
    assert set(rows.case) == {"memory, 1 workers"}
    assert 0 < rows.value["passes"] < 1
    assert rows.value["headroom"] == pytest.approx(rows.value["data_rate"] / rows.value["step_rate"], rel=0.5)


@pytest.mark.parametrize(("bench", "words"), [
    (steps, ["table3", "--cap", "16"]), (steps, ["table3", "scale.bogus=1"]), (steps, ["table3", "strategy=sgd"]),
    (steps, ["table3", "strategy=pcgrad"]), (memory, ["--strategies", "baseline,no_such"]),
    (data, ["trace", "--cases", "ct:memory"]), (data, ["trace", "--cases", "ct:disk:0"]),
    (data, ["trace", "--cases", "ct:store:many"])])  # fmt: skip
def test_bad_input_ends_with_what_is_wrong(bench, words, tmp_path, capsys):
    device = [] if bench is memory else ["--device", "cpu"]
    assert bench.main([*words, *device, "--results", str(tmp_path)]) == 2
    assert words[-1].split("=")[-1].split(",")[-1] in capsys.readouterr().err


@pytest.mark.cuda
def test_the_largest_batch_on_a_gpu_holds_no_more_than_the_cap():
    sizes = [text for text in TINY if "micro_batch" not in text]
    own = steps.settings("table4", GPU, "1GB", ["precision=fp32", *sizes])[1]
    size, peak = steps._peak_alone(own, "gcond_stochastic", "cuda", start=64)
    assert size > 64
    assert 0.8 * GB < peak * 2**20 <= GB
