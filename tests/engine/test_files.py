import errno
import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
import torch

from gcond.files import DiskFull, disk_full_hint, write_atomically, write_json, write_text


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "report.json"
    write_text(path, "old")

    def write_half(temporary):
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write_half)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.json", "old")]


def test_json_is_made_with_its_folder_and_never_holds_nan(tmp_path):
    path = tmp_path / "new" / "report.json"
    write_json(path, {"loss": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 0.5}


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EFBIG])
def test_a_full_disk_is_told_with_its_cause_the_folder_and_what_to_do(number, tmp_path):
    advice = r"\d+ MB are free.*same command goes on from the last checkpoint"
    with pytest.raises(DiskFull, match=advice) as told, disk_full_hint(tmp_path):
        raise OSError(number, os.strerror(number))
    assert told.value.errno == number
    assert os.strerror(number) in str(told.value)
    assert str(tmp_path) in str(told.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_pytorch_that_cannot_write_is_understood(tmp_path):
    """Whatever PyTorch raises: /dev/full fails every write with ENOSPC."""
    content = {"weights": torch.zeros(100_000)}
    full = partial(open, "/dev/full", "wb")
    with pytest.raises(DiskFull, match="No space left"), disk_full_hint(tmp_path), full() as file:
        torch.save(content, file)


def test_other_errors_pass_as_they_are(tmp_path):
    """Also after a full disk that was dealt with, and one that is its own context."""
    with suppress(OSError):
        raise OSError(errno.ENOSPC, "No space left on device")
    circle, second = ValueError("first"), RuntimeError("second")
    circle.__context__, second.__cause__ = second, circle
    for other in (PermissionError(errno.EACCES, "no"), RuntimeError("unexpected pos"), circle):
        with pytest.raises(type(other)) as passed, disk_full_hint(tmp_path):
            raise other
        assert passed.value is other
