"""What `gcond-train` hands to a sweeper that looks for the smallest loss."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pytest
from engine.runs import TINY, tiny_config

import gcond.train
from gcond.command import main
from gcond.engine.run_folder import RunFolder
from gcond.engine.run_state import objective
from gcond.study.tables import collect


def test_the_command_returns_the_best_weighted_validation_loss_however_the_run_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: .85 L1 + .15 (1 - SSIM), the smallest of its epochs; all of validation is measured at each of tiny's."""
    cfg = tiny_config(tmp_path / "runs", "scale.eval_images=null")
    trained = main(cfg)
    report = json.loads(RunFolder(cfg).report.read_text())
    epochs = [0.85 * epoch["val_l1"] + 0.15 * epoch["val_ssim"] for epoch in report["validation"]]
    assert len(set(epochs)) == 2
    assert trained == pytest.approx(min(epochs), rel=1e-6)

    monkeypatch.setattr(gcond.train, "train", lambda *_: pytest.fail("trained again"))
    assert main(cfg) == trained
    collect(tmp_path / "runs" / "smoke", tmp_path / "recorded" / "smoke")
    elsewhere = tiny_config(tmp_path / "there", "scale.eval_images=null", f"recorded={tmp_path / 'recorded'}")
    assert main(elsewhere) == pytest.approx(trained, rel=1e-7)


def test_a_run_with_another_task_is_judged_by_its_own_weights_and_one_without_numbers_by_nan() -> None:
    scores = {"val_l1": 0.5, "val_ssim": 0.25, "val_flipped": 0.75}
    report = {"tasks": {"l1": 0.5, "flipped": 0.2}, "final": {"best": scores, "last": {}}, "validation": []}
    assert objective(report) == pytest.approx(0.25 + 0.15)
    assert objective(report | {"final": {}, "validation": [scores]}) == pytest.approx(0.25 + 0.15)
    assert math.isnan(objective(report | {"final": {"best": scores | {"val_l1": None}}}))
    assert math.isnan(objective(report | {"final": {}}))


def test_data_that_are_not_there_end_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)  # as it takes coverage for one
    words = [*TINY, "dataset=ct", "dataset._target_=gcond.data.ct.load", f"dataset.root={tmp_path}", f"runs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["gcond-train", "hydra/hydra_logging=disabled", "hydra.run.dir=.", *words])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "Traceback" not in said
