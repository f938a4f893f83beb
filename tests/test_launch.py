"""A sweep outlives the process that hands out its runs, and none of its processes outlives it."""

from __future__ import annotations

import signal
import sys
import time
from pathlib import Path

import pytest
from engine.runs import config

from gcond.engine.run_folder import RunFolder
from gcond.sweep import launch
from gcond.sweep.launch import Stopped, members
from gcond.sweep.plan import Planned

# Stands in for `gcond-train --multirun`: a worker that is idle, one that is at work on the run in FOLDER for a second
# and then writes a file beside it, and their parent, which is killed.
PARENT = """
import os, signal, sys, time
from pathlib import Path
from gcond.engine.run_folder import locked
folder = Path(sys.argv[1])
print("said", flush=True)
if os.fork() == 0:
    time.sleep(600)
ready, told = os.pipe()
if os.fork() == 0:
    with locked(folder):
        os.write(told, b"x")
        time.sleep(1)
        (folder / "worked").touch()
    time.sleep(600)
os.read(ready, 1)
os.write(1, b"group %d\\n" % os.getpgrp())
os.kill(os.getpid(), int(sys.argv[2]))
time.sleep(600)
"""


@pytest.fixture
def runs(tmp_path: Path) -> list[Planned]:
    planned = []
    for seed in (1, 2):
        cfg = config("dataset=photos", "scale=smoke", f"seed={seed}", f"runs={tmp_path}")
        planned.append(Planned(RunFolder(cfg), ("smoke", "photos", "mobilenetv3_small", "gcond_stochastic"), 4, cfg))
        planned[-1].folder.path.mkdir(parents=True)
    return planned


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(launch, "LINGER_SECONDS", 0.3)


def stand_in(monkeypatch: pytest.MonkeyPatch, program: str, *arguments: object) -> None:
    command = [sys.executable, "-c", program, *map(str, arguments)]
    monkeypatch.setattr(launch, "command_of", lambda overrides, launcher, jobs: command)


def test_a_sweep_whose_launcher_is_killed_waits_for_runs_at_work_only(
    runs: list[Planned], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    stand_in(monkeypatch, PARENT, runs[0].folder.path, int(signal.SIGKILL))
    began = time.monotonic()
    launch.launch([], "joblib", 2, runs)
    assert time.monotonic() - began < 60
    assert (runs[0].folder.path / "worked").exists()
    said = capfd.readouterr().out
    assert "ended by signal 9" in said
    assert members(int(said.split("group ")[1].split()[0])) == []


def test_what_runs_say_is_passed_on_line_by_line(
    runs: list[Planned], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """Long lines, one that comes in two parts, bytes that are no text, and a last one that does not end."""
    program = """
import sys, time
print("long", "ü" * 70000, flush=True)
print("two ", end="", flush=True)
time.sleep(0.3)
print("parts", flush=True)
sys.stdout.buffer.write(b"no text: \\xff\\n")
print("the end", end="")
"""
    stand_in(monkeypatch, program)
    launch.launch([], "basic", 1, runs)
    said = [line.rstrip("ü") for line in capfd.readouterr().out.splitlines()]
    assert said == ["long ", "two parts", "no text: \N{REPLACEMENT CHARACTER}", "the end"]


def test_a_damaged_log_and_a_lock_that_is_a_folder_do_not_stop_the_others(
    runs: list[Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    (runs[0].folder.metrics).write_bytes(b"\0\0\0\n\0\n")
    (runs[0].folder.path / ".lock").mkdir()
    stand_in(monkeypatch, "")
    launch.launch([], "basic", 1, runs)


def test_a_closed_terminal_is_one_signal_however_often_it_comes(
    runs: list[Planned], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run at work is asked to end, once, and not killed."""
    program = """
import os, signal, sys, time
from pathlib import Path
from gcond.engine.run_folder import locked
folder = Path(sys.argv[1])
asked = []
signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
with locked(folder):
    os.kill(os.getppid(), signal.SIGHUP)
    while not asked:
        time.sleep(0.01)
    os.kill(os.getppid(), signal.SIGHUP)
    time.sleep(0.3)
    (folder / "saved").write_text(str(len(asked)))
"""
    stand_in(monkeypatch, program, runs[0].folder.path)
    with pytest.raises(Stopped) as stopped:
        launch.launch([], "basic", 1, runs)
    assert stopped.value.signum == signal.SIGHUP
    assert (runs[0].folder.path / "saved").read_text() == "1"


def test_nohup_is_kept(runs: list[Planned], monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        stand_in(monkeypatch, "import os, signal; os.kill(os.getppid(), signal.SIGHUP)")
        launch.launch([], "basic", 1, runs)
    finally:
        signal.signal(signal.SIGHUP, before)
