import math
from pathlib import Path

import pytest

from gcond.engine.metrics_log import MetricsLog, read

STEPS = [{"kind": "step", "step": step} for step in range(3)]


@pytest.mark.parametrize("tail", [b"\0" * 5000, b'{"kind": "step", "step": 2, "lo', b"", b"\0\n"])
def test_a_resumed_run_drops_what_came_after_its_checkpoint(tail, tmp_path):
    """Whole, or as a power cut leaves it; a run that starts anew remembers nothing."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("an earlier attempt")
    with MetricsLog(path) as book:
        assert path.read_text() == ""
        book.write(STEPS[0])
        book.write(STEPS[1])
        remembered = book.size
        assert read(path) == STEPS[:2]  # on disk at once, not only when closed
    path.write_bytes(path.read_bytes() + tail)
    with MetricsLog(path, remembered) as book:
        assert book.size == remembered
        book.write(STEPS[2])
    assert read(path) == STEPS


def test_a_number_that_is_not_finite_is_null(tmp_path):
    """Also of a group; a validation loss that overflows ends no run."""
    with MetricsLog(tmp_path / "metrics.jsonl") as book:
        book.write({"kind": "probe", "step": 0, "cosine": math.nan, "loss": 0.5, "of": {"a": math.inf, "b": -math.inf}})
    record = {"kind": "probe", "step": 0, "cosine": None, "loss": 0.5, "of": {"a": None, "b": None}}
    assert read(tmp_path / "metrics.jsonl") == [record]


def test_a_file_shorter_than_the_checkpoint_remembers_is_refused_and_kept(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"kind": "step", "step": 0}\n')
    with pytest.raises(ValueError, match=r"at least the 29 bytes .* found 28"):
        MetricsLog(path, 29)
    assert path.read_text() == '{"kind": "step", "step": 0}\n'


@pytest.mark.parametrize(
    ("content", "found"),
    [
        (b'{"kind": "step", "step": 0}\n' + b"\0" * 11 + b"\n", r"line 2: expected a JSON object, found b'\\x00"),
        (b'{"kind": "step", "step": 0}\n{"kind": "step", "step": 1.\n', r"line 2: expected a JSON object"),
        (b'{"kind": "step", "step": 0}\n{"kind": "step", "step": 1}}', "line 2: expected a line that ends"),
        (b'{"kind": "step", "step": 0}\n{"step":\xff1}\n', "line 2: expected a JSON object"),
        (b'{"kind": "step", "step": 0}\n[1, 2, 3456]\n', "line 2: expected a JSON object"),
        (b'{"kind": "steps", "step": 0}\n', "line 1: `kind`: expected 'step', .* found 'steps'"),
        (b'{"kind": "step", "step": 0.0}\n', "line 1: `step`: expected a valid integer, found 0.0"),
        (b'{"kind": "validation"}\n', "line 1: `step`: expected a value, found none"),
        (b'{"kind": "step", "step": 0, "loss/l1": "0.5"}\n', "line 1: `loss/l1`: expected an object or a valid number"),
        (b'{"kind": "probe", "step": 0, "a": {"b": NaN}}\n', "line 1: `a`: expected an object or a finite number"),
    ],
)
def test_damage_in_what_the_checkpoint_remembers_is_told_with_its_line(content, found, tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=f"metrics.jsonl, {found}"):
        MetricsLog(path, len(content))
    assert path.read_bytes() == content


LINE = '{"kind": "step", "step": 0}\n'


def replaced(path: Path) -> None:
    path.rename(path.with_name("kept"))  # or its number would be given to the next file
    path.write_text(LINE)


@pytest.mark.parametrize(
    "do",
    [
        lambda path: path.rename(path.with_name("elsewhere.jsonl")),
        replaced,
        lambda path: path.write_text(2 * LINE),
        lambda path: path.write_text(""),
    ],
    ids=["moved", "replaced", "written", "cut"],
)
def test_a_log_that_is_no_longer_this_process_s_alone_is_told_before_a_checkpoint(do, tmp_path):
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as book:
        book.write({"kind": "step", "step": 0})
        book.to_disk()
        do(path)
        with pytest.raises(RuntimeError, match=r"metrics.jsonl: expected the 28 bytes that this run has written"):
            book.to_disk()
