"""Whole runs with a task beside L1 and SSIM, on a tiny data set."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from engine.runs import config, run, tiny_config

from gcond.engine.memory import Planner
from gcond.train import build

FLIPPED = ("loss=l1_ssim_flipped", "scale.accumulation_steps=3")


def test_the_flipped_target_is_trained_and_measured_everywhere(tmp_path: Path) -> None:
    folder = run(tiny_config(tmp_path, *FLIPPED, "strategy=gcond_stochastic"))
    report = json.loads(folder.report.read_text())
    assert report["tasks"] == {"l1": 0.35, "ssim": 0.15, "flipped": 0.5}
    assert report["train_flipped_first"] > 0
    assert all(epoch["val_flipped"] > 0 and epoch["test_flipped"] > 0 for epoch in report["validation"])
    for scores in report["trivial"].values():  # at strength 1 the mean, 0, is as far from -x as from x
        assert set(scores) == {f"{split}_{task}" for split in ("val", "test") for task in ("l1", "ssim", "flipped")}
    mean = report["trivial"]["dataset_mean"]
    assert mean["val_flipped"] == mean["val_l1"]
    steps = [json.loads(line) for line in folder.metrics.read_text().splitlines()]
    assert all({"loss/flipped", "grad_norm/flipped", "weight/flipped"} <= set(s) for s in steps if s["kind"] == "step")
    assert all("self_cosine/flipped/all" in record for record in steps if record["kind"] == "probe")


def test_without_strength_the_third_task_is_the_first(tmp_path: Path) -> None:
    """At s = 0 the sum is that of Table 2, so the same steps are taken, to rounding."""
    reports = []
    for overrides in ((*FLIPPED, "loss.reconstruction.flip_strength=0"), ("scale.accumulation_steps=3",)):
        folder = run(tiny_config(tmp_path, "strategy=baseline", "scale.epochs=1", "scale.warmup_epochs=0", *overrides))
        reports.append(json.loads(folder.report.read_text())["validation"])
    for with_third, without in zip(*reports, strict=True):
        assert with_third["val_flipped"] == with_third["val_l1"]
        assert with_third["val_l1"] == pytest.approx(without["val_l1"], rel=1e-3)


def test_the_planner_counts_three_tasks() -> None:
    """By hand: three rows of task gradients and three of the step before, where there were two of each."""
    held = []
    for loss in ("l1_ssim", "l1_ssim_flipped"):
        cfg = config("scale=smoke", "dataset=ct", f"loss={loss}", "strategy=gcond_sequential")
        with torch.device("meta"):
            model = build(cfg.model, channels=1)
        held.append(Planner(cfg, model, torch.device("cpu")).held(4, 6))
    two, three = held
    for part in ("task-gradient rows", "reference rows"):
        assert three[part] == two[part] / 2 * 3
    assert three["momentum"] == two["momentum"]
