import math
from pathlib import Path

import pytest

from gcond.engine.metrics_log import MetricsLog, read


def test_a_resumed_run_drops_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as book:
        book.write({"kind": "step", "step": 0})
        remembered = book.size
        book.write({"kind": "step", "step": 1, "of": "the attempt that died"})
    with MetricsLog(path, remembered) as book:
        assert book.size == remembered
        book.write({"kind": "step", "step": 1})
        assert read(path) == [
            {"kind": "step", "step": 0},
            {"kind": "step", "step": 1},
        ]  # on disk at once, not only when closed
    assert read(path) == [{"kind": "step", "step": 0}, {"kind": "step", "step": 1}]


def test_a_run_that_starts_anew_starts_an_empty_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 0}\n')
    with MetricsLog(path):
        assert path.read_text() == ""


def test_an_undefined_number_is_null_and_an_infinite_one_is_refused(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "metrics.jsonl") as book:
        book.write({"kind": "step", "step": 0, "cosine": math.nan, "loss": 0.5})
        with pytest.raises(ValueError, match="JSON"):
            book.write({"loss": math.inf})
    assert read(tmp_path / "metrics.jsonl") == [{"kind": "step", "step": 0, "cosine": None, "loss": 0.5}]


def test_a_file_shorter_than_the_checkpoint_remembers_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 0}\n')
    with pytest.raises(ValueError, match=r"at least the 29 bytes .* found 28"):
        MetricsLog(path, 29)
    assert path.read_text() == '{"kind": "step", "step": 0}\n'


@pytest.mark.parametrize("tail", [b"\0" * 5000, b'{"kind": "step", "step": 2, "lo', b"", b"\0\n"])
def test_what_a_power_cut_left_behind_the_checkpoint_is_dropped(tail: bytes, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"kind": "step", "step": 0}\n{"kind": "step", "step": 1}\n' + tail)
    with MetricsLog(path, 56) as book:
        book.write({"kind": "step", "step": 2})
    assert read(path) == [{"kind": "step", "step": 0}, {"kind": "step", "step": 1}, {"kind": "step", "step": 2}]


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"kind": "step", "step": 0}\n' + b"\0" * 11 + b"\n", r"line 2: expected a JSON object, found b'\\x00"),
        (b'{"kind": "step", "step": 0}\n{"kind": "step", "step": 1.\n', r"line 2: expected a JSON object"),
        (b'{"kind": "step", "step": 0}\n{"kind": "step", "step": 1}}', "line 2: expected a line that ends"),
        (b'{"kind": "step", "step": 0}\n{"step":\xff1}\n', "line 2: expected a JSON object"),
        (b'{"kind": "step", "step": 0}\n[1, 2, 3456]\n', "line 2: expected a JSON object"),
        (b'{"kind": "steps", "step": 0}\n', "line 1: expected one of step, .* as `kind`, found 'steps'"),
        (b'{"kind": "step", "step": 0.0}\n', "line 1: expected an integer as `step`, found 0.0"),
        (b'{"kind": "validation"}\n', "line 1: expected an integer as `step`, found none"),
        (b'{"kind": "step", "step": 0, "loss/l1": "0.5"}\n', "line 1: expected a finite number or null as `loss/l1`"),
        (b'{"kind": "probe", "step": 0, "a": {"b": NaN}}\n', "line 1: expected a finite number or null as `a`"),
    ],
)
def test_damage_in_what_the_checkpoint_remembers_is_told_with_its_line(
    content: bytes, found: str, tmp_path: Path
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"metrics.jsonl, {found}"):
        MetricsLog(path, len(content))
    assert path.read_bytes() == content


@pytest.mark.parametrize("done", ["moved", "replaced", "written", "cut"])
def test_a_log_that_is_no_longer_this_process_s_alone_is_told_before_a_checkpoint(done: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as book:
        book.write({"kind": "step", "step": 0})
        book.to_disk()
        if done == "moved":
            path.rename(tmp_path / "elsewhere.jsonl")
        elif done == "written":
            with path.open("a") as other:
                other.write('{"kind": "step", "step": 0}\n')
        elif done == "cut":
            path.write_text("")
        else:
            path.rename(tmp_path / "kept")  # or its number would be given to the next file
            if done == "replaced":
                path.write_text('{"kind": "step", "step": 0}\n')
        with pytest.raises(RuntimeError, match=r"metrics.jsonl: expected the 28 bytes that this run has written"):
            book.to_disk()
