import pytest

from gcond.engine.progress import Progress

SCORES = {"val_l1": 0.5, "val_ssim": 0.25}


def say(kind: str, start: int = 0) -> None:
    with Progress("a-run", kind, start, total=4) as progress:
        for epoch in (1, 2):
            progress.step({"loss/l1": 1.0, "lr": 0.1})
            progress.epoch({"epoch": epoch, "step": 2 * epoch, **SCORES}, last=epoch == 2)


@pytest.mark.parametrize(("kind", "epochs"), [("auto", [1, 2]), ("lines", [1, 2]), ("quiet", [2])])
def test_lines_say_what_a_person_wants_to_know(kind: str, epochs: list[int], capsys: pytest.CaptureFixture) -> None:
    say(kind)
    ends = [f"a-run: epoch {e}, step {2 * e}: validation L1 0.5000, 1-SSIM 0.2500" for e in epochs]
    assert capsys.readouterr().err.splitlines() == ["a-run: 4 steps, from the start", *ends]


def test_a_resumed_run_says_so(capsys: pytest.CaptureFixture) -> None:
    say("lines", start=2)
    assert "a-run: 4 steps, from step 2" in capsys.readouterr().err


def test_a_bar_counts_steps_and_shows_the_losses(capsys: pytest.CaptureFixture) -> None:
    say("bar", start=2)
    shown = capsys.readouterr().err
    assert "4/4" in shown
    assert "l1=1.000" in shown


def test_an_unknown_kind_is_refused() -> None:
    with pytest.raises(ValueError, match="`progress`: expected auto, bar, lines or quiet, found 'verbose'"):
        say("verbose")
