"""Runs side by side: their number, their output, and that they save their state when the sweep is asked to end."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from engine.runs import config

from gcond.engine.run_folder import RunFolder
from gcond.sweep import launch
from gcond.sweep.__main__ import main as sweep_command
from gcond.sweep.launch import Workers
from gcond.sweep.plan import Planned

RUN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), time.sleep(0.2), sys.exit(143)))
print("begun", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def run_this(monkeypatch):
    """A program in place of `gcond-train`."""
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.01)

    def run(program):
        monkeypatch.setattr(launch, "COMMAND", (sys.executable, "-c", program))

    run(RUN)
    return run


def wait_for(path: Path, text: str) -> None:
    for _ in range(1000):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never said {text!r}")


def test_runs_end_one_by_one_and_their_output_is_kept(tmp_path):
    with Workers(2) as pool:
        pool.start(["0"], tmp_path / "short.log", "short")
        pool.start(["600"], tmp_path / "long.log", "long")
        assert not pool.free
        ended: list[str] = []
        while not ended:
            ended = [each.task for each in pool.ended()]
        assert ended == ["short"]
        assert pool.free
        assert (tmp_path / "short.log").read_text() == "begun\n"
        wait_for(tmp_path / "long.log", "begun\n")
    assert (tmp_path / "long.log").read_text() == "begun\nsaved\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_starts_nothing_more_and_lets_runs_save(tmp_path, signum):
    """However often a closed terminal sends it within a second."""
    with Workers(2) as pool:
        pool.start(["600"], tmp_path / "run.log", "run")
        wait_for(tmp_path / "run.log", "begun\n")
        os.kill(os.getpid(), signum)
        time.sleep(0.1)  # two signals at once reach the run as one
        os.kill(os.getpid(), signum)
        assert (pool.signum, pool.free) == (signum, False)
    assert (tmp_path / "run.log").read_text() == "begun\nsaved\n"


def test_a_second_ctrl_c_kills(tmp_path, run_this):
    run_this("import signal, time; signal.signal(15, signal.SIG_IGN); print('begun', flush=True); time.sleep(600)")
    with Workers(1) as pool:
        pool.start([], tmp_path / "run.log", "run")
        (running,) = pool.running
        wait_for(tmp_path / "run.log", "begun\n")
        os.kill(os.getpid(), signal.SIGINT)
        assert running.process.poll() is None
        os.kill(os.getpid(), signal.SIGINT)
    assert running.process.returncode == -signal.SIGKILL


def test_an_idle_run_takes_only_what_no_other_process_wants(tmp_path):
    with Workers(1, idle=True) as pool:
        pool.start(["600"], tmp_path / "run.log", "run")
        pid = pool.running[0].process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        group = Path(f"/proc/{pid}/autogroup")
        assert not group.exists() or group.read_text().endswith("nice 19\n")
        wait_for(tmp_path / "run.log", "begun\n")


@pytest.fixture
def runs(tmp_path):
    planned = []
    for seed in (1, 2):
        cfg = config("dataset=photos", "scale=smoke", f"seed={seed}", f"runs={tmp_path}")
        planned.append(Planned(RunFolder(cfg), cfg, overrides=(str(seed),)))
        planned[-1].folder.path.mkdir(parents=True)
    return planned


class SlowPopen(subprocess.Popen[bytes]):
    """Goes on when the process has said what it has to say."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        time.sleep(0.3)


def test_what_a_run_says_is_shown_when_it_ends(runs, run_this, capfd, monkeypatch):
    """Bytes that are no text, a last line that does not end, what a signal did, and nothing of an earlier attempt."""
    monkeypatch.setattr(subprocess, "Popen", SlowPopen)
    program = """
import os, sys
sys.stdout.buffer.write(b"no text: \\xff\\nthe end of " + sys.argv[1].encode())
sys.stdout.flush()
if sys.argv[1] == "2":
    os.kill(os.getpid(), 9)
"""
    run_this(program)
    runs[0].folder.output.parent.mkdir()
    runs[0].folder.output.write_text("an earlier attempt\n")
    runs[0].folder.metrics.write_bytes(b"\0\0\0\n\0\n")  # damage stops no other
    assert launch.launch(runs, 1) == 0
    no_text, killed = "no text: \N{REPLACEMENT CHARACTER}", f"{runs[1].folder.name}: ended by signal 9"
    assert capfd.readouterr().out.splitlines() == [no_text, "the end of 1", no_text, "the end of 2", killed]


def test_a_slurm_array_is_submitted_by_one_process(tmp_path, runs, run_this, capfd):
    run_this("import sys; print(*sys.argv[1:])")
    words = ["scale=smoke", "dataset=photos", "strategy=baseline", "seed=1,2", "hydra.launcher.partition=gpu"]
    words.append(f"runs={runs[0].folder.path.parents[1]}")
    assert (
        sweep_command(["--launcher", "slurm", "--missing", "--results", str(tmp_path), "--jobs", "7", *words]) == 1
    )  # the stand-in trains nothing
    said = capfd.readouterr().out
    assert "Plan: 2 runs, 0 finished, 2 to do" in said
    (typed,) = [line.split() for line in said.splitlines() if line.startswith("--multirun")]
    assert typed[1:-3] == [*words, f"recorded={tmp_path}", "hydra/launcher=slurm"]
    assert typed[-3:] == ["hydra/hydra_logging=disabled", "hydra.launcher.array_parallelism=7", "progress=quiet"]


PARENT = """
import sys
from pathlib import Path
from gcond.sweep import launch
from gcond.sweep.__main__ import main as sweep_command
launch.COMMAND = (sys.executable, "-c", sys.argv[2])
with launch.Workers(1) as pool:
    pool.start(["1"], Path(sys.argv[1]), "run")
    print("started", flush=True)
    list(iter(pool.ended, None))
"""


def test_a_run_outlives_a_sweep_that_is_killed(tmp_path):
    program = RUN.replace(
        "time.sleep(float(sys.argv[1]))", "time.sleep(float(sys.argv[1])); print('ended', flush=True)"
    )
    command = [sys.executable, "-c", PARENT, str(tmp_path / "log"), program]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        assert parent.stdout.readline() == "started\n"
        parent.kill()
    wait_for(tmp_path / "log", "ended")
