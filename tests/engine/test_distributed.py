"""Several processes on one run: forked ones, and those that torchrun starts."""

import json
import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from engine import tiny
from engine.attempts import PATIENCE, PROCESSES, contents, same, saved_steps, typed, wait_for_lines
from engine.runs import CONFLICTS, parts, run, tiny_config
from omegaconf import DictConfig

import gcond.train
from gcond.engine import distributed
from gcond.engine.distributed import EveryState, World, gathered
from gcond.engine.evaluate import EvaluationSet, evaluate, means
from gcond.engine.metrics_log import read
from gcond.engine.process import rank
from gcond.engine.run_folder import RunFolder
from gcond.engine.trainer import Trainer
from gcond.loss import ReconstructionLoss
from gcond.model import MaskedAutoencoder

CPU = torch.device("cpu")
DATA = tiny.load(64, val=7)


def forked(size: int, work: Callable[[], Any], folder: Path, started: int | None = None) -> list[Any]:
    """What `work` gave in each of `size` forked processes, which find each other as torchrun would have it.

    `started`: how many of them there really are.
    """

    def one(number: int) -> None:
        os.environ |= {"RANK": str(number), "LOCAL_RANK": str(number), "WORLD_SIZE": str(size)}
        distributed._rendezvous = lambda: dist.FileStore(str(folder / "rendezvous"), size)
        torch.save(work(), folder / f"{number}.pt")

    members = [PROCESSES.Process(target=one, args=(number,)) for number in range(started or size)]
    for member in members:
        member.start()
    for member in members:
        member.join(PATIENCE)
    assert [member.exitcode for member in members] == [0] * len(members)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(len(members))]


class Counting:
    """A part of a run whose state is a number."""

    def __init__(self, number: int) -> None:
        self.number = number

    def state_dict(self) -> dict[str, int]:
        return {"number": self.number}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.number = state["number"]


def score(count: int | None, team: World | None = None) -> dict[str, float]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = MaskedAutoencoder("mobilenetv3_small_050", 64, 16, 3, width=32, depth=1)
    data = EvaluationSet.of(DATA, "val", count, 16, 0.75)
    loss = ReconstructionLoss(16, DATA.intensity)
    return means(evaluate(model, loss, data, loss.tasks, CPU, team=team))


def member(folder: Path) -> dict[str, Any]:
    with gathered("once", "cpu", 1) as team:
        return {"rank": rank(), **answers(team, folder)}


def answers(team: World, folder: Path) -> dict[str, Any]:
    def first() -> bool:
        found = (folder / "left by the first").exists()
        (folder / "left by the first").touch()
        return found

    part = Counting(10 * team.rank)
    every = EveryState(part, team)
    state = every.state_dict()
    part.number = -1
    every.load_state_dict(state)
    return {
        "main": team.main,
        "found": team.main_first(first),
        "most": team.most([team.rank, -team.rank]),
        "sum": float(team.sum(torch.tensor(1.0 + team.rank))),
        "state": state,
        "restored": part.number,
        "score": {count: score(count, team) for count in (None, 2)},
    }


def test_three_processes_are_a_team(tmp_path):
    """Of seven images the third process takes two, and of two images none."""
    members = forked(3, lambda: member(tmp_path), tmp_path)
    assert [each["rank"] for each in members] == [0, 1, 2]
    assert [each["main"] for each in members] == [True, False, False]
    assert [each["found"] for each in members] == [False, True, True]  # the others came after the first one's work
    assert [each["most"] for each in members] == [[2, 0]] * 3
    assert [each["sum"] for each in members] == [6.0] * 3
    assert [each["state"] for each in members] == [{"processes": [{"number": n} for n in (0, 10, 20)]}] * 3
    assert [each["restored"] for each in members] == [0, 10, 20]
    for count, expected in ((None, score(None)), (2, score(2))):
        for each in members:
            assert each["score"][count] == pytest.approx(expected, rel=1e-6)  # float32 means of batches of other sizes


def test_a_run_of_one_process_that_would_keep_a_state_per_process_goes_on_with_one_only(tmp_path, monkeypatch):
    settings = (*CONFLICTS, "arbitration=per_rank")
    cfg = tiny_config(tmp_path / "runs", *settings)
    monkeypatch.setattr(RunFolder, "finish", lambda folder: None)
    folder = run(cfg)
    before = contents(folder.checkpoints)
    refusal = "`arbitration`: per_rank keeps a state per process; expected the 1 processes"
    assert all(refusal in told for told in forked(2, lambda: message_of(cfg), tmp_path))
    run(cfg)
    assert contents(folder.checkpoints) == before


def message_of(cfg: DictConfig) -> str:
    try:
        run(cfg)
    except (ValueError, RuntimeError) as error:
        return str(error)
    return ""


# Processes that differ, and such as do not come


def test_settings_that_differ_between_processes_are_named_in_all(tmp_path):
    cfgs = [tiny_config(tmp_path / "runs", *CONFLICTS, "seed=11", f"optimizer.lr={rate}") for rate in (0.01, 0.02)]
    for told in forked(2, lambda: message_of(cfgs[rank()]), tmp_path):
        assert told.startswith("`processes`:")
        assert "config.optimizer.lr 0.02 in process 1, 0.01 in process 0" in told
    assert not RunFolder(cfgs[0]).begun


def test_data_that_differ_between_processes_are_named_in_all(tmp_path):
    cfg, load = tiny_config(tmp_path / "runs", *CONFLICTS), tiny.load

    def work():
        if rank() == 1:
            tiny.load = lambda image_size: load(image_size, test=7)
        return message_of(cfg)

    for told in forked(2, work, tmp_path):
        assert told.startswith("`processes`: expected the same in every process, found data.train ")


def test_a_process_with_a_folder_of_its_own_is_told(tmp_path, monkeypatch):
    """It finds no checkpoint, and would begin where the first one goes on."""
    monkeypatch.setattr(RunFolder, "finish", lambda folder: None)
    cfgs = [tiny_config(tmp_path / name, *CONFLICTS) for name in ("shared", "own")]
    run(cfgs[0])
    for told in forked(2, lambda: message_of(cfgs[rank()]), tmp_path):
        assert "found checkpoint.step 0 in process 1, 4 in process 0" in told


def test_a_line_that_a_crash_cut_is_dropped_by_the_first_process_before_another_reads_it(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(RunFolder, "finish", lambda folder: None)
        folder = run(cfg := tiny_config(tmp_path / "runs", *CONFLICTS))
    whole = folder.metrics.read_bytes()
    folder.metrics.write_bytes(whole + b'{"kind": "st')
    open_log = gcond.train.MetricsLog
    monkeypatch.setattr(gcond.train, "MetricsLog", lambda *a: time.sleep(0.5 * (rank() == 0)) or open_log(*a))
    assert forked(2, lambda: message_of(cfg), tmp_path) == ["", ""]
    assert folder.metrics.read_bytes() == whole


def test_a_process_that_does_not_come_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "COMING", timedelta(seconds=1))
    cfg = tiny_config(tmp_path / "runs")
    (told,) = forked(3, lambda: message_of(cfg), tmp_path, started=1)
    assert told.startswith("process 0: waited 0:00:01 for process 1 and 2 of 3; if it has ended, its own")
    assert RunFolder(cfg).error == f"Lost: {told}"


@pytest.mark.parametrize("ends", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_process_that_stops_in_training_is_named(ends, tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "WORKING", timedelta(seconds=10))
    monkeypatch.setattr(distributed, "ROLL_CALL", timedelta(seconds=1))
    cfg = tiny_config(tmp_path / "runs", *CONFLICTS)
    step = Trainer.step

    def stopping(trainer, number):
        if number == 1 and rank() == 1:
            time.sleep(0 if ends else 20)
            raise KeyError("gone")
        return step(trainer, number)

    def work():
        Trainer.step = stopping
        try:
            return message_of(cfg)
        except KeyError:
            return "gone"

    told, other = forked(2, work, tmp_path)
    assert told.startswith("process 0: process 1 of 2 does not answer (")
    assert other == "gone"


def test_the_others_do_not_wait_for_a_main_process_that_fails(tmp_path, monkeypatch):
    def scores(*_):
        raise ValueError("no scores")

    monkeypatch.setattr(gcond.train, "baseline_scores", scores)
    cfg = tiny_config(tmp_path / "runs", *CONFLICTS)
    first, other = forked(2, lambda: message_of(cfg), tmp_path)
    assert first == "no scores"
    assert other == "process 1: process 0 of 2 failed, see its output"


# torchrun


STRATEGIES = {"window": CONFLICTS, "micro_batch": ("strategy=cagrad",), "joint": ("strategy=baseline",)}
CHOICES = ("zone/", "wins/", "clipped")
# Processes add float32 gradients up in another order: 2^-24 relative. AdamW turns that into whole steps where a
# gradient is nearly zero, so that later norms and cosines differ by more; seen were 5e-6 of losses, 1e-4 of cosines.
OF_LOSSES, OF_OTHERS = 2e-5, 1e-3
OF_ACTIVATIONS = 1e-2  # their extremes: in evaluation they rest on BatchNorm's statistics (assert_the_same_statistics)


def assert_the_same_arbitration(folder: RunFolder, alone: RunFolder) -> None:
    records, expected = read(folder.metrics), read(alone.metrics)
    assert len(records) == len(expected)  # one process writes
    for record, by_one in zip(records, expected, strict=True):
        assert list(record) == list(by_one)
        record |= record.get("quantiles", {})  # of activations
        for key, value in (by_one | by_one.pop("quantiles", {})).items():
            if not isinstance(value, float) or key.startswith(CHOICES):
                assert record[key] == value, key
            elif key.startswith(("loss/", "val_", "test_")):
                assert record[key] == pytest.approx(value, rel=OF_LOSSES), key
            else:
                tolerance = OF_ACTIVATIONS if record["kind"] == "activations" else OF_OTHERS
                assert record[key] == pytest.approx(value, rel=tolerance, abs=tolerance), (record["step"], key)


def assert_the_same_statistics(folder: RunFolder, alone: RunFolder, in_their_order: bool) -> None:
    """BatchNorm's; where processes take micro-batches in turn, merged in another order, only their number."""
    one, other = parts(folder)["model"], parts(alone)["model"]
    counts = [name for name in other if name.endswith("num_batches_tracked")]
    assert counts
    assert all(one[name] == other[name] == 16 for name in counts)  # 4 steps of 4 micro-batches
    for name in other:
        if "running_" in name and in_their_order:
            torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-4)


def slow(*values):
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.mark.parametrize(
    ("kind", "processes"),
    [("window", 2), slow("window", 4), *(slow(kind, n) for kind in ("micro_batch", "joint") for n in (2, 4))],
)
def test_several_processes_arbitrate_as_one(kind, processes, tmp_path):
    settings = (*STRATEGIES[kind], "scale.accumulation_steps=4")
    alone = run(tiny_config(tmp_path / "alone", *settings))
    cfg = tiny_config(tmp_path / "several", *settings)
    assert forked(processes, lambda: run(cfg).path.name, tmp_path) == [alone.name] * processes
    folder = RunFolder(cfg)
    assert_the_same_arbitration(folder, alone)
    assert_the_same_statistics(folder, alone, in_their_order=kind != "micro_batch" or processes == 4)
    report = json.loads(folder.report.read_text())
    assert (report["processes"], report["arbitration"], report["status"]) == (processes, "once", "done")
    # One per row; Joint has one row, and two in every second step, which is diagnosed. CAGrad's are reduced combined.
    counts = report["collectives_per_window"]
    assert counts.get("reduce_scatter/calls", 0) == {"window": 2, "micro_batch": 0, "joint": 1.5}[kind]


@pytest.mark.slow
def test_a_run_of_two_processes_goes_on_with_one(tmp_path):
    """As a batch system does it: SIGTERM to every process, and torchrun passes its own on."""
    settings = (*CONFLICTS, "scale.accumulation_steps=4", "scale.steps_per_epoch=40")
    cfg = tiny_config(tmp_path / "runs", *settings)
    folder = RunFolder(cfg)
    attempt = typed(tmp_path / "runs", tmp_path / "log", *settings)
    wait_for_lines(folder.metrics, 4)
    for member in [*children(attempt.pid), attempt.pid]:
        os.kill(member, signal.SIGTERM)
    assert attempt.wait(PATIENCE) != 0
    (reached,) = saved_steps(folder)[:1]
    assert 4 <= reached < 80
    assert [record["step"] for record in read(folder.metrics) if record["kind"] == "step"] == list(range(reached))
    assert folder.error is None
    run(cfg)
    alone = run(tiny_config(tmp_path / "alone", *settings))
    assert [record["step"] for record in read(folder.metrics)] == [record["step"] for record in read(alone.metrics)]
    for record, by_one in list(zip(read(folder.metrics), read(alone.metrics), strict=True))[: reached + 1]:
        assert record["loss/l1"] == pytest.approx(by_one["loss/l1"], rel=1e-2)


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


@pytest.mark.slow
def test_as_published_each_process_keeps_its_own_state(tmp_path):
    settings = (*CONFLICTS, "scale.accumulation_steps=4", "arbitration=per_rank", "scale.steps_per_epoch=40")
    cfg = tiny_config(tmp_path / "runs", *settings)
    folder = RunFolder(cfg)
    attempt = typed(tmp_path / "runs", tmp_path / "log", *settings)
    wait_for_lines(folder.metrics, 4)
    os.kill(attempt.pid, signal.SIGTERM)
    assert attempt.wait(PATIENCE) != 0
    first, second = parts(folder)["conductor"]["processes"]
    assert first["steps"] == second["steps"] == saved_steps(folder)[0]
    assert not same(first, second)
    before = contents(folder.checkpoints)
    with pytest.raises(ValueError, match=r"`arbitration`.*expected the 2 processes"):
        run(cfg)
    assert contents(folder.checkpoints) == before
    assert typed(tmp_path / "runs", tmp_path / "log", *settings).wait(300) == 0, (tmp_path / "log").read_text()
    assert folder.done
    assert json.loads(folder.report.read_text())["arbitration"] == "per_rank"
