"""wandb's logger in its offline mode: what it wrote, read back and set beside metrics.jsonl."""

import hashlib
import json
import os
import platform
import signal
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from engine.attempts import interrupted
from engine.runs import TINY, run, tiny_config
from omegaconf import OmegaConf
from wandb.proto.wandb_internal_pb2 import Record

from gcond.engine import loggers, wandb_upload
from gcond.engine.loggers import logger_of
from gcond.engine.metrics_log import read
from gcond.engine.run_folder import RunFolder

# What wandb wrote, read without its own reader: a LevelDB log of protocol buffers

MAGIC = b":W&B"
HEADER, BLOCK = 7, 32768  # bytes; a record does not begin in the last bytes of a block that hold no header
FULL, LAST = 1, 4


def records(path: Path) -> Iterator[Record]:
    data = path.read_bytes()
    assert data[:4] == MAGIC
    at, parts = HEADER, b""
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", data, at)
        parts += data[at + HEADER : at + HEADER + length]
        at += HEADER + length
        if kind in (FULL, LAST):
            yield Record.FromString(parts)
            parts = b""


def only_copy(folder: Path) -> Path:
    """The .wandb file of a run's folder. There must be one."""
    (path,) = (folder / "wandb").glob("*run-*/*.wandb")
    return path


def history(path: Path) -> list[dict[str, Any]]:
    """The rows that were logged, less what wandb adds (keys with an underscore in front)."""
    rows = [_nested(record.history.item) for record in records(path) if record.HasField("history")]
    return [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]


def header_of(path: Path) -> Any:
    """The run's record: id, name, group, tags, config."""
    return next(record.run for record in records(path) if record.HasField("run"))


def config_of(path: Path) -> dict[str, Any]:
    items = {item.key: json.loads(item.value_json) for item in header_of(path).config.update}
    return {key: value for key, value in items.items() if not key.startswith("_")}


def summary_of(path: Path) -> dict[str, Any]:
    """The last value of each key."""
    updates = [_nested(record.summary.update) for record in records(path) if record.HasField("summary")]
    return {key: value for update in updates for key, value in update.items()}


def exit_code_of(path: Path) -> int:
    return next(record.exit.exit_code for record in records(path) if record.HasField("exit"))


def _nested(items: Iterable[Any]) -> dict[str, Any]:
    """wandb writes {"picture": {"path": …}} as one item of the key path [picture, path]."""
    found: dict[str, Any] = {}
    for item in items:
        *outer, last = item.nested_key or [item.key]
        place = found
        for key in outer:
            place = place.setdefault(key, {})
        place[last] = json.loads(item.value_json)
    return found


TESTS = Path(__file__).parents[1]
NOWHERE = "http://127.0.0.1:9"  # the discard port: nothing listens

MACHINE = "a-machine-of-which-wandb-learns-nothing"


@pytest.fixture(autouse=True)
def no_network(monkeypatch, tmp_path):
    """No account, and no server to reach; what wandb keeps in the home goes below `tmp_path`."""
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_BASE_URL", NOWHERE)
    for name in ("WANDB_CONFIG_DIR", "WANDB_CACHE_DIR", "WANDB_DATA_DIR"):
        monkeypatch.setenv(name, str(tmp_path / "wandb-home"))


def rows(folder: RunFolder) -> list[dict[str, Any]]:
    """metrics.jsonl as it should arrive."""
    return [
        {key: value for key, value in loggers.row(record).items() if value is not None}
        for record in read(folder.metrics)
    ]


def logged(folder: RunFolder) -> list[dict[str, Any]]:
    """The rows that wandb has of metrics.jsonl: all but pictures and tables."""
    found = history(only_copy(folder.path))
    return [each for each in found if "reconstructions" not in each and "tables/summary" not in each]


def train(runs, *overrides, program=("-m", "gcond.train"), **environment):
    """gcond-train in a process of its own, which also starts a wandb-core of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return subprocess.run(
        [sys.executable, *program, f"runs={runs}", *TINY, *overrides],
        env=inherited | {"PYTHONPATH": paths} | environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


def only_run(runs: Path) -> Path:
    (folder,) = (runs / "smoke").glob("photos-*")
    return folder


def test_what_wandb_wrote_is_what_metrics_jsonl_holds(tmp_path, capfd, monkeypatch):
    for module, name in ((socket, "gethostname"), (platform, "node")):
        monkeypatch.setattr(module, name, lambda: MACHINE)
    before = sys.exit, sys.excepthook, [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    folder = run(tiny_config(tmp_path, "logger=wandb", "strategy=pcgrad", "seed=11"))
    assert before == (
        sys.exit,
        sys.excepthook,
        [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)],
    )
    assert "wandb" not in "".join(capfd.readouterr())
    assert logged(folder) == rows(folder)
    assert len(rows(folder)) == 12  # four steps; two validations, probes and records of activations; best and last

    # The run, and how it is found
    copy = only_copy(folder.path)
    header = header_of(copy)
    assert (header.display_name, header.project) == (folder.name, "gcond")
    assert (header.run_group, header.job_type) == ("", "train")
    assert header.host == ""
    assert MACHINE.encode() not in copy.read_bytes()
    assert {"scale:smoke", "strategy:pcgrad", "seed:11", "dataset:photos"} <= set(header.tags)
    assert config_of(copy) == OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    globs = [record.metric for record in records(copy) if record.HasField("metric")]
    assert [(metric.name, metric.glob_name, metric.step_metric) for metric in globs][:2] == [
        ("step", "", ""),
        ("", "*", "step"),
    ]

    # Pictures, tables and how it ended
    files = copy.parent / "files"
    report = json.loads(folder.report.read_text())
    pictures = [row for row in history(copy) if "reconstructions" in row]
    assert [row["step"] for row in pictures] == [2, 4]
    for row in pictures:
        original = folder.reconstructions / f"{row['step']:08}.png"
        assert row["reconstructions"]["sha256"] == hashlib.sha256(original.read_bytes()).hexdigest()
        assert (files / row["reconstructions"]["path"]).read_bytes() == original.read_bytes()
        assert row["reconstructions"]["caption"].endswith("original | masked | raw prediction | pasted")
    (table,) = [row for row in history(copy) if "tables/summary" in row]
    compared = json.loads((files / table["tables/summary"]["path"]).read_text())
    assert compared["columns"] == ["predictor", "val_l1", "val_ssim", "test_l1", "test_ssim"]
    assert [row[0] for row in compared["data"]] == ["this run, best epoch", "this run, last epoch", *report["trivial"]]
    assert [row[1] for row in compared["data"][:2]] == [report["final"][at]["val_l1"] for at in ("best", "last")]
    assert compared["data"][2][4] == report["trivial"][compared["data"][2][0]]["test_ssim"]
    summary = summary_of(copy)
    assert summary["val_l1"] == {"min": min(epoch["val_l1"] for epoch in report["validation"])}
    assert (summary["report/status"], summary["report/commit"]) == ("done", report["commit"])
    assert exit_code_of(copy) == 0


def test_an_unknown_mode_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"`logger\.mode`: expected 'offline' or 'online', found 'onlin'"):
        logger_of(tiny_config(tmp_path, "logger=wandb", "logger.mode=onlin").logger, tmp_path, main=True)


@pytest.mark.slow
def test_an_interrupted_run_goes_on_in_the_same_wandb_run_and_nothing_is_there_twice(tmp_path):
    folder = interrupted(cfg := tiny_config(tmp_path, "logger=wandb"))
    first = only_copy(folder.path)
    run_id = header_of(first).run_id
    assert [row["step"] for row in logged(folder)] == [0, 1, 2, 2, 2, 2]  # 2 steps, what follows them, a step more
    assert summary_of(first)["report/status"] == "interrupted"
    assert exit_code_of(first) == 1
    run(cfg)
    second = only_copy(folder.path)
    assert header_of(second).run_id == run_id
    assert second != first
    assert logged(folder) == rows(folder)
    assert len(rows(folder)) == 12
    pictures = [row["step"] for row in history(second) if "reconstructions" in row]
    assert pictures == [2, 4]  # the first was drawn by the interrupted attempt


KILL = """
import os, signal
from pathlib import Path
import gcond.engine.loggers as loggers
from gcond.command import main

def children(name):
    for status in Path("/proc").glob("[0-9]*/status"):
        text = status.read_text()
        if f"PPid:\\t{os.getpid()}\\n" in text and name in text:
            yield int(status.parent.name)

log = loggers.WandbLogger.log

def log_and_kill(self, record):
    log(self, record)
    if record["kind"] == "step" and record["step"] == 1:
        (core,) = children("wandb-core")
        os.kill(core, signal.SIGKILL)
        print("KILLED")

loggers.WandbLogger.log = log_and_kill
main()
"""


@pytest.mark.slow
def test_a_run_outlives_wandb_s_own_process(tmp_path):
    """wandb-core, which does all of wandb's work, is killed in the first epoch."""
    done = train(tmp_path / "runs", "logger=wandb", program=["-c", KILL])
    assert "KILLED" in done.stdout, done.stderr
    assert done.returncode == 0, done.stderr
    reference = run(tiny_config(tmp_path / "reference"))
    folder = only_run(tmp_path / "runs")
    assert (folder / "DONE").exists()
    assert (folder / "metrics.jsonl").read_bytes() == reference.metrics.read_bytes()
    assert done.stderr.count("the logger failed") == 1


@pytest.mark.slow
@pytest.mark.parametrize("account", [{}, {"WANDB_API_KEY": "0123456789" * 4, "WANDB_INIT_TIMEOUT": "5"}])
def test_online_without_an_account_or_a_server_the_run_ends_well(tmp_path, account):
    done = train(tmp_path / "runs", "logger=wandb", "logger.mode=online", WANDB_MODE="online", **account)
    assert done.returncode == 0, done.stderr
    folder = only_run(tmp_path / "runs")
    assert (folder / "DONE").exists()
    assert len(read(folder / "metrics.jsonl")) == 12
    assert done.stderr.count("the logger failed in `open`") == 1


@pytest.mark.slow
def test_a_recorded_run_can_be_copied_later_and_wandb_finds_the_copy(tmp_path, capsys):
    folder = run(tiny_config(tmp_path / "runs"))
    folder.finish()
    unended = tmp_path / "runs" / "smoke" / "photos-begun"
    unended.mkdir()
    (unended / "metrics.jsonl").touch()
    assert not (folder.path / "wandb").exists()
    for _ in range(2):  # a second time replaces the first copy
        assert wandb_upload.main([str(tmp_path / "runs")]) == 1
        printed = capsys.readouterr().out
        assert "Copied 1 of 2 runs" in printed
        assert f"{unended}: interrupted" in printed
        assert logged(folder) == rows(folder)
    copy = only_copy(folder.path)
    assert len([row for row in history(copy) if "reconstructions" in row]) == 2

    # The documented command, less the sending
    command = f"{Path(sys.executable).parent / 'wandb'} sync --dry-run runs/*/*/wandb/offline-run-*"
    listed = subprocess.run(command, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert "Would sync 1 run(s)" in listed.stderr + listed.stdout
    assert copy.name in listed.stderr + listed.stdout
