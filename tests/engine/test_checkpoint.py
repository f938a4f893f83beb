import pickle
from pathlib import Path

import pytest
import torch
from torch import nn

import gcond.engine.checkpoint
from gcond.engine.checkpoint import Checkpoint, State, checkpoints, keep_only
from gcond.files import sha256

CHECKSUM = {"train": "aa", "val": "bb"}
STATE = State(step=3, position=12, logbook_size=456, seconds=7.5)


def checkpoint(folder: Path, model: nn.Module, run_hash: str = "0123456789", checksum: object = CHECKSUM) -> Checkpoint:
    return Checkpoint(folder, run_hash, checksum, {"model": model})


@pytest.fixture
def saved(tmp_path):
    """A model and, in tmp_path, its checkpoint."""
    model = nn.Linear(3, 2)
    checkpoint(tmp_path, model).save(STATE)
    return model


CHANGED = {"train": "aa", "val": "changed"}


@pytest.mark.parametrize(
    ("made", "last", "said"),
    [
        ({"run_hash": "9876543210"}, None, "the run 9876543210, found 0123456789"),
        ({"checksum": CHANGED}, None, "'val': 'changed'.* found .*'val': 'bb'"),
        ({}, 2, "a step up to the run's last, 2, found 3"),
        ({"model": nn.Linear(4, 2)}, None, r"size mismatch"),
    ],
)
def test_what_cannot_be_gone_on_from_is_refused(tmp_path, saved, made, last, said):
    fresh = nn.Linear(3, 2)
    untouched = fresh.weight.clone()
    with pytest.raises(ValueError, match=rf"(?s)00000003-.*{said}.*move the run's folder away to start again"):
        checkpoint(tmp_path, **{"model": fresh} | made).load(last=last)
    assert torch.equal(fresh.weight, untouched)
    assert checkpoint(tmp_path, fresh).load(last=3) == STATE


def test_another_version_and_what_is_no_checkpoint_are_told(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("gcond.engine.checkpoint.VERSION", 99)
        checkpoint(tmp_path, nn.Linear(3, 2)).save(STATE)
    with pytest.raises(ValueError, match=r"00000003-.*expected a checkpoint of version 3, found 99; move"):
        checkpoint(tmp_path, nn.Linear(3, 2), run_hash="9876543210").load()  # the version explains the rest
    put(tmp_path, {"state_dict": {}})
    with pytest.raises(ValueError, match="expected a checkpoint of version 3, found something else"):
        checkpoint(tmp_path, nn.Linear(3, 2)).load()


def put(folder: Path, content: object) -> None:
    """A file that is sound by its name."""
    torch.save(content, folder / "file")
    (folder / "file").rename(folder / f"00000009-{sha256(folder / 'file')}.pt")


def test_a_checkpoint_runs_no_code(tmp_path):
    put(tmp_path, {"identity": Path("anything that is no tensor and no number")})
    with pytest.raises(pickle.UnpicklingError, match=r"[Ww]eights"):
        checkpoint(tmp_path, nn.Linear(3, 2)).load()


def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, saved, capsys):
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


def test_the_last_two_are_kept_and_a_file_of_ones_own_is_left_alone(tmp_path):
    (tmp_path / "best.pt").write_bytes(b"mine")
    for step in (8, 9, 10, 100):
        checkpoint(tmp_path, nn.Linear(3, 2)).save(State(step=step))
    assert [path.name[:9] for path in checkpoints(tmp_path)] == ["00000100-", "00000010-"]
    assert len(list(tmp_path.iterdir())) == 3
    assert checkpoint(tmp_path, nn.Linear(3, 2)).load().step == 100


def test_of_several_processes_one_writes_and_all_load(tmp_path, saved):
    other = Checkpoint(tmp_path, "0123456789", CHECKSUM, {"model": nn.Linear(3, 2)}, writes=False)
    (tmp_path / ".unnamed.0123").write_bytes(b"being written by the first process")
    other.save(State(step=4))
    assert other.load() == STATE
    assert sorted(path.name[:9] for path in tmp_path.iterdir()) == [".unnamed.", "00000003-"]
    checkpoint(tmp_path, nn.Linear(3, 2)).load()  # by the first, when the other one has been killed
    assert [path.name[:9] for path in tmp_path.iterdir()] == ["00000003-"]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


# A finished run


def both(folder: Path, model: nn.Module) -> Checkpoint:
    """Of a model and of a second part."""
    parts = {"model": model, "optimizer": torch.optim.SGD(model.parameters())}
    return Checkpoint(folder, "0123456789", CHECKSUM, parts)


def test_of_a_finished_run_one_part_is_left_which_nothing_goes_on_from(tmp_path):
    model, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    for step in (2, 3):
        both(tmp_path, model).save(State(step=step))
    keep_only("model", tmp_path)
    (left,) = checkpoints(tmp_path)
    assert torch.load(left, weights_only=True)["parts"].keys() == {"model"}
    with pytest.raises(ValueError, match=r"expected the parts \['model', 'optimizer'\], found \['model'\]"):
        both(tmp_path, fresh).load(last=4)
    assert both(tmp_path, fresh).load(last=3).step == 3  # there nothing is left to do
    assert torch.equal(fresh.weight, model.weight)
    keep_only("model", tmp_path)
    assert checkpoints(tmp_path) == [left]


@pytest.mark.parametrize("killed_in", ["unlink", "_write", "load"])
def test_what_a_killed_process_left_of_the_thinning_is_finished(killed_in, tmp_path, monkeypatch):
    """At each of its steps, and with a damaged file that must not count as the newest."""
    for step in (2, 3):
        both(tmp_path, nn.Linear(3, 2)).save(State(step=step))
    (tmp_path / f"00000003-{64 * 'f'}.pt").write_bytes(b"damaged")

    def killed(*_, **__):
        raise KeyboardInterrupt

    target = {"unlink": (Path, "unlink"), "_write": (gcond.engine.checkpoint, "_write"), "load": (torch, "load")}
    with monkeypatch.context() as patch:
        patch.setattr(*target[killed_in], killed)
        with pytest.raises(KeyboardInterrupt):
            keep_only("model", tmp_path)
    assert both(tmp_path, nn.Linear(3, 2)).load(last=3).step == 3
    keep_only("model", tmp_path)
    (left,) = checkpoints(tmp_path)
    assert torch.load(left, weights_only=True)["parts"].keys() == {"model"}
