"""What is recorded of a run: its row against its report, its log against its metrics.jsonl."""

from __future__ import annotations

import json
import math

import pandas as pd
import pytest

from gcond.study import table

REPORT = {
    **{"name": "ct-a-seed11-0123e45678", "hash": "0123e45678", "arithmetic": "00e12345", "data_checksum": "abc"},
    **{
        "status": "done",
        "commit": "c",
        "dirty": False,
        "device": "CPU",
        "torch": "2",
        "python": "3",
        "started": "2026-01-01",
    },
    **{"variant": "optimizer.lr=1e-3", "seconds": 9.0, "cpu_seconds": 8.0, "load_start": 1.0, "load_end": 2.0},
    **{"peak_memory_mb": 7.0, "steps": 2, "skipped_steps": 0, "epochs": 1, "train_l1_tail": 0.25},
    "final": {"best": {"epoch": 1, "val_l1": 0.5, "test_body_l1": 0.75}, "last": {"epoch": 1, "val_l1": 0.625}},
    "trivial": {"pixel_median": {"val_l1": 0.875}},
}
CONFIG = """
seed: 11
scale: {name: study, accumulation_steps: 4}
dataset: {name: ct}
strategy: {name: a, lr_scale: 1.0}
optimizer: {lr: 0.001}
loss: {tasks: {l1: 0.85, ssim: 0.15}}
"""
METRICS = [
    {"kind": "step", "step": 0, "loss/l1": 0.1, "cosine/all": None},
    {"kind": "activations", "epoch": 1, "quantiles": {"0.5": 0.5}},
    {
        "kind": "groups",
        "at": "best",
        "split": "val",
        "groups": {"p1": {"images": 2, "l1": 0.5}, "p2": {"images": 1, "l1": 0.25}},
    },
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


def test_a_row_has_what_the_run_is_its_settings_and_its_numbers(folder, tmp_path):
    row = table.record(folder, tmp_path / "results").iloc[0]
    assert (row.hash, row.arithmetic, row.seed, row.lr, row.accumulation_steps) == (
        "0123e45678",
        "00e12345",
        11,
        1e-3,
        4,
    )
    assert math.isnan(row.flip_strength)
    assert (row.best_val_l1, row.best_test_body_l1, row.last_val_l1, row.train_l1_tail) == (0.5, 0.75, 0.625, 0.25)


def test_the_log_has_every_record_and_a_row_for_each_patient(folder, tmp_path):
    table.record(folder, tmp_path)
    log = pd.read_parquet(tmp_path / "logs" / "ct-a-seed11-0123e45678-00e12345.parquet")
    assert list(log.kind) == ["step", "activations", "groups", "groups", "trivial"]
    groups = log[log.kind == "groups"]
    assert list(zip(groups.group, groups.images, groups.l1, strict=True)) == [("p1", 2, 0.5), ("p2", 1, 0.25)]
    assert log["quantiles.0.5"].dropna().tolist() == [0.5]
    assert log[log.kind == "trivial"].val_l1.tolist() == [0.875]


def test_a_run_recorded_again_takes_its_place_and_another_machines_stays(folder, tmp_path):
    results = tmp_path / "results"
    table.record(folder, results)
    (folder / "report.json").write_text(json.dumps(REPORT | {"seconds": 10.0}))
    assert table.record(folder, results).seconds.tolist() == [10.0]
    (folder / "report.json").write_text(json.dumps(REPORT | {"arithmetic": "ffffffff"}))
    assert table.record(folder, results).arithmetic.tolist() == ["00e12345", "ffffffff"]
    assert len(list((results / "logs").iterdir())) == 2


def test_an_unfinished_run_and_a_broken_table_are_refused_by_name(folder, tmp_path):
    (folder / "DONE").unlink()
    with pytest.raises(ValueError, match=str(folder)):
        table.record(folder, tmp_path)
    (tmp_path / "runs.csv").write_text("name,seed\na,1\n")
    with pytest.raises(ValueError, match=r"runs\.csv"):
        table.read(tmp_path)
