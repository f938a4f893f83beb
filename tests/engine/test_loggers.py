"""Loggers hold what metrics.jsonl does, and cannot break a run."""

import csv
import json
import signal
from typing import Any
from unittest.mock import MagicMock

import pytest
import yaml
from engine.attempts import interrupted
from engine.runs import CONFIG, config, run, tiny_config

from gcond.engine import loggers
from gcond.engine.loggers import SafeLogger
from gcond.engine.metrics_log import read
from gcond.engine.settings import Settings


def given(recorder: MagicMock, method: str) -> list[Any]:
    return [call.args[0] for call in getattr(recorder, method).call_args_list]


@pytest.fixture
def logged(tmp_path, monkeypatch):
    """Run the tiny run with this logger in place of none."""

    def with_logger(recorder, *overrides):
        monkeypatch.setattr(loggers, "Logger", lambda folder, experiment: recorder)
        return run(tiny_config(tmp_path, *overrides))

    return with_logger


def test_a_logger_sees_every_record_in_order_the_pictures_and_the_report(logged):
    recorder = MagicMock()
    folder = logged(recorder)
    kinds = [content["kind"] for content in given(recorder, "log")]
    epoch = ["step", "step", "validation", "probe", "activations", "reconstructions"]
    assert kinds == [*epoch, *epoch, "final", "final"]
    assert [call[0] for call in recorder.mock_calls] == ["open", *["log"] * 14, "summary", "close"]
    assert [each for each in given(recorder, "log") if "path" not in each] == read(folder.metrics)
    assert [(each["step"], each["path"].is_file()) for each in given(recorder, "log") if "path" in each] == [
        (2, True),
        (4, True),
    ]
    assert given(recorder, "summary") == [json.loads(folder.report.read_text())]
    assert given(recorder, "close") == [True]


def test_a_logger_that_fails_is_named_once_and_changes_nothing(logged, tmp_path, capsys):
    reference = run(tiny_config(tmp_path / "reference"))
    for breaks, after in (("open", 0), ("log", 3), ("summary", 0), ("close", 0)):
        capsys.readouterr()
        recorder = MagicMock()
        broken = getattr(recorder, breaks)
        broken.__name__, broken.side_effect = breaks, [*[None] * after, RuntimeError("the network is gone")]
        folder = logged(recorder, f"name={breaks}")
        assert folder.metrics.read_bytes() == reference.metrics.read_bytes()
        assert json.loads(folder.report.read_text())["status"] == "done"
        assert folder.done
        assert recorder.mock_calls[-1][0] == breaks  # left alone from then on
        complaint = capsys.readouterr().err
        assert complaint.count("the network is gone") == 1
        assert f"failed in `{breaks}` (RuntimeError" in complaint


def test_a_failing_run_ends_its_logger_and_keeps_its_own_error(logged):
    recorder = MagicMock()
    with pytest.raises(FloatingPointError):
        logged(recorder, "strategy=baseline", "loss.reconstruction._target_=engine.tiny.BreakingLoss")
    (report,) = given(recorder, "summary")
    assert report["status"] == "failed"
    assert "ssim" in report["error"]
    assert given(recorder, "close") == [False]


def test_an_interrupted_run_is_not_reported_with_an_older_attempts_report(tmp_path):
    """Only what the logger does wrong is caught, not the Ctrl-C that comes while it works."""
    (tmp_path / "report.json").write_text('{"status": "failed"}')
    recorder = MagicMock()
    recorder.log.side_effect = KeyboardInterrupt(signal.SIGINT)
    logger = SafeLogger(recorder, tmp_path)
    logger.open()
    with pytest.raises(KeyboardInterrupt), logger:
        logger.log({})
    assert given(recorder, "summary") == [{"status": "interrupted"}]


def test_csv_holds_what_metrics_jsonl_does_after_an_interruption_too(tmp_path):
    interrupted(cfg := tiny_config(tmp_path, "logger=csv"))
    folder = run(cfg)
    records = read(folder.metrics)
    for kind, name in (("step", "loss/l1"), ("validation", "val_ssim"), ("probe", "cosine/all"), ("final", "test_l1")):
        own = [record for record in records if record["kind"] == kind]
        with (folder.path / "csv" / f"{kind}.csv").open(newline="") as file:
            table = list(csv.DictReader(file))
        assert [int(each["step"]) for each in table] == [each["step"] for each in own]
        assert [float(each[name]) for each in table] == [each[name] for each in own]
    assert [each["at"] for each in table] == ["best", "last"]


def test_tensorboard_reads_every_number_of_metrics_jsonl_and_the_pictures(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    folder = run(tiny_config(tmp_path, "logger=tensorboard", "strategy=pcgrad"))
    events = EventAccumulator(str(folder.path / "tensorboard"), size_guidance={"scalars": 0, "images": 0})
    events.Reload()
    expected: dict[str, list[tuple[int, float]]] = {}
    for record in read(folder.metrics):
        for name, value in loggers.row(record).items():
            if value is not None and name != "step":
                expected.setdefault(name, []).append((record["step"], pytest.approx(value, rel=1e-6)))
    assert {"loss/l1", "val_ssim", "probe/cosine/all", "activations/quantiles/0.5", "best/test_l1"} <= expected.keys()
    found = {name: [(each.step, each.value) for each in events.Scalars(name)] for name in events.Tags()["scalars"]}
    assert found == expected
    assert [image.step for image in events.Images("reconstructions")] == [2, 4]


def test_the_example_of_a_wandb_sweep_is_a_sweep_of_settings_that_there_are():
    """As wandb's agent would call it, for the first and the last value of each parameter."""
    sweep = yaml.safe_load((CONFIG.parent / "docs" / "wandb_sweep.yaml").read_text(encoding="utf-8"))
    assert sweep["command"][:2] == ["${env}", "gcond-train"]
    assert sweep["command"][-1] == "${args_no_hyphens}"
    for place in (0, -1):
        swept = [f"{name}={choice['values'][place]}" for name, choice in sweep["parameters"].items()]
        Settings(config(*sweep["command"][2:-1], *swept))
    final = {"kind": "final", "at": "best", "epoch": 1, "step": 2, "val_l1": 0.5}
    assert sweep["metric"] == {"name": "best/val_l1", "goal": "minimize"}
    assert sweep["metric"]["name"] in loggers.row(final)
