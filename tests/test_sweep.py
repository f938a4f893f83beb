"""A sweep's plan, its estimate, its summary; and, slowly, a sweep itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from engine.runs import TINY, config

import gcond.train
from gcond.engine.folder import RunFolder
from gcond.sweep import Planned, expected_seconds, plan, print_plan, print_summary

ROOT = gcond.train.CONFIG.parent
STRATEGIES = {"baseline", "cagrad", "gradnorm", "pcgrad", "gcond_sequential", "gcond_stochastic", "gcond_pure"}
STRATEGIES |= {"gcond_lion", "graddrop", "baseline_integrated"}  # the paper's nine, and the control


def test_table2_is_60_runs_of_ten_strategies_on_two_data_sets_with_three_seeds() -> None:
    runs = plan(["experiment=table2"])
    assert len({run.folder.path for run in runs}) == len(runs) == 60
    product = Counter(run.cost for run in runs)
    assert set(product) == {
        ("mini", dataset, "mobilenetv3_small", strategy) for dataset in ("photos", "ct") for strategy in STRATEGIES
    }
    assert set(product.values()) == {3}
    seeds = Counter(run.folder.name.split("-seed")[1].split("-")[0] for run in runs)
    assert seeds == {"11": 20, "42": 20, "2025": 20}
    assert {run.steps for run in runs} == {96}


def test_what_is_typed_replaces_the_experiments_own_choice() -> None:
    typed = ["experiment=table2", "seed=11", "dataset=imagenet256", "strategy=baseline,cagrad", "scale=paper"]
    runs = plan(typed)
    assert {run.cost for run in runs} == {
        ("paper", "imagenet256", "mobilenetv3_small", strategy) for strategy in ("baseline", "cagrad")
    }
    assert len(runs) == 2
    assert {run.steps for run in runs} == {None}  # one pass over a training split that has not been read


def test_the_plan_is_what_hydras_multirun_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ["experiment=table2", f"runs={tmp_path}", "seed=11", "strategy=baseline,gcond_lion"]
    started: list[Path] = []
    monkeypatch.setattr(gcond.train, "train", lambda cfg, folder: started.append(folder.path))
    monkeypatch.setattr(sys, "argv", ["gcond-train", "--multirun", "hydra/hydra_logging=disabled", *overrides])
    gcond.train.main()
    assert len(started) == 4  # the experiment names two data sets
    assert [run.folder.path for run in plan(overrides)] == started


def finish(run: Planned, seconds: float) -> None:
    run.folder.path.mkdir(parents=True)
    run.folder.report.write_text(json.dumps({"seconds": seconds}))
    run.folder.finish()


@pytest.fixture
def runs(tmp_path: Path) -> list[Planned]:
    """Two strategies with two seeds each; nothing has been run."""
    planned = []
    for strategy in ("baseline", "pcgrad"):
        for seed in (1, 2):
            cfg = config("dataset=photos", "scale=smoke", f"strategy={strategy}", f"seed={seed}", f"runs={tmp_path}")
            planned.append(Planned(RunFolder(cfg), ("smoke", "photos", "mobilenetv3_small", strategy), 4))
    return planned


def record(results: Path, rows: list[str]) -> None:
    """results/<scale>/runs.csv; the scale is smoke."""
    (results / "smoke").mkdir(parents=True)
    header = "dataset,model,strategy,seed,variant,status,seconds"
    (results / "smoke" / "runs.csv").write_text("\n".join([header, *rows]) + "\n")


def test_nothing_is_estimated_from_nothing(runs: list[Planned], tmp_path: Path) -> None:
    assert expected_seconds(runs, tmp_path / "results") is None


def test_the_estimate_is_the_sum_of_medians_of_runs_of_the_same_kind(runs: list[Planned], tmp_path: Path) -> None:
    model = "photos,mobilenetv3_small"
    rows = [f"{model},baseline,{seed},,done,{seconds}" for seed, seconds in ((1, 10), (2, 12), (3, 50))]
    rows += [f"{model},pcgrad,{seed},,done,{seconds}" for seed, seconds in ((1, 20), (2, 21), (3, 90))]
    rows += [f"{model},pcgrad,4,scale.epochs=9,done,1000", f"{model},pcgrad,5,,failed,1", f"{model},pcgrad,6,,done,"]
    record(tmp_path / "results", rows)
    assert expected_seconds(runs, tmp_path / "results") == 2 * 12 + 2 * 21
    finish(runs[0], 30.0)
    assert expected_seconds(runs, tmp_path / "results") == 21 + 2 * 21  # median of 10, 12, 30, 50


def test_a_strategy_never_recorded_is_taken_to_last_as_long_as_the_others(runs: list[Planned], tmp_path: Path) -> None:
    finish(runs[0], 8.0)
    assert expected_seconds(runs, tmp_path / "results") == 3 * 8.0
    for run in runs[1:]:
        finish(run, 8.0)
    assert expected_seconds(runs, tmp_path / "results") == 0


def test_the_plan_tells_finished_begun_and_failed_apart(runs: list[Planned], capsys: pytest.CaptureFixture) -> None:
    finish(runs[0], 8.0)
    for run in runs[1:3]:
        run.folder.checkpoints.mkdir(parents=True)
        (run.folder.checkpoints / "00000001-0.pt").touch()
    (runs[2].folder.path / "FAILED").write_text("OSError: disk full\n")
    print_plan(runs, jobs=2, seconds=480.0)
    plan_line, time_line = capsys.readouterr().out.splitlines()
    assert plan_line == "Plan: 4 runs, 1 finished, 3 to do (2 begun, 1 failed before)"
    assert "2 side by side, estimated time 4 min" in time_line


def test_the_summary_names_what_is_missing_and_why(runs: list[Planned], capsys: pytest.CaptureFixture) -> None:
    finish(runs[0], 8.0)
    finish(runs[1], 8.0)
    assert print_summary(runs[:2]) == 0
    assert capsys.readouterr().out == "Sweep: 2 of 2 runs finished\n"

    runs[2].folder.path.mkdir()
    (runs[2].folder.path / "FAILED").write_text("OSError: disk full\n")
    assert print_summary(runs) == 1
    assert capsys.readouterr().out.splitlines() == [
        "Sweep: 2 of 4 runs finished",
        f"  {runs[2].folder.name}: OSError: disk full",
        f"  {runs[3].folder.name}: not finished; the same command continues it",
    ]


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_a_run_that_fails_stops_no_other_and_only_what_is_missing_is_repeated(jobs: int, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "gcond.sweep", "--jobs", str(jobs), *TINY, f"runs={tmp_path}/runs"]
    command += ["strategy=gcond_stochastic", "scale.accumulation_steps=3,2,5,4"]  # 3 and 5 do not serve two tasks
    environment = os.environ | {"PYTHONPATH": str(ROOT / "tests"), "OMP_NUM_THREADS": "1"}

    def sweep() -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300)

    first = sweep()
    assert first.returncode == 1
    assert "Plan: 4 runs, 0 finished, 4 to do (0 begun, 0 failed before)" in first.stdout
    reports = list(tmp_path.glob("runs/smoke/*/DONE"))
    assert len(reports) == 2
    before = {path: path.stat().st_mtime_ns for done in reports for path in done.parent.iterdir()}

    second = sweep()
    assert second.returncode == 1
    assert "Plan: 4 runs, 2 finished, 2 to do (0 begun, 2 failed before)" in second.stdout
    assert {path: path.stat().st_mtime_ns for path in before} == before
    for attempt in (first, second):
        summary = attempt.stdout.split("Sweep: 2 of 4 runs finished")[1]
        assert summary.count("`accumulation_steps`: the stochastic estimator expects a multiple of") == 2
