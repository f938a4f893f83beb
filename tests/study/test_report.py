"""The one command that makes everything again."""

from __future__ import annotations

import shutil
from pathlib import Path

import pandas as pd
import pytest

from gcond import cli
from gcond.study import judge, tables

RESULTS = Path(__file__).parents[2] / "results"


@pytest.fixture
def results(tmp_path):
    """Three runs of one scale and none that figures of photographs need, and a table of its own."""
    runs = tables.read(RESULTS / "sample_gpu")
    some = runs[runs.strategy.isin(["baseline", "gcond_sequential", "gcond_stochastic"]) & (runs.seed == 11)]
    (tmp_path / "sample_gpu" / "logs").mkdir(parents=True)
    for name, arithmetic in zip(some.name, some.arithmetic.fillna(""), strict=True):
        log = f"logs/{tables.log_name(name, arithmetic)}.parquet"
        shutil.copy(RESULTS / "sample_gpu" / log, tmp_path / "sample_gpu" / log)
    some.to_csv(tmp_path / "sample_gpu" / "runs.csv", index=False)
    (tmp_path / "table1").symlink_to(RESULTS / "table1")
    return tmp_path


def test_pages_and_figures_are_made_of_what_is_recorded_and_what_is_not_is_counted(results, capsys, monkeypatch):
    monkeypatch.setattr("gcond.study.report.plots.NAMES", ("figure1", "figure10", "toy", "overview"))
    monkeypatch.setattr("gcond.study.report.OF_RECORDS", {"toy": "toy"})
    assert cli.main(["study", "report", "--out", str(results), "--jobs", "1"]) == 0
    *written, last = capsys.readouterr().out.splitlines()
    assert (last[:10], last[-15:]) == ("2 not made", ": figure10, toy")
    paths = {Path(line.removeprefix("written: ")).relative_to(results) for line in written}
    figures = {Path("sample_gpu", "figures", f"{name}.png") for name in ("figure1", "overview")}
    assert {path for path in paths if path.suffix == ".png"} == figures
    assert all((results / path).exists() for path in paths)
    place = ["claim", "ours", "theirs", "measure", "epoch", "label", "lr"]
    effects = judge.read(results / "findings.csv").set_index(place).effect
    runs = pd.read_csv(results / "sample_gpu" / "runs.csv").set_index("strategy").best_val_l1
    change = 100 * (runs.gcond_sequential / runs.baseline - 1)
    found = effects["T2a", "gcond_sequential", "baseline", "l1", "best_val", "", "paper"]
    assert found == pytest.approx(change, rel=1e-5)
