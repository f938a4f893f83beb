"""A mirror sees what metrics.jsonl gets, and cannot break a run."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from engine.runs import run, tiny_config

from gcond.engine import mirror
from gcond.engine.metrics_log import read
from gcond.engine.mirror import Guarded


class Recorder:
    """Keeps what it is given, and raises in the method `breaks` at its call number `after`."""

    def __init__(self, breaks: str = "", after: int = 0, error: BaseException | None = None) -> None:
        self.calls: list[tuple[str, Any]] = []
        self._breaks, self._after, self._error = breaks, after, error or RuntimeError("the network is gone")

    def start(self) -> None:
        self._note("start", None)

    def write(self, record: dict[str, Any]) -> None:
        self._note("write", record)

    def picture(self, step: int, path: Path) -> None:
        assert path.is_file()
        self._note("picture", step)

    def finish(self, report: dict[str, Any]) -> None:
        self._note("finish", report)

    def _note(self, name: str, content: Any) -> None:
        self.calls.append((name, content))
        if name == self._breaks and self.given(name)[self._after :]:
            raise self._error

    def given(self, name: str) -> list[Any]:
        return [content for method, content in self.calls if method == name]


@pytest.fixture
def mirrored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run the tiny run with this mirror in place of none."""

    def with_mirror(recorder: Recorder, *overrides: str) -> Any:
        monkeypatch.setattr(mirror, "NoMirror", lambda folder, experiment: recorder)
        return run(tiny_config(tmp_path, *overrides))

    return with_mirror


def test_a_mirror_sees_every_record_in_order_the_pictures_and_the_report(mirrored: Any) -> None:
    recorder = Recorder()
    folder = mirrored(recorder)
    assert [name for name, _ in recorder.calls] == [
        "start",
        *[*["write"] * 5, "picture"] * 2,  # two steps, validation, probe, activations
        *["write"] * 2,  # final scores at the best and at the last epoch
        "finish",
    ]
    seen = [{k: None if v != v else v for k, v in record.items()} for record in recorder.given("write")]
    assert seen == read(folder.metrics)
    assert recorder.given("picture") == [2, 4]
    assert recorder.given("finish") == [json.loads(folder.report.read_text())]


@pytest.mark.parametrize(("breaks", "after"), [("start", 0), ("write", 3), ("picture", 0), ("finish", 0)])
def test_a_mirror_that_fails_is_named_once_and_changes_nothing(
    mirrored: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], breaks: str, after: int
) -> None:
    reference = run(tiny_config(tmp_path / "reference"))
    capsys.readouterr()
    recorder = Recorder(breaks, after)
    folder = mirrored(recorder)
    assert folder.metrics.read_bytes() == reference.metrics.read_bytes()
    assert json.loads(folder.report.read_text())["status"] == "done"
    assert folder.done
    assert recorder.calls[-1][0] == breaks  # left alone from then on
    complaint = capsys.readouterr().err
    assert complaint.count("the network is gone") == 1
    assert f"failed in `{breaks}` (RuntimeError" in complaint
    assert f"python -m gcond.engine.wandb_upload {folder.path}" in complaint


def test_a_failing_run_ends_its_mirror_and_keeps_its_own_error(mirrored: Any) -> None:
    recorder = Recorder()
    with pytest.raises(FloatingPointError):
        mirrored(recorder, "strategy=baseline", "loss.reconstruction._target_=engine.tiny.BreakingLoss")
    (report,) = recorder.given("finish")
    assert report["status"] == "failed"
    assert "ssim" in report["error"]


def test_an_interrupted_run_is_not_reported_with_an_older_attempts_report(tmp_path: Path) -> None:
    (tmp_path / "report.json").write_text('{"status": "failed"}')
    recorder = Recorder()
    guarded = Guarded(recorder, tmp_path)
    guarded.start()
    with pytest.raises(KeyboardInterrupt), guarded:
        raise KeyboardInterrupt
    assert recorder.given("finish") == [{"status": "interrupted"}]


def test_a_run_that_is_refused_before_it_begins_has_nothing_to_finish(mirrored: Any) -> None:
    recorder = Recorder()
    with pytest.raises(ValueError, match=r"`scale\.epochs`"):
        mirrored(recorder, "scale.epochs=0")
    assert recorder.calls == []


def test_ctrl_c_inside_a_mirror_is_still_ctrl_c(tmp_path: Path) -> None:
    """Only what the mirror does wrong is caught, not what a person asks for."""
    recorder = Recorder("write", 0, KeyboardInterrupt(signal.SIGINT))
    with pytest.raises(KeyboardInterrupt), Guarded(recorder, tmp_path) as guarded:
        guarded.write({})


def test_drawing_pictures_changes_no_number(tmp_path: Path) -> None:
    drawn = run(tiny_config(tmp_path / "drawn"))
    plain = run(tiny_config(tmp_path / "plain", "reconstructions.images=0"))
    assert drawn.name == plain.name
    assert sorted(path.name for path in drawn.reconstructions.iterdir()) == [
        f"{step:08}.{suffix}" for step in (2, 4) for suffix in ("json", "png")
    ]
    assert not plain.reconstructions.exists()
    assert drawn.metrics.read_bytes() == plain.metrics.read_bytes()
