"""Runs side by side: their number, their output, and that they are asked to save when the queue ends."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from gcond.study import workers

RUN = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(143)))
print("begun", flush=True)
time.sleep(float(sys.argv[1]))
"""


@pytest.fixture(autouse=True)
def _stand_in(monkeypatch):
    monkeypatch.setattr(workers, "COMMAND", (sys.executable, "-c", RUN))
    monkeypatch.setattr(workers, "POLL_SECONDS", 0.01)


def wait_for(path, text):
    for _ in range(1000):
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"{path} never said {text!r}")


def test_runs_end_one_by_one_and_their_output_is_kept(tmp_path):
    with workers.Workers(2) as pool:
        pool.start(["0"], tmp_path / "short.log", "short")
        pool.start(["600"], tmp_path / "long.log", "long")
        assert not pool.free
        ended = []
        while not ended:
            ended = [each.task for each in pool.ended()]
        assert ended == ["short"]
        assert pool.free
        assert (tmp_path / "short.log").read_text() == "begun\n"
        wait_for(tmp_path / "long.log", "begun\n")
    assert (tmp_path / "long.log").read_text() == "begun\nsaved\n"


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_starts_nothing_more_and_lets_runs_save(tmp_path, signum):
    with workers.Workers(2) as pool:
        pool.start(["600"], tmp_path / "run.log", "run")
        wait_for(tmp_path / "run.log", "begun\n")
        os.kill(os.getpid(), signum)
        assert (pool.signum, pool.free) == (signum, False)
    assert (tmp_path / "run.log").read_text() == "begun\nsaved\n"


def test_a_run_takes_only_what_no_other_process_wants(tmp_path):
    with workers.Workers(1) as pool:
        pool.start(["600"], tmp_path / "run.log", "run")
        pid = pool.running[0].process.pid
        assert os.getpriority(os.PRIO_PROCESS, pid) == 19
        assert os.sched_getscheduler(pid) == os.SCHED_IDLE
        group = Path(f"/proc/{pid}/autogroup")
        assert not group.exists() or group.read_text().endswith("nice 19\n")
        wait_for(tmp_path / "run.log", "begun\n")
