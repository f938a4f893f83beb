"""scripts/trace_step.py: its stopwatch on a made clock, its arithmetic by hand, and that it finds a stall."""

from __future__ import annotations

import json
import sys
import time

import pytest
from engine.runs import TINY
from script_files import load

from gcond.data.images import TensorImages
from gcond.engine.trainer import Trainer
from gcond.report import trace
from gcond.report.records import read_csv
from gcond.strategy import GCond


@pytest.fixture(scope="module")
def script():
    return load("trace_step")


def test_a_part_stops_the_one_around_it(script):
    """By hand: 1 s of nothing, 2 + 4 s of arbitration around 3 s of data, 5 s of nothing; then a second lap."""
    clock = iter([0, 1, 3, 6, 10, 15, 16, 18, 18])
    watch = script.Stopwatch(lambda: next(clock))
    with watch.part("arbitration"), watch.part("data"):
        pass
    watch.lap()
    with pytest.raises(ValueError, match="made"), watch.part("passes"):
        raise ValueError("made")
    watch.lap()
    nothing = dict.fromkeys(trace.PARTS, 0)
    assert watch.laps == [
        nothing | {"other": 1 + 5, "arbitration": 2 + 4, "data": 3},
        nothing | {"other": 1, "passes": 2},
    ]


def test_intervals_are_joined(script):
    assert script.union([(5, 6), (0, 2), (1, 3), (3, 4)]) == [(0, 4), (5, 6)]
    assert script.union([]) == []
    assert script.length([(0, 4), (5, 6)]) == 5


def test_copies_beside_a_kernel_are_hidden(script):
    """In 20 us kernels run for 10 + 5; of 4 us of copies from the host 3 lie beside one. Copies to it are not meant."""
    events = [
        ("gemm", 0, 10),
        ("elementwise", 8, 10),
        ("Memcpy HtoD (Pinned -> Device)", 7, 11),
        ("Memcpy DtoH (Device -> Pageable)", 12, 13),
        ("gemm", 15, 20),
    ]
    assert script.on_device(events) == {"busy": 15 / 20, "copying": 4 / 20, "hidden": 3 / 4}


def test_a_stall_is_found_where_it_is(script, monkeypatch):
    """Every image 10 ms late, four images a step; every arbitration 30 ms."""
    take, resolve, step = TensorImages.__getitem__, GCond.resolve, Trainer.step
    monkeypatch.setattr(TensorImages, "__getitem__", lambda *a: (time.sleep(0.01), take(*a))[1])
    monkeypatch.setattr(GCond, "resolve", lambda *a: (time.sleep(0.03), resolve(*a))[1])
    laps = script.run([*TINY, "strategy=gcond_stochastic"], steps=2)
    assert len(laps) == 2
    assert (laps.data >= 0.04).all()
    assert (laps.arbitration >= 0.03).all()
    assert (laps[["passes", "windowing", "optimizer", "other"]] > 0).all(axis=None)
    assert (laps.transfer == 0).all()
    assert Trainer.step is step  # all is as it was


@pytest.mark.slow
def test_a_case_is_measured_recorded_and_drawn(script, tmp_path, monkeypatch):
    out, chrome = tmp_path / "trace.csv", tmp_path / "chrome.json"
    words = ["--cases", "photos:memory:1", "--steps", "2", "--rounds", "2", "--out", str(out), "--chrome", str(chrome)]
    monkeypatch.setattr(sys, "argv", ["trace_step", *words, "scale=smoke"])
    script.main()
    rows = read_csv(out, trace.COLUMNS, trace.KEY)
    assert out.with_suffix(".md").read_text() == trace.page(rows)
    assert rows.loc[0, ["dataset", "kept", "workers", "micro_batch"]].tolist() == ["photos", "memory", 1, 2]
    assert 0 < rows.passes[0] < 1
    names = {event.get("name") for event in json.loads(chrome.read_text())["traceEvents"]}
    assert {"data", "windowing", "passes", "arbitration", "optimizer"} <= names


@pytest.mark.parametrize("case", ["ct:memory", "ct:disk:0", "ct:store:many"])
def test_bad_cases_are_refused(script, case, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["trace_step", "--cases", case])
    with pytest.raises(ValueError, match=f"expected dataset:memory|store:workers, found {case}"):
        script.main()


def test_photographs_are_in_memory_always(script, monkeypatch):
    monkeypatch.setattr(script, "SyntheticRun", lambda *_: None)
    with pytest.raises(ValueError, match="expected memory, as photos is kept here"):
        script.alone([*TINY, "strategy=baseline"], True, None, 1)
