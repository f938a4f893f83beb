import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

from gcond.engine.checkpoint import Checkpoint, State

CHECKSUM = {"train": "aa", "val": "bb"}
STATE = State(step=3, position=12, logbook_size=456, seconds=7.5)


def checkpoint(folder: Path, model: nn.Module, run_hash: str = "0123456789", checksum: object = CHECKSUM) -> Checkpoint:
    return Checkpoint(folder / "checkpoint.pt", run_hash, checksum, {"model": model})


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
    assert all(name in str(raised.value) for name in ("checkpoint.pt", "0123456789", "'val': 'bb'"))
    assert torch.equal(fresh.weight, untouched)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    torch.save({"identity": Path("anything that is no tensor and no number")}, tmp_path / "checkpoint.pt")
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        checkpoint(tmp_path, nn.Linear(3, 2)).load()


def test_a_write_that_fails_leaves_the_last_checkpoint(tmp_path: Path, saved: nn.Linear, monkeypatch) -> None:
    def save_half(content: object, path: Path) -> None:
        path.write_bytes(b"PK")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", save_half)
    with pytest.raises(OSError, match="disk full"):
        checkpoint(tmp_path, nn.Linear(3, 2)).save(State(step=4))
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load() == STATE
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.pt"]
