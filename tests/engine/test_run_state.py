"""What `make status` says of a run's folder: done, running, failed, interrupted."""

import fcntl
import json
import math
import os
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest
from data.test_checksums import write_photos
from engine.attempts import contents
from engine.runs import config, run, tiny_config
from omegaconf import DictConfig

from gcond.command import main
from gcond.data.checksums import checksum_of, of_photographs
from gcond.engine.metrics_log import TAIL, steps_logged
from gcond.engine.run_folder import RunFolder, running
from gcond.engine.run_state import RunState, Standing, recorded_objective, standing, state_of, states_of
from gcond.study.tables import collect
from gcond.sweep.__main__ import print_summary
from gcond.sweep.plan import looked_at_again, plan, print_plan
from gcond.sweep.status import print_states

NOW = 1_000_000.0  # seconds; every time below is set by hand
STEP = '{"kind": "step", "step": %d, "loss/l1": 0.5}\n'
VALIDATION = '{"kind": "validation", "epoch": 1, "step": %d}\n'


class Folder:
    """A run's folder written by hand: 6 epochs of 16 steps unless said otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True)
        self.config(epochs=6, steps_per_epoch=16)

    def config(self, epochs: int, steps_per_epoch: int | None) -> None:
        steps = "null" if steps_per_epoch is None else steps_per_epoch
        text = f"seed: 1\nscale:\n  name: mini\n  epochs: {epochs}\n  steps_per_epoch: {steps}\n"
        (self.path / "config.yaml").write_text(text)

    def metrics(self, text: str, at: float = NOW) -> None:
        (self.path / "metrics.jsonl").write_text(text)
        os.utime(self.path / "metrics.jsonl", (at, at))

    def checkpoint(self, step: int, at: float) -> None:
        path = self.path / "checkpoints" / f"{step:08}-abc.pt"
        path.parent.mkdir(exist_ok=True)
        path.touch()
        os.utime(path, (at, at))

    def hold(self, since: float) -> object:
        """The run's lock, as a process at work holds it since then."""
        file = (self.path / ".lock").open("w")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.utime(self.path / ".lock", (since, since))
        return file

    @property
    def status(self) -> RunState:
        return state_of(self.path, NOW)


@pytest.fixture
def folder(tmp_path):
    return Folder(tmp_path / "mini" / "run")


@pytest.fixture
def at_work(folder):
    """A run that a process has held for 100 s."""
    with folder.hold(NOW - 100):
        yield folder


def test_a_run_is_running_while_its_lock_is_held_and_looking_disturbs_neither(folder, tmp_path):
    assert not running(folder.path)
    assert not (folder.path / ".lock").exists()
    with folder.hold(NOW):
        assert [running(folder.path), running(folder.path)] == [True, True]
    assert not running(folder.path)
    with folder.hold(NOW):  # still free for the next attempt
        assert folder.status.state == "running"
    cfg = tiny_config(tmp_path)
    with suppress(KeyboardInterrupt), RunFolder(cfg).open(cfg):
        assert state_of(RunFolder(cfg).path, time.time()).state == "running"
        raise KeyboardInterrupt
    assert state_of(RunFolder(cfg).path, time.time()).state == "interrupted"


@pytest.mark.parametrize(
    ("text", "steps"),
    [
        ("", 0),
        ('{"kind": "step", "st', 0),
        (STEP % 0, 1),
        (STEP % 0 + STEP % 1 + '{"kind": "step", "step": 2, "lo', 2),
        (STEP % 15 + VALIDATION % 16, 16),
        (STEP % 15 + VALIDATION % 16 + STEP % 16, 17),
        (STEP % 6 + "x" * (TAIL - 100), 7),
        ("x" * TAIL + "\n" + STEP % 7, 8),
    ],
)
def test_steps_are_counted_by_the_last_complete_line(text, steps, folder):
    assert steps_logged(folder.path / "metrics.jsonl") == 0
    folder.metrics(text)
    assert steps_logged(folder.path / "metrics.jsonl") == steps


@pytest.mark.parametrize(
    ("checkpoints", "logged", "eta"),
    [
        ([], STEP % 23, 300),  # 24 of 96 steps in 100 s: 72 more take 300 s
        ([(16, NOW - 5000)], STEP % 35, 300),  # hours before this attempt began: 20 steps in 100 s; 60 are left
        ([(16, NOW - 40), (32, NOW - 20)], STEP % 35, 120),  # 60 s went into reading data: 20 steps in 40 s
        ([(16, NOW - 5000)], STEP % 15 + VALIDATION % 16, None),  # continued, and nothing new yet
    ],
)
def test_the_time_left_is_at_the_rate_of_this_attempt(at_work, checkpoints, logged, eta):
    assert (at_work.status.eta, at_work.status.detail) == (None, "time left not known yet, last step 2 min ago")
    for step, at in checkpoints:
        at_work.checkpoint(step, at)
    at_work.metrics(logged)
    assert (at_work.status.total, at_work.status.eta) == (96, eta)


def test_steps_of_an_epoch_that_is_a_pass_over_the_data_are_known_after_the_first(at_work):
    at_work.config(epochs=3, steps_per_epoch=None)
    at_work.metrics(STEP % 9)
    assert (at_work.status.total, at_work.status.eta) == (None, None)
    at_work.metrics(STEP % 9 + VALIDATION % 10 + STEP % 10 + STEP % 19 + VALIDATION % 20)
    assert (at_work.status.total, at_work.status.eta) == (30, 50)  # 20 steps in 100 s


def test_an_interrupted_run_says_where_it_goes_on_and_a_failed_one_the_last_line_of_its_error(folder):
    (folder.path / ".lock").touch()
    folder.metrics(STEP % 40)
    assert folder.status.detail == "starts again"
    for step in (16, 32):
        folder.checkpoint(step, NOW - 20)
    found = folder.status
    assert (found.state, found.steps, found.detail) == ("interrupted", 32, "goes on from step 32")
    (folder.path / "FAILED").write_text("InstantiationException: Error in call to 'load'\nno such file: x\n")
    found = folder.status
    assert (found.state, found.steps, found.detail) == ("failed", 41, "no such file: x")


def test_a_real_run_is_done(tmp_path):
    folder = run(tiny_config(tmp_path))
    report = json.loads(folder.report.read_text())
    found = state_of(folder.path, time.time())
    assert (found.state, found.steps, found.total) == ("done", 4, 4)
    assert found.detail == f"took {report['seconds']:.0f} s"
    assert steps_logged(folder.metrics) == 4


def test_the_command_lists_what_needs_a_look_first(folder, capsys):
    runs = folder.path.parents[1]
    (folder.path / "FAILED").write_text("OSError: disk full\n")
    (folder.path.parent / "trivial-ct.json").touch()  # what the engine keeps beside runs
    (folder.path.parent / "sweeps").mkdir()
    busy = Folder(folder.path.with_name("xyz"))
    Folder(runs / "paper" / "elsewhere")
    with busy.hold(NOW):
        print_states(runs, "mini")
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "2 runs: 1 running, 1 failed"
    assert [line.split()[:3] for line in said[1:]] == [["running", "0/96", "mini/xyz"], ["failed", "0/96", "mini/run"]]
    print_states(runs, "smoke")
    assert capsys.readouterr().out.startswith("no runs in")


def test_damage_is_told_and_hides_no_other(folder):
    """DONE beside no report, a folder in the lock's place, a log of NULs as after a power cut."""
    Folder(folder.path.with_name("whole"))
    (folder.path / "DONE").touch()
    locked = Folder(folder.path.with_name("locked"))
    (locked.path / ".lock").mkdir()
    Folder(folder.path.with_name("cut")).metrics(STEP % 0 + STEP % 1 + "\0" * 5000)
    nulls = Folder(folder.path.with_name("nulls"))
    nulls.metrics(STEP % 0 + "\0" * 100 + "\n")
    found = {status.folder: status for status in states_of([folder.path.parent], NOW)}
    assert {path.name: status.state for path, status in found.items()} == {
        "run": "unreadable", "locked": "unreadable", "nulls": "unreadable", "whole": "interrupted", "cut": "interrupted"
    }  # fmt: skip
    assert "the next sweep makes it again" in found[folder.path].detail
    assert f"Is a directory: '{locked.path}/.lock'" in found[locked.path].detail
    assert "metrics.jsonl: its last line: expected a JSON object" in found[nulls.path].detail


SMALL = (
    "scale=smoke", "dataset=imagenet256", "model=mobilenetv3_small_050", "model.width=32",
    "model.depth=1", "strategy=baseline", "device=cpu", "progress=quiet",
)  # fmt: skip


@pytest.fixture(scope="module")
def two_roots(tmp_path_factory):
    """Folders of other photographs under the same names."""
    place = tmp_path_factory.mktemp("photos")
    return write_photos(place / "a", 1), write_photos(place / "b", 2)


def described(runs: Path, root: Path, *more: str) -> DictConfig:
    return config(*SMALL, f"runs={runs}", f"dataset.root={root}", *more)


@pytest.fixture(scope="module")
def trained_on_a(tmp_path_factory, two_roots):
    runs = tmp_path_factory.mktemp("finished") / "runs"
    main(described(runs, two_roots[0]))
    return runs


def test_other_data_under_the_same_name_are_refused_by_the_run_and_by_a_sweep(
    trained_on_a, two_roots, tmp_path, capsys
):
    a, b = (described(trained_on_a, root) for root in two_roots)
    folder = RunFolder(a)
    assert RunFolder(b).path == folder.path
    before = contents(folder.path)
    main(a)
    assert f"finished earlier, see {folder.path}\n" in capsys.readouterr().out
    then, today = (checksum_of(cfg.dataset)[:10] for cfg in (a, b))
    with pytest.raises(ValueError, match=rf"{folder.path}: finished .* {then}.*, expected today's {today}.*; choose"):
        main(b)
    assert contents(folder.path) == before

    for root, states in zip(two_roots, (["done", "to do"], ["refused", "to do"]), strict=True):
        runs = plan([*SMALL, f"runs={trained_on_a}", "seed=42,43", f"dataset.root={root}"])
        assert [run.standing.state for run in runs] == states
    print_plan({"": runs}, 1, tmp_path)
    said = capsys.readouterr().out
    assert "Plan: 2 runs, 0 finished, 1 refused, 1 to do" in said
    assert f"refused: {folder.path}: finished with data of the checksum" in said
    assert print_summary(runs) == 1
    assert f"{folder.name}: {folder.path}: finished with data of" in capsys.readouterr().out
    meanwhile = [replace(run, standing=Standing("to do")) for run in runs]
    assert [run.refused for run in looked_at_again(meanwhile)] == [True, False]


def test_without_its_data_a_finished_run_is_finished_and_said_to_be_unchecked(trained_on_a, tmp_path, capsys):
    runs = plan([*SMALL, f"runs={trained_on_a}", "seed=42,43", f"dataset.root={tmp_path / 'gone'}"])
    assert [run.done for run in runs] == [True, False]
    print_plan({"": runs}, 1, tmp_path)
    said = capsys.readouterr().out
    assert (
        "1 finished or recorded runs were not compared with their data, which are not there: `root`: no folder" in said
    )
    main(runs[0].cfg)
    assert "not compared with its data" in capsys.readouterr().out


def test_what_is_recorded_counts_for_its_data_only(trained_on_a, two_roots, tmp_path):
    results, here = tmp_path / "results", tmp_path / "here"
    collect(trained_on_a / "smoke", results / "smoke")
    a, b = (described(here, root, f"recorded={results}") for root in two_roots)
    folder = RunFolder(a)
    assert standing(folder, a).state == "recorded"
    other = standing(folder, b)
    assert (other.state, "for other or unknown data" in other.said) == ("to do", True)

    table = results / "smoke" / "runs.csv"
    whole = table.read_text()
    table.write_text(whole.replace(",done,", ",failed,"))
    assert standing(folder, a) == Standing("to do")
    table.write_text(whole.replace(checksum_of(a.dataset), ""))  # as it was before checksums were recorded
    unknown = standing(folder, a)
    assert (unknown.state, "for other or unknown data" in unknown.said) == ("to do", True)
    # The queue's table has finished runs alone, and no column that says so.
    table.write_text(f"name,hash,data_checksum,seconds\na,{folder.hash},{checksum_of(a.dataset)},1\n")
    assert standing(folder, a).state == "recorded"


def test_the_objective_of_a_recorded_run_is_its_weighted_loss_or_not_a_number():
    row = {"best_val_l1": "0.5", "best_val_ssim": "0.25", "best_val_flipped": ""}
    assert recorded_objective(row, {"l1": 1.0}) == pytest.approx(0.85 * 0.5 + 0.15 * 0.25)  # the paper's weights
    assert math.isnan(recorded_objective(row, {"l1": 0.5, "flipped": 0.5}))
    assert math.isnan(recorded_objective(row, {"l1": 0.5, "class": 0.5}))


def test_done_without_a_sound_report_is_not_finished_and_another_versions_is_refused(tmp_path):
    cfg = config("dataset=photos", "scale=smoke", f"runs={tmp_path}")
    folder = RunFolder(cfg)
    folder.path.mkdir(parents=True)
    folder.finish()
    for report in (None, "", '{"schema": 1, "status": "done", "data_', '["done"]', '{"schema": 1}'):
        if report is not None:
            folder.report.write_text(report)
        assert folder.finished() is None
        assert standing(folder, cfg).state == "to do"
    folder.report.write_text('{"schema": 7, "status": "done", "data_checksum": "0"}')
    assert standing(folder, cfg).state == "refused"
    with pytest.raises(ValueError, match="expected schema 1, found 7"):
        main(cfg)


def test_a_name_is_for_one_run(tmp_path):
    words = ["scale=smoke", "dataset=photos", f"runs={tmp_path}", "name=mine"]
    with pytest.raises(ValueError, match="`name`: expected it for one run, found mine for several"):
        plan([*words, "seed=1,2"])
    first, other = (config(*words, f"seed={seed}") for seed in (1, 2))
    folder = RunFolder(first)
    with folder.open(first):
        folder.report.write_text(json.dumps({"schema": 1, "status": "done", "data_checksum": of_photographs()}))
    assert standing(folder, first).state == "done"
    found = standing(RunFolder(other), other)
    assert found.state == "refused"
    assert "seed 1 there, 2 here" in found.said


def test_two_roots_in_one_sweep_are_refused_where_they_would_share_a_folder(two_roots, tmp_path):
    a, b = two_roots
    with pytest.raises(ValueError, match=r"`dataset.root`: two runs of this sweep"):
        plan([*SMALL, f"runs={tmp_path}", f"dataset.root={a},{b}"])
    (tmp_path / "link").symlink_to(a)
    assert len(plan([*SMALL, f"runs={tmp_path}", f"dataset.root={a},{tmp_path / 'link'}"])) == 2


def test_a_folder_that_may_not_be_read_is_refused(tmp_path, monkeypatch):
    cfg = config("dataset=photos", "scale=smoke", f"runs={tmp_path}")

    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", forbidden)
    found = standing(RunFolder(cfg), cfg)
    assert (found.state, str(RunFolder(cfg).path) in found.said) == ("refused", True)
