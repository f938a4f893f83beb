"""What `gcond-train` imports, says and hands on: it may be lost, and a sweeper takes the smallest loss."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from engine.runs import TINY, config, tiny_config

import gcond.train
from gcond.command import main
from gcond.data.checksums import of_photographs
from gcond.engine.run_folder import RunFolder
from gcond.engine.run_state import objective
from gcond.study.tables import collect


def test_the_command_returns_the_best_weighted_validation_loss_however_the_run_stands(tmp_path, monkeypatch):
    """By hand: .85 L1 + .15 (1 - SSIM), the smallest of its epochs; all of validation is measured at each of tiny's."""
    cfg = tiny_config(tmp_path / "runs", "scale.eval_images=null")
    trained = main(cfg)
    report = json.loads(RunFolder(cfg).report.read_text())
    epochs = [0.85 * epoch["val_l1"] + 0.15 * epoch["val_ssim"] for epoch in report["validation"]]
    assert len(set(epochs)) == 2
    assert trained == pytest.approx(min(epochs), rel=1e-6)

    monkeypatch.setattr(gcond.train, "train", lambda *_: pytest.fail("trained again"))
    assert main(cfg) == trained
    collect(tmp_path / "runs" / "smoke", tmp_path / "recorded" / "smoke")
    elsewhere = tiny_config(tmp_path / "there", "scale.eval_images=null", f"recorded={tmp_path / 'recorded'}")
    assert main(elsewhere) == pytest.approx(trained, rel=1e-7)


def test_a_run_with_another_task_is_judged_by_its_own_weights_and_one_without_numbers_by_nan():
    scores = {"val_l1": 0.5, "val_ssim": 0.25, "val_flipped": 0.75}
    report = {"tasks": {"l1": 0.5, "flipped": 0.2}, "final": {"best": scores, "last": {}}, "validation": []}
    assert objective(report) == pytest.approx(0.25 + 0.15)
    assert objective(report | {"final": {}, "validation": [scores]}) == pytest.approx(0.25 + 0.15)
    assert math.isnan(objective(report | {"final": {"best": scores | {"val_l1": None}}}))
    assert math.isnan(objective(report | {"final": {}}))


def test_data_that_are_not_there_end_in_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("hydra._internal.utils.is_under_debugger", lambda: False)  # as it takes coverage for one
    words = [*TINY, "dataset=ct", "dataset._target_=gcond.data.ct.load", f"dataset.root={tmp_path}", f"runs={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["gcond-train", "hydra/hydra_logging=disabled", "hydra.run.dir=.", *words])
    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert str(tmp_path) in said
    assert "Traceback" not in said


# What a process has imported when it has answered, or taken its first step; each in one of its own

PROGRAM = r"""
import os, sys
from gcond.command import main
from gcond.engine.metrics_log import MetricsLog

def leave(*_):
    print("\nIMPORTED", *sys.modules, flush=True)
    os._exit(0)

MetricsLog.write = leave  # what is written first is the record of the first optimizer step
try:
    main()
finally:
    leave()
"""
SMOKE = ("scale=smoke", "dataset=photos", "device=cpu", "progress=quiet", "hydra.job_logging.root.level=ERROR")
NEVER = {"torchjd", "matplotlib", "scipy.optimize", "wandb", "submitit", "joblib"}


def imported(*words: str) -> tuple[set[str], str]:
    """The modules of a `gcond-train WORDS` at its first step or its end, and what it said."""
    done = subprocess.run([sys.executable, "-c", PROGRAM, *words], capture_output=True, text=True, timeout=300)
    said, _, modules = done.stdout.rpartition("\nIMPORTED ")
    return set(modules.split()), said + done.stderr


def test_what_needs_no_pytorch_is_answered_without(tmp_path):
    """Help, a misspelt key, and a run that is finished."""
    words = [*SMOKE, f"runs={tmp_path}"]
    folder = RunFolder(config(*words))
    folder.path.mkdir(parents=True)
    report = {"schema": 1, "status": "done", "data_checksum": of_photographs()}
    folder.report.write_text(json.dumps(report))
    folder.finish()
    answers = ((["--help"], "strategy: "), (["strategi=baseline"], "strategi"), (words, "finished earlier"))
    for typed, answer in answers:
        modules, said = imported(*typed)
        assert answer in said
        assert "gcond.command" in modules
        assert not modules & {*NEVER, "torch", "timm", "datasets", "pandas"}


@pytest.mark.parametrize("strategy", ["gcond_stochastic", pytest.param("baseline", marks=pytest.mark.slow)])
def test_the_first_step_is_taken_without_what_it_does_not_need(tmp_path, strategy):
    modules, said = imported(*SMOKE, f"runs={tmp_path}", f"strategy={strategy}")
    assert {"torch", "timm", "gcond.engine.trainer"} <= modules, said
    assert not modules & {*NEVER, "datasets", "pandas"}


# What is said may be lost: a reader that goes away, and a disk that is full, end nothing


@pytest.fixture
def nobody_reads(monkeypatch):
    """Standard output and error are pipes that nobody reads any more."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(os.fdopen(writer, "wb", 0), write_through=True))
    with pytest.raises(BrokenPipeError):
        print("this")


@pytest.mark.parametrize("progress", ["bar", "lines", "quiet"])
def test_a_run_that_nobody_listens_to_is_finished(progress, nobody_reads, tmp_path):
    cfg = tiny_config(tmp_path, "strategy=baseline", f"progress={progress}")
    main(cfg)
    folder = RunFolder(cfg)
    assert folder.finished() is not None
    assert folder.error is None


def test_closed_streams_end_no_run_and_their_numbers_are_given_to_no_file(tmp_path, monkeypatch):
    """As with `>&- 2>&-`, or under a daemon."""
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, None)
    cfg = tiny_config(tmp_path, "strategy=baseline", "progress=lines")
    main(cfg)
    assert RunFolder(cfg).finished() is not None

    program = f"""
from gcond.output import output_may_be_lost
with output_may_be_lost():
    print("lost")
    file = open({str(tmp_path / "file")!r}, "w")
    file.write(str(file.fileno()))
"""
    command = ["sh", "-c", 'exec "$0" -c "$1" <&- >&- 2>&-', sys.executable, program]
    assert subprocess.run(command, check=False).returncode == 0
    assert int((tmp_path / "file").read_text()) > 2


def test_a_program_whose_reader_has_gone_ends_well():
    """Also with what is still in a buffer when Python ends."""
    program = """
from gcond.output import output_may_be_lost
with output_may_be_lost():
    for number in range(9999):
        print(number)
"""
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"0\n"
        process.stdout.close()
        assert (process.wait(60), process.stderr.read()) == (0, b"")
    full = Path("/dev/full")
    if full.exists():
        with full.open("w") as disk:
            assert subprocess.run([sys.executable, "-c", program], stdout=disk, check=False).returncode == 0
