import json
from pathlib import Path

import pytest
import torch
from engine import tiny
from engine.runs import CONFIG, config
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from gcond.engine.folder import RunFolder
from gcond.engine.logbook import Logbook
from gcond.engine.record import Record, variant


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ""),
        (["dataset=ct", "model=convnext_tiny", "strategy=baseline", "scale=smoke", "seed=1"], ""),
        (["device=cpu", "runs=elsewhere", "progress=quiet", "paths.ct=d", "dataset.root=d", "paths.imagenet=d"], ""),
        (["threads=2", "strategy=baseline", "optimizer.lr=1e-4"], "optimizer.lr=1e-4,threads=2"),
        (["+loss.tasks.depth=1"], "+loss.tasks.depth=1"),
        (["strategy.model_mode=eval"], "strategy.model_mode=eval"),
    ],
)
def test_a_variant_is_what_was_overridden_beside_the_named_choices(
    overrides: list[str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        HydraConfig.instance().set_config(compose("train", overrides, return_hydra_config=True))
    assert variant() == expected


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run that has logged 20 steps, of losses 0 … 19 and 0 … -19, and two epochs."""
    cfg = config("dataset=photos", "scale=smoke", "seed=7", f"runs={tmp_path}")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    with Logbook(folder.metrics) as book:
        for step in range(20):
            book.write({"kind": "step", "step": step, "loss/l1": float(step), "loss/ssim": -float(step), "lr": 0.1})
            if step % 10 == 9:
                book.write({"kind": "validation", "epoch": (step + 1) // 10, "step": step + 1, "val_l1": 0.5})
    return folder


def record(folder: RunFolder) -> Record:
    return Record(config("dataset=photos", "scale=smoke", "seed=7"), folder)


def test_a_finished_run_by_hand(folder: RunFolder) -> None:
    trivial = {"dataset_mean": {"val_l1": 1.0}}
    with record(folder) as open_record:
        open_record.seconds = 100.0  # of an earlier attempt
        open_record.describe(tiny.load(64), trivial)
    report = json.loads(folder.report.read_text())
    expected = {
        "schema": 1,
        "name": folder.name,
        "hash": folder.hash,
        "scale": "smoke",
        "dataset": "photos",
        "dataset_title": "gratings",
        "model": "mobilenetv3_small",
        "strategy": "gcond_stochastic",
        "seed": 7,
        "variant": "",
        "status": "done",
        "error": "",
        "missing_packages": [],
        "trivial": trivial,
        "steps": 20,
        "epochs": 2,
        "train_l1_first": 0.5,  # a tenth of 20 steps: 0 and 1
        "train_l1_tail": 18.5,
        "train_ssim_first": -0.5,
        "train_ssim_tail": -18.5,
        "validation": [{"epoch": 1, "step": 10, "val_l1": 0.5}, {"epoch": 2, "step": 20, "val_l1": 0.5}],
    }
    assert {key: report[key] for key in expected} == expected
    assert 100 <= report["seconds"] < 160
    assert report["peak_memory_mb"] > 50  # megabytes, and not the kilobytes or bytes that systems count in
    assert report["peak_memory_mb"] < 50_000
    assert report["torch"] == torch.__version__
    assert isinstance(report["dirty"], bool)
    assert report["started"].endswith("+00:00")


def test_a_failed_run_says_why_and_claims_no_results(folder: RunFolder) -> None:
    with pytest.raises(FloatingPointError), record(folder):
        raise FloatingPointError("step 3: the loss of task 'l1' is nan")
    report = json.loads(folder.report.read_text())
    assert report["status"] == "failed"
    assert report["error"] == "FloatingPointError: step 3: the loss of task 'l1' is nan"
    assert "validation" not in report


def test_an_interrupted_run_is_neither(folder: RunFolder) -> None:
    with pytest.raises(KeyboardInterrupt), record(folder):
        raise KeyboardInterrupt
    assert not folder.report.exists()
