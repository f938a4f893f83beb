"""scripts/bench_step.py, bench_resolve.py and the yardstick of the latter."""

from __future__ import annotations

import sys

import pytest
import torch
from script_files import SCRIPTS, load

from gcond.report import memory, precision, resolve, step
from gcond.report.records import read_csv
from gcond.strategy import EMA, GCond, GradientConductor, Sequential


@pytest.fixture(autouse=True)
def scripts_find_each_other(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))


@pytest.mark.parametrize("tasks", [2, 3, 5])
def test_naive_gcond_is_gcond(tasks):
    """Five steps in float64, with conflicts in every zone."""
    torch.manual_seed(tasks)
    weight = torch.nn.Parameter(torch.zeros(40, dtype=torch.float64))
    names = [f"t{i}" for i in range(tasks)]
    conductor = GradientConductor([weight], dict.fromkeys(names, 1.0), Sequential(1), GCond(), EMA(0.9), clip_norm=None)
    naive = load("naive_gcond").NaiveGCond()
    zones = set()
    for strength in (0.3, 1.0, 2.5, 0.5, 1.5):
        rows = torch.randn(tasks, 40, dtype=torch.float64)
        rows[1] -= strength * rows[0]
        metrics = conductor.step([rows], lambda rows, asked: dict(zip(names, rows @ weight, strict=True)))
        zones |= {zone for zone in ("weak", "main", "critical") if metrics[f"zone/{zone}"]}
        torch.testing.assert_close(naive.step(rows), weight.grad, rtol=1e-9, atol=1e-12)
    assert zones == {"weak", "main", "critical"}


def test_planted_conflict_has_the_cosine_that_is_said():
    rows = load("bench_resolve").task_gradients(4, 200_000, torch.device("cpu"))
    unit = rows / rows.norm(dim=1, keepdim=True)
    cosines = unit @ unit.T
    for i in range(4):
        for j in range(i):
            assert float(cosines[i, j]) == pytest.approx(0.297 if (i - j) % 2 == 0 else -0.297, abs=0.01)


@pytest.mark.slow
def test_resolve_is_measured_once_for_a_commit(tmp_path, monkeypatch, capsys):
    script = load("bench_resolve")
    out = tmp_path / "resolve.csv"
    words = ["--parameters", "2000", "--tasks", "2", "--rounds", "2", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench_resolve", *words])
    script.main()
    rows = read_csv(out, resolve.COLUMNS, resolve.KEY)
    assert set(rows.work) == {resolve.PASS, *resolve.ORDER}
    assert out.with_suffix(".md").read_text() == resolve.page(rows)
    script.main()
    assert "measured already" in capsys.readouterr().out


@pytest.mark.slow
def test_step_is_measured_and_recorded(tmp_path, monkeypatch):
    script = load("bench_step")
    out = tmp_path / "step.csv"
    words = ["--rounds", "2", "--strategies", "gcond_sequential", "--out", str(out), "scale=smoke", "dataset=ct"]
    monkeypatch.setattr(sys, "argv", ["bench_step", *words])
    script.main()
    rows = read_csv(out, step.COLUMNS, step.KEY).set_index("strategy")
    per_task = "gcond_sequential, a forward pass per task"
    assert set(rows.index) == {"baseline", "forward", "forward and backward", "gcond_sequential", per_task}
    assert rows[["forward", "backward"]].loc["gcond_sequential"].tolist() == [1, 2]
    assert rows[["forward", "backward"]].loc[per_task].tolist() == [2, 2]
    assert rows.ratio["baseline"] == 1
    assert out.with_suffix(".md").read_text() == step.page(read_csv(out, step.COLUMNS, step.KEY))


@pytest.mark.slow
def test_float32_agrees_with_itself_and_bfloat16_almost(tmp_path, monkeypatch):
    script = load("bench_precision")
    monkeypatch.setattr(script, "CASES", [("photos", "gcond_sequential", "train")])
    out = tmp_path / "precision.csv"
    monkeypatch.setattr(sys, "argv", ["bench_precision", "--steps", "3", "--seeds", "11", "--out", str(out)])
    script.main()
    rows = read_csv(out, precision.COLUMNS, precision.KEY).set_index("form")
    assert rows.resolved_worst["float32"] == rows.written_worst["float32"] == 0
    assert 0 < rows.written_worst["float32, micro-batches in reverse"] < 1e-5
    assert rows.resolved_worst["bfloat16 reference"] == 0  # no conflict yet, so nothing is compared with it
    assert 1e-4 < rows.resolved["bfloat16 buffers"] < 2e-2
    assert (rows.same == 3).all()


@pytest.mark.slow
def test_memory_is_planned_once_for_a_commit(tmp_path, monkeypatch):
    script = load("bench_memory")
    shapes = ("mobilenetv3_small_050", "ct", 64, "bf16")
    few = [script.Case("", *shapes, "pcgrad", "", graph, tasks) for graph in script.GRAPHS for tasks in (2, 3)]
    few += [
        script.Case("1GB", *shapes, "gcond_stochastic", "bfloat16 buffers"),
        script.Case("0.001GB", *shapes, "uw", ""),
    ]
    monkeypatch.setattr(script, "cases", lambda strategies, budget: few)
    out = tmp_path / "memory.csv"
    monkeypatch.setattr(sys, "argv", ["bench_memory", "--out", str(out)])
    script.main()
    rows = read_csv(out, memory.COLUMNS, memory.KEY)
    assert len(rows) == len(few)
    kept = rows[rows.strategy == "pcgrad"].set_index(["tasks", "graph"])
    row = 4 * kept.parameters.iloc[0]
    assert (kept.rows[3] == 3 * row).all()
    assert (kept["mean"] == row).all()
    assert (kept.peak[3] > kept.peak[2]).all()
    assert kept.peak[2]["freed"] <= kept.peak[2]["kept"] < kept.peak[2]["kept until the next"]
    fits = rows[rows.strategy == "gcond_stochastic"].iloc[0]
    assert fits.one < fits.peak <= 10**9
    assert fits.micro_batch > 8
    assert rows[rows.strategy == "uw"].micro_batch.isna().all()
    monkeypatch.setattr(script, "planned", None)  # would be called
    script.main()
    assert out.with_suffix(".md").read_text() == memory.page(rows)


@pytest.mark.parametrize("name", ["bench_step", "bench_memory"])
def test_unknown_strategies_are_refused(name, monkeypatch):
    """Options of bench_step stand between overrides, as in the Makefile."""
    overrides = ["model=convnext_tiny", "scale.image_size=64"] if name == "bench_step" else []
    words = [*overrides[:1], "--strategies", "baseline,no_such", *overrides[1:]]
    monkeypatch.setattr(sys, "argv", [name, *words])
    with pytest.raises(ValueError, match="expected names of conf/strategy, found no_such"):
        load(name).main()
