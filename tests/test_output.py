"""What is said may be lost: a reader that goes away, and a disk that is full, end nothing."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from engine.runs import tiny_config

from gcond.command import main
from gcond.engine.run_folder import RunFolder
from gcond.output import Progress, output_may_be_lost


@pytest.fixture
def nobody_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Standard output and error are pipes that nobody reads any more."""
    for name in ("stdout", "stderr"):
        reader, writer = os.pipe()
        os.close(reader)
        monkeypatch.setattr(sys, name, io.TextIOWrapper(os.fdopen(writer, "wb", 0), write_through=True))
    with pytest.raises(BrokenPipeError):
        print("this")


@pytest.mark.parametrize("progress", ["bar", "lines", "quiet"])
def test_a_run_that_nobody_listens_to_is_finished(progress: str, nobody_reads: None, tmp_path: Path) -> None:
    cfg = tiny_config(tmp_path, "strategy=baseline", f"progress={progress}")
    main(cfg)
    folder = RunFolder(cfg)
    assert folder.finished() is not None
    assert folder.error is None


def test_closed_streams_end_no_run_and_their_numbers_are_given_to_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_what_can_be_written_is_and_the_streams_are_given_back(capsys: pytest.CaptureFixture) -> None:
    before = sys.stdout, sys.stderr
    with output_may_be_lost():
        print("heard")
        print("too", file=sys.stderr)
        assert sys.stdout.isatty() is False
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("heard\n", "too\n")


def test_a_program_whose_reader_has_gone_ends_well() -> None:
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


SCORES = {"val_l1": 0.5, "val_ssim": 0.25}


def say(kind: str, start: int = 0) -> None:
    with Progress("a-run", kind, start, total=4) as progress:
        for epoch in range(start + 1, 5):
            progress.log({"kind": "step", "loss/l1": 1.0, "lr": 0.1})
            progress.log({"kind": "validation", "epoch": epoch, "step": epoch, **SCORES})


@pytest.mark.parametrize(("kind", "epochs"), [("auto", [1, 3, 4]), ("lines", [1, 3, 4]), ("quiet", [4])])
def test_lines_say_what_a_person_wants_to_know_once_a_minute_at_most(
    kind: str, epochs: list[int], capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter([1000.0, 1059.0, 1060.0, 1061.0])  # the ends of the epochs; the last is always told
    monkeypatch.setattr("gcond.output.time.monotonic", lambda: next(clock))
    say(kind)
    ends = [f"a-run: epoch {e}, step {e}: validation L1 0.5000, 1-SSIM 0.2500" for e in epochs]
    assert capsys.readouterr().err.splitlines() == ["a-run: 4 steps, from the start", *ends]


def test_a_bar_in_a_file_is_not_drawn_at_every_step(capsys: pytest.CaptureFixture) -> None:
    with Progress("a-run", "bar", 0, total=1000) as progress:
        for _ in range(1000):
            progress.log({"kind": "step", "loss/l1": 1.0})
            time.sleep(0.0003)  # three times the tenth of a second after which a terminal's bar is drawn again
    assert capsys.readouterr().err.count("%|") == 3  # at its start, below the first line, and at its end
