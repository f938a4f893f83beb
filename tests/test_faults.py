"""Whole runs that are signalled, killed, starved of disk or fed with what is not finite; against undisturbed ones."""

import functools
import json
import math
import re
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from engine.attempts import Attempt, assert_ended_alike, contents, interrupted, same, saved_steps
from engine.runs import CONFLICTS, parts, run, steps, tiny_config
from omegaconf import DictConfig
from torch import Tensor, nn

import gcond.train
from gcond.command import main
from gcond.engine.checkpoint import Checkpoint, checkpoints
from gcond.engine.process import Interrupted
from gcond.engine.run_folder import RunFolder
from gcond.engine.run_report import RunReport
from gcond.engine.trainer import Trainer

TERM, INT, KILL = signal.SIGTERM, signal.SIGINT, signal.SIGKILL
STRATEGY = "strategy=gcond_stochastic"
BREAKING = "loss.reconstruction._target_=engine.tiny.BreakingLoss"  # the third and the fourth step of four
SKIP = "nonfinite=skip"
TAKE_STEP = Trainer.step


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """overrides -> the folder of a run that nothing disturbed."""
    return functools.cache(lambda *overrides: run(tiny_config(tmp_path_factory.mktemp("whole"), *overrides)))


def losses(record: dict) -> dict[str, float | None]:
    return {key: value for key, value in record.items() if key.startswith("loss/")}


def told_to_stop(cfg: DictConfig, number: int) -> RunFolder:
    """Of a run that gets SIGTERM in optimizer step `number`."""

    def step(trainer, step):
        if step == number:
            signal.raise_signal(TERM)
        return TAKE_STEP(trainer, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "step", step)
        with pytest.raises(Interrupted) as left:
            run(cfg)
    assert left.value.code == 143
    assert RunFolder(cfg).error is None
    return RunFolder(cfg)


# SIGTERM, Ctrl-C, SIGKILL


@pytest.mark.parametrize(("which", "status", "workers"), [(TERM, 143, 1), (INT, 130, 1)])
def test_a_signal_ends_in_a_checkpoint_and_the_same_command_goes_on(which, status, workers, whole, tmp_path):
    """To the whole process group, as a terminal or a batch system sends it."""
    cfg = tiny_config(tmp_path, STRATEGY, f"scale.workers={workers}")
    folder, attempt = RunFolder(cfg), Attempt(cfg, tmp_path / "log", held=2)
    attempt.wait_until_held()
    attempt.send(which, group=True)
    attempt.go_on()
    assert attempt.status() == status
    assert f"{which.name}: checkpoint after this step" in attempt.said
    assert saved_steps(folder) == [3, 2]  # 2 is an epoch's end, 3 is not
    assert [record["step"] for record in steps(folder)] == [0, 1, 2]
    assert not folder.done
    assert folder.error is None
    assert not folder.report.exists()

    assert Attempt(cfg, tmp_path / "log").status() == 0
    assert_ended_alike(folder, whole(STRATEGY))


@pytest.mark.parametrize("step", [1, 3])  # an epoch's last, the run's last
def test_wherever_the_signal_comes_nothing_is_lost(step, whole, tmp_path):
    cfg = tiny_config(tmp_path, STRATEGY)
    before = signal.getsignal(TERM), signal.getsignal(INT)
    folder = told_to_stop(cfg, step)
    assert (signal.getsignal(TERM), signal.getsignal(INT)) == before
    assert saved_steps(folder)[0] == step + 1
    assert not folder.done
    assert_ended_alike(run(cfg), whole(STRATEGY))


def test_workers_that_outlive_a_killed_process_do_not_keep_the_run(whole, tmp_path):
    cfg = tiny_config(tmp_path, STRATEGY, "scale.workers=1")
    attempt = Attempt(cfg, tmp_path / "log", held=3)
    attempt.wait_until_held()
    attempt.send(KILL)
    assert attempt.status() == -9
    assert alive_in_group(attempt), "no worker outlived it: nothing was tested"
    assert Attempt(cfg, tmp_path / "log").status() == 0
    assert_ended_alike(RunFolder(cfg), whole(STRATEGY, "scale.workers=1"))


def alive_in_group(attempt: Attempt) -> bool:
    try:
        attempt.send(signal.SIGCONT, group=True)
    except ProcessLookupError:
        return False
    return True


def test_a_failure_with_workers_ends(tmp_path):
    """A process that ends by an exception waits for its workers."""
    cfg = tiny_config(tmp_path, "strategy=baseline", "scale.workers=1", BREAKING)
    assert Attempt(cfg, tmp_path / "log").status() == 1
    assert "NotFinite" in str(RunFolder(cfg).error)


# Two processes, one run


def test_the_second_process_on_a_run_leaves_and_changes_nothing(whole, tmp_path):
    cfg = tiny_config(tmp_path, STRATEGY)
    folder, first = RunFolder(cfg), Attempt(cfg, tmp_path / "log", held=3)
    first.wait_until_held()
    before = contents(folder.path)
    with pytest.raises(RuntimeError, match=r"another process is at work on .*; wait for it or end it"):
        run(cfg)
    assert contents(folder.path) == before
    first.go_on()
    assert first.status() == 0
    assert_ended_alike(folder, whole(STRATEGY))


def test_a_run_that_is_finished_while_a_second_start_prepares_is_left_as_it_is(tmp_path, monkeypatch, capsys):
    """The second has looked at the folder, and imports PyTorch, when the first one ends."""
    cfg = tiny_config(tmp_path, STRATEGY, "finished_keeps=weights")
    before: dict[str, bytes] = {}
    train = gcond.train.train

    def late(cfg, folder):
        train(cfg, folder)
        before.update(contents(folder.path))
        train(cfg, folder)

    monkeypatch.setattr(gcond.train, "train", late)
    main(cfg)
    assert f"{RunFolder(cfg).name}: finished earlier" in capsys.readouterr().out
    assert contents(RunFolder(cfg).path) == before


@pytest.mark.parametrize(("keeps", "left"), [("weights", None), ("checkpoints", '{"schema": 1, "sta')])
def test_the_report_of_a_finished_run_is_made_again_without_a_step(left, keeps, tmp_path, monkeypatch, capsys):
    cfg = tiny_config(tmp_path, STRATEGY, f"finished_keeps={keeps}")
    folder = run(cfg)
    expected = json.loads(folder.report.read_text())
    before = contents(folder.path)
    folder.report.unlink()
    if left is not None:
        folder.report.write_text(left)
    monkeypatch.setattr(Trainer, "step", lambda trainer, step: pytest.fail("took a step"))
    main(cfg)
    assert "marked DONE without the report of a finished run, so it is made again" in capsys.readouterr().out
    again = folder.finished()
    clock = {"seconds", "cpu_seconds", "load_start", "load_end", "started", "peak_memory_mb", "commit", "dirty"}
    assert {key: again[key] for key in again.keys() - clock} == {key: expected[key] for key in expected.keys() - clock}
    after = contents(folder.path)
    assert {name for name in before if before[name] != after[name]} <= {"report.json"}


@pytest.mark.parametrize("killed_in", ["keep_only", "report", "finish"])
def test_a_run_that_is_killed_while_it_finishes_is_finished_by_the_next_start(killed_in, whole, tmp_path, monkeypatch):
    cfg, undisturbed = tiny_config(tmp_path, STRATEGY, "finished_keeps=weights"), whole(STRATEGY)

    def killed(*_, **__):
        raise KeyboardInterrupt

    targets = {
        "keep_only": (gcond.train, "keep_only"),
        "report": (RunReport, "_write"),
        "finish": (RunFolder, "finish"),
    }
    with monkeypatch.context() as patch:
        patch.setattr(*targets[killed_in], killed)
        with pytest.raises(KeyboardInterrupt):
            main(cfg)
    folder = RunFolder(cfg)
    assert not folder.done
    monkeypatch.setattr(Trainer, "step", lambda trainer, step: pytest.fail("took a step"))
    main(cfg)
    assert folder.finished() is not None
    assert len(checkpoints(folder.checkpoints)) == 1
    assert same(parts(folder), {"model": parts(undisturbed)["model"]})
    assert folder.metrics.read_bytes() == undisturbed.metrics.read_bytes()


# A checkpoint inside an epoch


def test_a_checkpoint_after_every_step_changes_nothing_and_each_can_be_gone_on_from(whole, tmp_path):
    cfg = tiny_config(tmp_path, STRATEGY, "checkpoint_minutes=1e-9")
    for step in (1, 3):  # the middles of both epochs
        assert saved_steps(interrupted(cfg, step))[0] == step
    assert_ended_alike(run(cfg), whole(STRATEGY))


# A full disk


@pytest.mark.parametrize("what", ["checkpoint", "logbook"])
def test_a_file_that_may_not_grow_is_told_alike(what, whole, tmp_path):
    """RLIMIT_FSIZE, set when the first checkpoint has been written: EFBIG in place of ENOSPC."""
    cfg = tiny_config(tmp_path / "runs", STRATEGY)
    folder = RunFolder(cfg)

    def limit_after_the_first_checkpoint():
        save = Checkpoint.save

        def save_and_limit(checkpoint, state):
            save(checkpoint, state)
            most = 1_000_000 if what == "checkpoint" else state.logbook_size + 100
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, resource.RLIM_INFINITY))

        Checkpoint.save = save_and_limit

    attempt = Attempt(cfg, tmp_path / "log", prepare=limit_after_the_first_checkpoint)
    assert attempt.status() == 1
    advice = "free some space, then the same command goes on from the last checkpoint"
    assert re.search(
        rf"File too large, \d+ MB are free. What was written before is intact: {advice}", str(folder.error)
    )
    assert saved_steps(folder) == [2]
    assert len(list(folder.checkpoints.iterdir())) == 1  # half a checkpoint is not left behind
    run(cfg)
    assert_ended_alike(folder, whole(STRATEGY))


# A name


def test_a_named_run_goes_on_under_its_config_and_refuses_another(whole, tmp_path, capsys):
    cfg = tiny_config(tmp_path, STRATEGY, "name=mine")
    other = tiny_config(tmp_path, STRATEGY, "name=mine", "strategy.conductor.update.beta=0.5")
    folder = told_to_stop(cfg, 2)
    assert folder.path == tmp_path / "smoke" / "mine"
    for _ in ("begun", "ended"):
        before = contents(folder.path)
        for start in (main, run):
            with pytest.raises(ValueError, match=r"strategy\.conductor\.update\.beta 0\.9 there, 0\.5 here"):
                start(other)
        assert contents(folder.path) == before
        assert folder.error is None
        main(cfg)
    assert_ended_alike(folder, whole(STRATEGY))
    assert "mine: finished earlier" in capsys.readouterr().out


# Not finite


def test_skipped_steps_are_counted_and_move_nothing(tmp_path):
    folder = run(tiny_config(tmp_path, *CONFLICTS, BREAKING, SKIP))
    records = steps(folder)
    assert ["skipped" in record for record in records] == [False, False, True, True]
    assert [record["loss/ssim"] is None for record in records] == [False, False, True, True]
    assert all(record["loss/l1"] > 0 for record in records)
    assert saved_steps(folder) == [4, 2]
    after, before = (torch.load(path, weights_only=True)["parts"] for path in checkpoints(folder.checkpoints))
    assert any(name.endswith("running_mean") for name in before["model"])
    assert same(before["model"], after["model"])
    assert same(before["optimizer"]["state"], after["optimizer"]["state"])
    counts = [{key: state["conductor"].pop(key) for key in ("steps", "skipped")} for state in (before, after)]
    assert counts == [{"steps": 2, "skipped": 0}, {"steps": 4, "skipped": 2}]
    assert same(before["conductor"], after["conductor"])
    report = json.loads(folder.report.read_text())
    assert (report["status"], report["steps"], report["skipped_steps"]) == ("done", 4, 2)
    assert report["train_ssim_first"] == records[0]["loss/ssim"]
    assert report["train_l1_tail"] == records[1]["loss/l1"]  # the last one that was taken, finite ones left out too


def test_a_run_that_skips_every_step_ends_and_says_so(tmp_path, capsys):
    always = "loss.reconstruction._target_=engine.tiny.BreaksAlways"
    folder = run(tiny_config(tmp_path, "strategy=baseline", always, SKIP, "progress=lines"))
    records = steps(folder)
    assert [record["skipped"] for record in records] == [1.0] * 4
    assert [record["loss/l1"] for record in records] == [None] * 4
    assert all(record["loss/ssim"] > 0 for record in records)
    report = json.loads(folder.report.read_text())
    assert (report["status"], report["skipped_steps"]) == ("done", 4)
    assert not [key for key in report if key.startswith("train_")]
    first, last = report["validation"]
    assert {**first, "epoch": 0, "step": 0} == {**last, "epoch": 0, "step": 0}  # of the same weights
    assert all(math.isfinite(value) for value in last.values())
    assert "epoch 2, step 4: validation L1" in capsys.readouterr().err


def test_a_run_that_has_skipped_goes_on_bit_identical(tmp_path):
    sometimes = "loss.reconstruction._target_=engine.tiny.BreaksSometimes"
    settings = (*CONFLICTS, sometimes, SKIP, "seed=3", "checkpoint_minutes=1e-9")
    undisturbed = run(tiny_config(tmp_path / "whole", *settings))
    skipped = ["skipped" in record for record in steps(undisturbed)]
    assert skipped[0] or skipped[1]
    assert not all(skipped)
    after_a_skip = skipped.index(True) + 1
    cfg = tiny_config(tmp_path / "runs", *settings)
    assert saved_steps(told_to_stop(cfg, after_a_skip - 1))[0] == after_a_skip
    assert_ended_alike(run(cfg), undisturbed)


# Precision


def interrupted_as_whole(tmp_path: Path, *settings: str) -> RunFolder:
    cfg = tiny_config(tmp_path / "runs", *settings)
    told_to_stop(cfg, 2)
    assert_ended_alike(folder := run(cfg), run(tiny_config(tmp_path / "whole", *settings)))
    return folder


def test_bfloat16_is_another_run_with_float32_losses_and_goes_on_bit_identical(whole, tmp_path, monkeypatch):
    seen: set[tuple[str, torch.dtype]] = set()
    watch_types(monkeypatch, seen)
    folder = interrupted_as_whole(tmp_path, STRATEGY, "precision=bf16")
    assert ("linear", torch.bfloat16) in seen
    assert {kind for what, kind in seen if what in ("loss", "weight")} == {torch.float32}
    exact = whole(STRATEGY)
    assert folder.name != exact.name
    for one, other in zip(steps(folder), steps(exact), strict=True):
        assert one["loss/l1"] != other["loss/l1"]
        assert one["loss/l1"] == pytest.approx(other["loss/l1"], rel=0.05)  # 8 bits of mantissa


def watch_types(monkeypatch: pytest.MonkeyPatch, seen: set[tuple[str, torch.dtype]]) -> None:
    """Note the types of weights, of what linear layers give in training, and of the losses."""
    forward, call = nn.Linear.forward, gcond.train.Objective.__call__

    def linear(layer: nn.Linear, given: Tensor) -> Tensor:
        result = forward(layer, given)
        if torch.is_grad_enabled():
            seen.update({("linear", result.dtype), ("weight", layer.weight.dtype)})
        return result

    def objective(*given: object) -> dict[str, Tensor]:
        values = call(*given)
        seen.update({("loss", value.dtype) for value in values.values()})
        return values

    monkeypatch.setattr(nn.Linear, "forward", linear)
    monkeypatch.setattr(gcond.train.Objective, "__call__", objective)


def test_float16_lowers_its_scale_and_remembers_it(tmp_path, monkeypatch):
    """A scale so large that gradients overflow at first: times it, a loss is beyond float32."""
    scaler = functools.partial(torch.amp.GradScaler, init_scale=2.0**125, backoff_factor=2.0**-55)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    folder = interrupted_as_whole(tmp_path, STRATEGY, "precision=fp16")
    records = steps(folder)
    skipped = ["skipped" in record for record in records]
    assert skipped[0]
    assert not skipped[-1]
    expected = 2.0**125  # by hand
    for record, left_out in zip(records, skipped, strict=True):
        assert record["scale"] == expected
        assert all(value is not None for value in losses(record).values())
        expected *= 2.0**-55 if left_out else 1.0
    assert parts(folder)["scaler"]["scale"] == expected
    assert json.loads(folder.report.read_text())["skipped_steps"] == sum(skipped)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs g++ on the CPU")
def test_a_compiled_model_trains_alike(tmp_path, whole):
    """Inductor orders floating-point sums in its own way: losses agree to a few units of float32 in the first step."""
    folder = run(tiny_config(tmp_path, *CONFLICTS, "compile=true"))
    assert folder.done
    first, expected = steps(folder)[0], steps(whole(*CONFLICTS))[0]
    assert losses(first) == pytest.approx(losses(expected), rel=1e-5)
    assert all(not name.startswith("_orig_mod") for name in parts(folder)["model"])
