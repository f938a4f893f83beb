"""Table 2: its numbers against pandas and scipy alone, and a user's own method beside the others."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from scipy import stats

from gcond.study import table2, tables
from gcond.study.judge import FEWEST

SAMPLE = Path(__file__).parents[2] / "results" / "sample"


@pytest.fixture(scope="module")
def at_paper():
    return table2.build(SAMPLE, lr=2e-4)


def cell(table, strategy, dataset="ct", measure="l1", epoch="best_val"):
    cells = table.cells.set_index(["strategy", *table2.CELL])
    return cells.loc[strategy, dataset, measure, epoch]


@pytest.mark.parametrize(("strategy", "measure", "epoch"),
                         [("gcond_sequential", "l1", "best_val"), ("cagrad", "ssim", "best_test")])  # fmt: skip
def test_a_cell_is_the_mean_over_seeds_and_its_gap_a_paired_t_interval(at_paper, strategy, measure, epoch):
    runs = pd.read_csv(SAMPLE / "runs.csv", keep_default_na=False)
    runs = runs[(runs.variant == "optimizer.lr=0.0002") & (runs.dataset == "ct")].set_index("seed")
    ours, base = (runs[runs.strategy == name][f"{epoch}_{measure}"].astype(float) for name in (strategy, "baseline"))
    found = cell(at_paper, strategy, measure=measure, epoch=epoch)
    assert (found["mean"], found.sd, found.n) == pytest.approx((ours.mean(), ours.std(), 6))
    gap = 100 * (ours - base) / base.mean()
    low, high = stats.ttest_1samp(gap, 0).confidence_interval()
    assert (found.gap, found.low, found.high) == pytest.approx((gap.mean(), low, high), rel=1e-5)


def test_the_paper_stands_beside_it(at_paper):
    found = cell(at_paper, "gcond_sequential")
    assert (found.paper, found.paper_sd, round(found.paper_gap, 1)) == (0.12942, 0.01195, -21.4)
    assert pd.isna(cell(at_paper, "baseline_integrated").paper)


def test_the_best_has_all_seeds_and_who_loses_to_a_predictor_is_marked(at_paper):
    ct = at_paper.cells[(at_paper.cells.dataset == "ct") & (at_paper.cells.measure == "l1")]
    best = ct[ct.best & (ct.epoch == "best_val")]
    whole = ct[(ct.epoch == "best_val") & (ct.n == FEWEST)]
    assert list(best.strategy) == [whole.strategy[whole["mean"].idxmin()]] == ["gcond_sequential"]
    ran = ct[ct.n > 1]
    assert ran[ran.epoch == "best_test"].beaten.all()  # by the global median, .8005
    assert not ran[ran.epoch == "best_val"].beaten.any()


LOSSES = {"baseline": 0.5, "mine": 0.4}


def a_run(strategy, seed, **own):
    """Of runs.csv: a finished run."""
    about = {"name": f"{strategy}-{seed}", "status": "done", "strategy": strategy, "seed": seed, "steps": 8,
             "error": "", "scale": "mini", "dataset": "ct", "model": "m", "model_mode": "train", "lr": 0.002,
             "arithmetic": "a", "data_checksum": "same", "started": "2026-01-01", "variant": ""}  # fmt: skip
    return dict.fromkeys([*tables.ABOUT, *tables.SETTINGS], "") | about | own


def record(folder, *changes, **losses):
    """runs.csv of three seeds of each strategy; `changes`: (strategy, seed, column, value)."""
    names = [f"{epoch}_{measure}" for epoch in table2.EPOCHS for measure in table2.MEASURES]
    rows = [a_run(strategy, seed, **dict.fromkeys(names, loss + seed / 1e5))
            for strategy, loss in losses.items() for seed in (11, 42, 2025)]  # fmt: skip
    table = pd.DataFrame(rows).set_index(["strategy", "seed"], drop=False)
    for strategy, seed, column, value in changes:
        table.loc[(strategy, seed), column] = value
    folder.mkdir(parents=True, exist_ok=True)
    table.to_csv(folder / "runs.csv", index=False)
    return folder


def test_a_users_method_stands_beside_the_others(tmp_path):
    table = table2.build(record(tmp_path / "mini", **LOSSES), seeds=(11, 42, 2025))
    found = cell(table, "mine")
    assert (found.group, found.label, found.n) == ("yours", "mine", 3)
    assert found.gap == pytest.approx(100 * -0.1 / cell(table, "baseline")["mean"])
    shown = [row[0] for row in table.rows("ct", ["best_val"])]
    assert shown.index("*your methods*") == shown.index("mine") - 1
    assert table.complete  # of the paper's other methods none was started
    assert next(row for row in table.rows("ct", ["best_val"]) if row[0] == "PCGrad")[1] == "not run"


def test_its_own_settings_do_not_keep_it_out(tmp_path):
    changed = [("mine", seed, "variant", "strategy.my_key=3") for seed in (11, 42, 2025)]
    changed += [("baseline", 11, "variant", "loss.tasks={l1:1}")]
    changed += [("baseline", 2025, "variant", "scale.accumulation_steps=24")]
    table = table2.build(record(tmp_path, *changed, **LOSSES))
    assert cell(table, "mine").n == 3
    assert cell(table, "baseline").n == cell(table, "mine").gap_n == 1


def test_a_users_method_at_several_settings_is_a_row_a_setting(tmp_path):
    changed = [("mine", seed, "variant", "strategy.my_key=3") for seed in (11, 42)]
    changed += [("mine", 42, "status", "failed"), ("baseline", 11, "status", "failed")]
    changed += [("baseline", 11, "variant", "loss.tasks={l1:1}")]
    table = table2.build(record(tmp_path, *changed, **LOSSES), seeds=(11, 42, 2025))
    found = {name: cell(table, name) for name in ("baseline", "mine", "mine, my_key=3")}
    assert {name: (each.n, each.failed) for name, each in found.items()} == {
        "baseline": (2, 0), "mine": (1, 0), "mine, my_key=3": (1, 1)}  # fmt: skip
    assert found["mine, my_key=3"].group == "yours"
    assert found["mine"].gap_n == 1


def test_a_data_set_of_the_users_own_is_a_table_too(tmp_path):
    changed = [(name, seed, "dataset", "own") for name in LOSSES for seed in (11, 42, 2025)]
    table = table2.build(record(tmp_path, *changed, **LOSSES))
    assert cell(table, "mine", dataset="own").gap_n == 3


def test_a_failed_run_is_counted(tmp_path):
    broken = record(tmp_path, ("mine", 42, "status", "failed"), **LOSSES)
    table = table2.build(broken, seeds=(11, 42, 2025))
    assert table.loss(cell(table, "mine")).endswith("(n = 2 of 3, 1 failed)")
    assert not table.complete


def test_the_tuning_seed_stands_in_no_table(tmp_path):
    table = table2.build(record(tmp_path, ("mine", 42, "seed", tables.TUNING_SEED), **LOSSES))
    assert cell(table, "mine").n == 2
    assert table.seeds == (11, 42, 2025)


def test_runs_on_different_images_share_no_table(tmp_path):
    with pytest.raises(ValueError, match="one data_checksum of ct, found other; same"):
        table2.build(record(tmp_path, ("mine", 11, "data_checksum", "other"), **LOSSES))


@pytest.mark.parametrize(("high", "n", "text"), [(-0.04, 3, "-1.8 [-3.6, -0.0]"), (0.0, 3, "-1.8 [-3.6, +0.0]"),
                                                 (-0.04, 6, "**-1.8 [-3.6, -0.0]**")])  # fmt: skip
def test_a_rounded_end_keeps_its_side_of_zero(high, n, text):
    assert table2.effect({"effect": -1.8, "low": -3.6, "high": high, "n": n, "unit": "%"}) == text
