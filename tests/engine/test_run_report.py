import json
import time

import pytest
import torch
from engine import tiny
from engine.runs import CONFIG, config
from hydra import compose, initialize_config_dir
from hydra.core.hydra_config import HydraConfig

from gcond.engine.checkpoint import State
from gcond.engine.distributed import World
from gcond.engine.metrics_log import MetricsLog
from gcond.engine.run_folder import RunFolder
from gcond.engine.run_report import RunReport, variant
from gcond.strategy.processes import SingleProcess


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], ""),
        (["dataset=ct", "model=convnext_tiny", "strategy=baseline", "scale=smoke", "seed=1"], ""),
        (["device=cpu", "runs=elsewhere", "progress=quiet", "paths.ct=d", "dataset.root=d", "paths.imagenet=d"], ""),
        (["recorded=results"], ""),
        (["threads=2", "strategy=baseline", "optimizer.lr=1e-4"], "optimizer.lr=1e-4,threads=2"),
        (["+loss.tasks.depth=1"], "+loss.tasks.depth=1"),
        (["strategy.model_mode=eval"], "strategy.model_mode=eval"),
        (["strategy.model_mode=train"], ""),  # the default
        (["strategy.model_mode=eval", "strategy.model_mode=train"], ""),  # the last one counts
        (["scale=smoke", "optimizer.lr=1e-3", "threads=2", "scale.epochs=2"], "threads=2"),  # smoke's own
        (["scale=mini", "optimizer.lr=1e-3"], "optimizer.lr=1e-3"),
        (["strategy=baseline", "optimizer=adamw"], ""),
        (["strategy=baseline", "optimizer=sgd"], "optimizer=sgd"),
        (["strategy=gcond_sequential", "strategy.conductor.estimator.resolve_every=window"], ""),
        (["~loss.tasks.ssim"], "~loss.tasks.ssim"),
        (["+loss.tasks.depth=1", "loss.tasks.depth=2"], "+loss.tasks.depth=1,loss.tasks.depth=2"),  # needs the first
    ],
)
def test_a_variant_is_what_was_overridden_beside_the_named_choices(overrides, expected, monkeypatch):
    monkeypatch.setattr(HydraConfig.instance(), "cfg", None)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        composed = compose("train", overrides, return_hydra_config=True)
    HydraConfig.instance().set_config(composed)
    assert variant() == expected
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):  # as in a process that Hydra began in
        assert variant() == expected


@pytest.fixture
def folder(tmp_path):
    """A run that has logged 20 steps, of losses 0 … 19 and 0 … -19, and two epochs."""
    cfg = config("dataset=photos", "scale=smoke", "seed=7", f"runs={tmp_path}")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    with MetricsLog(folder.metrics) as book:
        for step in range(20):
            book.write({"kind": "step", "step": step, "loss/l1": float(step), "loss/ssim": -float(step), "lr": 0.1})
            if step % 10 == 9:
                book.write({"kind": "validation", "epoch": (step + 1) // 10, "step": step + 1, "val_l1": 0.5})
        for at, epoch in (("best", 1), ("last", 2)):
            book.write({"kind": "final", "at": at, "epoch": epoch, "step": 10 * epoch, "val_l1": 0.25 * epoch})
            book.write({"kind": "groups", "at": at, "epoch": epoch, "step": 10 * epoch, "split": "val", "groups": {}})
    return folder


def record(folder: RunFolder) -> RunReport:
    return RunReport(
        config("dataset=photos", "scale=smoke", "seed=7"), folder, World(SingleProcess(), torch.device("cpu"))
    )


def test_a_finished_run_by_hand(folder):
    trivial = {"dataset_mean": {"val_l1": 1.0}}
    with record(folder) as open_record:
        open_record.resumed(State(seconds=100.0, cpu_seconds=50.0))  # an earlier attempt
        sum(range(3_000_000))
        time.sleep(0.2)  # takes time, but none of the processor's
        open_record.describe(tiny.load(64), trivial)
    report = json.loads(folder.report.read_text())
    expected = {
        **{
            "name": folder.name,
            "scale": "smoke",
            "dataset_title": "gratings",
            "strategy": "gcond_stochastic",
            "seed": 7,
        },
        **{"processes": 1, "arbitration": "once", "status": "done", "error": "", "variant": "", "missing_packages": []},
        "trivial": trivial,
        "steps": 20,
        "skipped_steps": 0,
        "epochs": 2,
        "train_l1_first": 0.5,  # a tenth of 20 steps: 0 and 1
        "train_l1_tail": 18.5,
        "train_ssim_first": -0.5,
        "train_ssim_tail": -18.5,
        "validation": [{"epoch": 1, "step": 10, "val_l1": 0.5}, {"epoch": 2, "step": 20, "val_l1": 0.5}],
        "final": {
            "best": {"epoch": 1, "step": 10, "val_l1": 0.25},
            "last": {"epoch": 2, "step": 20, "val_l1": 0.5},
        },
    }
    assert {key: report[key] for key in expected} == expected
    assert 100 <= report["seconds"] < 160
    assert 50.01 < report["cpu_seconds"] < report["seconds"] - 50 - 0.15
    assert report["peak_memory_mb"] > 50  # megabytes, and not the kilobytes or bytes that systems count in
    assert report["peak_memory_mb"] < 50_000
    assert report["torch"] == torch.__version__
    assert isinstance(report["dirty"], bool)
    assert report["started"].endswith("+00:00")


def test_a_failed_run_says_why_and_claims_no_results_and_an_interrupted_one_says_nothing(folder, monkeypatch):
    """Also where the device computes no more after the error."""
    with pytest.raises(KeyboardInterrupt), record(folder):
        raise KeyboardInterrupt
    assert not folder.report.exists()
    failing = record(folder)
    failing.describe(tiny.load(64), {})
    monkeypatch.setattr("gcond.engine.run_report.fingerprint", None)
    with pytest.raises(FloatingPointError), failing:
        raise FloatingPointError("step 3: the loss of task 'l1' is nan")
    report = json.loads(folder.report.read_text())
    assert report["status"] == "failed"
    assert report["error"] == "FloatingPointError: step 3: the loss of task 'l1' is nan"
    assert "validation" not in report


def test_several_processes_report_what_a_window_cost_and_nothing_where_no_step_was_left(folder):
    for windows, expected in ((20, {"all_reduce/calls": 1.5}), (0, {})):
        with record(folder) as open_record:
            open_record.team.size = 2
            open_record.team.processes.counts.update({"all_reduce/calls": 30} if windows else {})
            open_record.windows = windows
        assert json.loads(folder.report.read_text())["collectives_per_window"] == expected
