"""What is recorded of a run: its row against its report, its log against its metrics.jsonl."""

from __future__ import annotations

import json
import math
import shutil

import pandas as pd
import pytest

from gcond.study import tables

REPORT = {
    "schema": 1, "dataset": "ct", "model": "m", "strategy": "a", "seed": 11, "name": "ct-a-seed11-0123e45678",
    "hash": "0123e45678", "arithmetic": "00e12345", "data_checksum": "abc", "status": "done", "commit": "c",
    "dirty": False, "device": "CPU", "torch": "2", "python": "3", "started": "2026-01-01",
    "variant": "optimizer.lr=1e-3", "seconds": 9.0, "cpu_seconds": 8.0, "load_start": 1.0, "load_end": 2.0,
    "peak_memory_mb": 7.0, "steps": 2, "skipped_steps": 0, "epochs": 1, "train_l1_tail": 0.25,
    "final": {"best": {"epoch": 1, "val_l1": 0.5, "test_body_l1": 0.75}, "last": {"epoch": 1, "val_l1": 0.625}},
    "trivial": {"pixel_median": {"val_l1": 0.875}},
}  # fmt: skip
CONFIG = """
seed: 11
scale: {name: study, accumulation_steps: 4}
dataset: {name: ct}
strategy: {name: a, lr_scale: 1.0}
optimizer: {lr: 0.001}
loss: {tasks: {l1: 0.85, ssim: 0.15}}
"""
PATIENTS = {"p1": {"images": 2, "l1": 0.5}, "p2": {"images": 1, "l1": 0.25}}
METRICS = [
    {"kind": "step", "step": 0, "loss/l1": 0.1, "cosine/all": None},
    {"kind": "activations", "epoch": 1, "step": 0, "quantiles": {"0.5": 0.5}},
    {"kind": "groups", "step": 0, "at": "best", "split": "val", "groups": PATIENTS},
]


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "report.json").write_text(json.dumps(REPORT))
    (folder / "config.yaml").write_text(CONFIG)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in METRICS))
    (folder / "DONE").touch()
    return folder


def test_a_row_has_what_the_run_is_its_settings_and_its_numbers_and_the_log_every_record(folder, tmp_path):
    row = tables.record(folder, tmp_path).iloc[0]
    assert (row.hash, row.arithmetic, row.seed, row.lr) == ("0123e45678", "00e12345", 11, 1e-3)
    assert (row.accumulation_steps, row.lambda_ssim) == (4, 0.15)
    assert math.isnan(row.flip_strength)
    assert (row.best_val_l1, row.best_test_body_l1, row.last_val_l1, row.train_l1_tail) == (0.5, 0.75, 0.625, 0.25)
    log = pd.read_parquet(tmp_path / "logs" / "ct-a-seed11-0123e45678-00e12345.parquet")
    assert list(log.kind) == ["step", "activations", "groups", "groups", "trivial"]
    groups = log[log.kind == "groups"]
    assert list(zip(groups.group, groups.images, groups.l1, strict=True)) == [("p1", 2, 0.5), ("p2", 1, 0.25)]
    assert log["quantiles.0.5"].dropna().tolist() == [0.5]
    assert log[log.kind == "trivial"].val_l1.tolist() == [0.875]


def test_pictures_of_seed_11_are_recorded_where_nothing_but_the_rate_differs_and_never_of_patients(folder, tmp_path):
    (folder / "final_reconstructions.npz").write_bytes(b"pictures")
    cases = [("optimizer.lr=1e-3", "photos", True), ("loss=l1", "photos", False), ("", "headneck", False)]
    for place, (variant, dataset, there) in enumerate(cases):
        (folder / "config.yaml").write_text(CONFIG.replace("name: ct", f"name: {dataset}"))
        (folder / "report.json").write_text(json.dumps(REPORT | {"variant": variant, "name": f"run{place}"}))
        tables.record(folder, tmp_path)
        path = tables.pictures(tmp_path, f"run{place}-00e12345")
        assert path.exists() == there
    assert (tmp_path / "pictures" / "run0-00e12345.npz").read_bytes() == b"pictures"


def test_a_run_recorded_again_takes_its_place_and_another_machines_stays(folder, tmp_path):
    results = tmp_path / "results"
    tables.record(folder, results)
    assert tables.runs(results).seconds.tolist() == [9.0]
    (folder / "report.json").write_text(json.dumps(REPORT | {"seconds": 10.0}))
    assert tables.record(folder, results).seconds.tolist() == [10.0]
    assert tables.runs(results).seconds.tolist() == [10.0]  # though `runs` reads once
    (folder / "report.json").write_text(json.dumps(REPORT | {"arithmetic": "ffffffff"}))
    assert tables.record(folder, results).arithmetic.tolist() == ["00e12345", "ffffffff"]
    assert len(list((results / "logs").iterdir())) == 2


def test_an_unfinished_run_and_a_broken_table_are_refused_by_name(folder, tmp_path):
    (folder / "DONE").unlink()
    with pytest.raises(ValueError, match=str(folder)):
        tables.record(folder, tmp_path)
    (tmp_path / "runs.csv").write_text("name,seed\na,1\n")
    with pytest.raises(ValueError, match=r"runs\.csv"):
        tables.read(tmp_path)


# What a log says, by hand. Six steps in three bins of two; step 3 was left out; the norm halves, then doubles twice.

NAN = math.nan
STEPS = pd.DataFrame({
    "kind": "step",
    "step": [0, 1, 2, 3, 4, 5],
    "cosine/all": [0.5, -0.5, -0.2, -1.0, NAN, 0.8],
    "resolved_norm": [2.0, 1.0, 2.0, 9.0, 4.0, 8.0],
    "correction": [0.1, 0.3, 0.0, 5.0, 0.0, 0.0],
    "weight/l1": [1.0, 2.0, 3.0, 9.0, 1.0, 1.0],
    "skipped": [NAN, NAN, NAN, 1.0, NAN, NAN],
})  # fmt: skip
BINS = pd.DataFrame({
    "kind": "step",
    "first_step": [0, 2, 4],
    "last_step": [1, 3, 5],
    "cosine/all": [0.0, -0.2, 0.8],
    "resolved_norm": [1.5, 2.0, 6.0],
    "correction": [0.2, 0.0, 0.0],
    "weight/l1": [1.5, 3.0, 1.0],
    "cosine_min": [-0.5, -0.2, 0.8],
    "cosine_steps": [2, 1, 1],
    "conflicts": [0.5, 1.0, 0.0],
    "norm_jump": [math.log(2), math.log(2), math.log(2)],
})  # fmt: skip


def test_single_steps_become_bins_and_recorded_bins_stay():
    found = tables.steps(STEPS, bins=3)
    pd.testing.assert_frame_equal(
        found[[*BINS.columns.drop("kind")]], BINS.drop(columns="kind"), check_dtype=False, check_names=False
    )
    pd.testing.assert_frame_equal(tables.steps(BINS), BINS.drop(columns="kind"))


def test_numbers_of_a_log_are_those_by_hand():
    found = tables.numbers(BINS)
    expected = {
        "cosine_min": 0.1 / 3,
        "cosine_min_late": 0.3,  # the last steps of the bins are at .2, .6 and 1 of the run
        "cosine_min_plateau": 0.8 + 0.2,
        "conflicts": 100 * 2 / 4,
        "cosine_mean": (2 * 0.0 - 0.2 + 0.8) / 4,
        "correction": 100 * 0.2 / 3,
        "correction_median": 0.0,
        "resolved_norm": 9.5 / 3,
        "norm_jump": math.log(2),
        "weight_l1": 5.5 / 3,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    more = pd.DataFrame([
        {"kind": "probe", "epoch": 1, "cosine/all": 0.25},
        {"kind": "probe", "epoch": 2, "cosine/all": 0.75},
        {"kind": "activations", "epoch": 2, "std": 3.0},
        {"kind": "activations", "epoch": 1, "std": 2.0},
        *({"kind": "validation", "epoch": epoch, "val_l1": 1 / epoch} for epoch in (1, 2, 3, 4, 5, 6)),
    ])  # fmt: skip
    assert tables.numbers(more) == pytest.approx({"probe:cosine/all": 0.5, "activation_std": 3.0, "early_val_l1": 0.75})


def test_runs_have_their_overrides_as_columns_and_the_numbers_of_their_logs(folder, tmp_path):
    text = "loss=l1_ssim_flipped,loss.tasks={l1:0.5, ssim:0.5},optimizer.lr=1e-3,strategy.conductor.update.beta=0.5"
    (folder / "report.json").write_text(json.dumps(REPORT | {"variant": text}))
    tables.record(folder, tmp_path)
    run = tables.runs(tmp_path).iloc[0]
    setting = "loss=l1_ssim_flipped,loss.tasks={l1:0.5, ssim:0.5},strategy.conductor.update.beta=0.5"
    assert (run.setting, run.own_lr, run.log) == (setting, False, "ct-a-seed11-0123e45678-00e12345")
    assert tables.predictors(tmp_path)[["dataset", "predictor", "val_l1"]].to_numpy().tolist() == [
        ["ct", "pixel_median", 0.875]
    ]
    assert len(tables.log(tmp_path, run.log, "groups")) == 2


def test_what_was_measured_later_stays_when_a_run_is_recorded_again(folder, tmp_path):
    tables.record(folder, tmp_path)
    name = tables.runs(tmp_path).log[0]
    for score in (0.5, 0.75):
        tables.add(tmp_path, name, "linear_probe", pd.DataFrame({"task": ["rotation"], "test_score": [score]}))
    tables.record(folder, tmp_path)
    found = tables.log(tmp_path, name, "linear_probe")
    assert list(zip(found.task, found.test_score, strict=True)) == [("rotation", 0.75)]
    assert len(tables.log(tmp_path, name, "step")) == 1


def test_collect_counts_what_failed_and_what_is_not_finished(folder, tmp_path):
    below = tmp_path / "runs"
    below.mkdir()
    for name in ("finished", "broken", "failed", "begun", "diverged", "torn", "lost"):
        shutil.copytree(folder, below / name)
    (below / "torn" / "config.yaml").write_text("seed: [")
    (below / "torn" / "DONE").unlink()
    (below / "lost" / "metrics.jsonl").unlink()
    diverged = REPORT | {"name": "diverged", "final": {"best": {"epoch": 1, "val_l1": None}}}
    (below / "diverged" / "report.json").write_text(json.dumps(diverged))
    (below / "broken" / "report.json").write_text("{")
    for name in ("failed", "begun"):
        (below / name / "DONE").unlink()
    (below / "failed" / "FAILED").write_text("ValueError: no\ndata")
    results = tmp_path / "results"
    for _ in range(2):
        remarks = tables.collect(below, results)
    assert remarks[-1].endswith("1 runs recorded, 2 failed, 1 unfinished")
    assert [remark.partition(":")[0] for remark in remarks if "unreadable" in remark] == ["broken", "lost", "torn"]
    table = tables.read(results).set_index("name")
    assert table.status.to_dict() == {"ct-a-seed11-0123e45678": "done", "failed": "failed",
                                       "begun": "unfinished", "diverged": "failed"}  # fmt: skip
    assert (table.error["failed"], table.lr["begun"]) == ("ValueError: no data", 1e-3)
    assert list(tables.runs(results).name) == ["ct-a-seed11-0123e45678"]
    (below / "failed" / "FAILED").unlink()
    assert tables.collect(below, results)[-1].endswith("1 runs recorded, 1 failed, 2 unfinished")
