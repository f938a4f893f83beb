import hashlib
import pickle
from pathlib import Path
from typing import BinaryIO

import pytest
import torch
from torch import nn

from gcond.engine.checkpoint import Checkpoint, State, checkpoints

CHECKSUM = {"train": "aa", "val": "bb"}
STATE = State(step=3, position=12, logbook_size=456, seconds=7.5)


def checkpoint(folder: Path, model: nn.Module, run_hash: str = "0123456789", checksum: object = CHECKSUM) -> Checkpoint:
    return Checkpoint(folder, run_hash, checksum, {"model": model})


@pytest.fixture
def saved(tmp_path: Path) -> nn.Linear:
    """A model and, in tmp_path, its checkpoint."""
    model = nn.Linear(3, 2)
    checkpoint(tmp_path, model).save(STATE)
    return model


def test_parts_and_progress_come_back(tmp_path: Path, saved: nn.Linear) -> None:
    fresh = nn.Linear(3, 2)
    assert checkpoint(tmp_path, fresh).load() == STATE
    assert torch.equal(fresh.weight, saved.weight)
    assert not torch.equal(nn.Linear(3, 2).weight, saved.weight)


def test_without_a_checkpoint_a_run_begins_at_its_beginning(tmp_path: Path) -> None:
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load() == State(0, 0, 0, 0.0)


@pytest.mark.parametrize("other", [{"run_hash": "9876543210"}, {"checksum": {"train": "aa", "val": "changed"}}])
def test_another_run_and_other_data_are_refused(tmp_path: Path, saved: nn.Linear, other: dict) -> None:
    fresh = nn.Linear(3, 2)
    untouched = fresh.weight.clone()
    with pytest.raises(
        ValueError, match=r"(?s)expected .* found .*move the run's folder away to start again"
    ) as raised:
        checkpoint(tmp_path, fresh, **other).load()
    changed = ("0123456789", "9876543210") if "run_hash" in other else ("'val': 'bb'", "'val': 'changed'")
    assert all(name in str(raised.value) for name in ("00000003-", *changed))
    assert torch.equal(fresh.weight, untouched)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"identity": Path("anything that is no tensor and no number")}, tmp_path / "evil")
    digest = hashlib.sha256((tmp_path / "evil").read_bytes()).hexdigest()
    (tmp_path / "evil").rename(tmp_path / f"00000001-{digest}.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        checkpoint(tmp_path, nn.Linear(3, 2)).load()


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, saved: nn.Linear, monkeypatch) -> None:
    def save_half(content: object, file: BinaryIO) -> None:
        file.write(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint(tmp_path, nn.Linear(3, 2)).save(State(step=4))
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load() == STATE
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["00000003-"]


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, saved: nn.Linear, capsys) -> None:
    later = nn.Linear(3, 2)
    checkpoint(tmp_path, later).save(State(step=4))
    newest, oldest = checkpoints(tmp_path)
    damage(newest)
    fresh = nn.Linear(3, 2)
    assert checkpoint(tmp_path, fresh).load() == STATE
    assert torch.equal(fresh.weight, saved.weight)
    assert f"{newest}: damaged" in capsys.readouterr().err
    damage(oldest)
    with pytest.raises(ValueError, match=r"expected a sound checkpoint, found 2 damaged"):
        checkpoint(tmp_path, fresh).load()


def test_the_last_two_are_kept(tmp_path: Path) -> None:
    for step in (8, 9, 10, 100):
        checkpoint(tmp_path, nn.Linear(3, 2)).save(State(step=step))
    assert [path.name[:9] for path in checkpoints(tmp_path)] == ["00000100-", "00000010-"]
    assert len(list(tmp_path.iterdir())) == 2
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load().step == 100


def test_what_a_killed_process_left_is_removed(tmp_path: Path, saved: nn.Linear) -> None:
    (tmp_path / ".unnamed.0123").write_bytes(b"half")
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load() == STATE
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["00000003-"]


@pytest.mark.parametrize("version", [1, 99])
def test_a_checkpoint_of_another_version_is_refused(version: int, tmp_path: Path, monkeypatch) -> None:
    model, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    untouched = fresh.weight.clone()
    with monkeypatch.context() as patch:
        patch.setattr("gcond.engine.checkpoint.VERSION", version)
        checkpoint(tmp_path, model).save(STATE)
    before = [(path.name, path.read_bytes()) for path in tmp_path.iterdir()]
    with pytest.raises(ValueError, match=rf"00000003-.*expected a checkpoint of version 2, found {version}; move"):
        checkpoint(tmp_path, fresh, run_hash="9876543210").load()  # the version is what explains the rest
    assert torch.equal(fresh.weight, untouched)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == before


def test_of_several_processes_one_writes_and_all_load(tmp_path: Path, saved: nn.Linear) -> None:
    other = Checkpoint(tmp_path, "0123456789", CHECKSUM, {"model": nn.Linear(3, 2)}, writes=False)
    (tmp_path / ".unnamed.0123").write_bytes(b"being written by the first process")
    other.save(State(step=4))
    assert sorted(path.name[:9] for path in tmp_path.iterdir()) == [".unnamed.", "00000003-"]
    assert other.load() == STATE
    assert (tmp_path / ".unnamed.0123").exists()


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
