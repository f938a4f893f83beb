import time

import pytest

from gcond.output import Progress

SCORES = {"val_l1": 0.5, "val_ssim": 0.25}


def say(kind: str, start: int = 0) -> None:
    with Progress("a-run", kind, start, total=4) as progress:
        for epoch in (1, 2, 3, 4):
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


def test_a_resumed_run_says_so(capsys: pytest.CaptureFixture) -> None:
    say("lines", start=2)
    assert "a-run: 4 steps, from step 2" in capsys.readouterr().err


def test_a_bar_counts_steps_and_shows_the_losses(capsys: pytest.CaptureFixture) -> None:
    say("bar")
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "l1=1.000" in shown


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="`progress`: expected auto, bar, lines or quiet, found 'verbose'"):
        say("verbose")
