"""scripts/bench_startup.py: that it takes a process's time, and says when a run never came to a step."""

from __future__ import annotations

import sys

import pytest
from script_files import load

from gcond.report import startup
from gcond.report.records import read_csv


@pytest.fixture(scope="module")
def script():
    return load("bench_startup")


def test_sleep_is_wall_time_and_work_is_both(script):
    wall, processor = script.to_its_end([sys.executable, "-c", "import time; time.sleep(0.3)"])
    assert wall >= 0.3
    assert processor < wall
    busy = "import time\nwhile time.process_time() < 0.3: pass"
    assert script.to_its_end([sys.executable, "-c", busy])[1] >= 0.3
    with pytest.raises(RuntimeError, match="ended with status 3"):
        script.to_its_end([sys.executable, "-c", "raise SystemExit(3)"])


def test_a_run_that_fails_before_its_first_step_says_why(script):
    with pytest.raises(RuntimeError, match=r"(?s)no step in .*strategi"):
        script.to_first_step(["strategi=baseline"])


@pytest.mark.slow
def test_starts_are_measured_and_recorded(script, tmp_path, monkeypatch):
    out = tmp_path / "startup.csv"
    monkeypatch.setattr(script, "FIRST_STEP", {"photos": startup.FIRST_STEP["photos"]})
    monkeypatch.setattr(sys, "argv", ["bench_startup", "--rounds", "1", "--out", str(out)])
    script.main()
    rows = read_csv(out, startup.COLUMNS, startup.KEY)
    assert out.with_suffix(".md").read_text() == startup.page(rows)
    seconds = rows.set_index("work").seconds
    assert seconds[startup.HELP] < seconds[startup.BARE] < 2 * seconds[startup.FIRST_STEP["photos"]]
