import json
from pathlib import Path

import pytest

from gcond.files import write_atomically, write_json, write_text


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_text(path, "old")

    def write_half(temporary: Path) -> None:
        assert (temporary.parent, temporary.suffix) == (path.parent, path.suffix)
        temporary.write_text("ne")
        assert path.read_text() == "old"
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, write_half)
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("report.json", "old")]


def test_json_is_made_with_its_folder_and_never_holds_nan(tmp_path: Path) -> None:
    path = tmp_path / "new" / "report.json"
    write_json(path, {"loss": 0.5})
    with pytest.raises(ValueError, match="JSON"):
        write_json(path, {"loss": float("nan")})
    assert json.loads(path.read_text()) == {"loss": 0.5}
