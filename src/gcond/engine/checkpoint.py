"""All of a run's state through one object: written atomically, checked when read, loaded with `weights_only=True`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gcond.files import sha256, write_atomically

VERSION = 2
KEPT = 2


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


@dataclass(frozen=True)
class State:
    """How far a run has come: optimizer steps, micro-batches, bytes of metrics.jsonl, seconds of work."""

    step: int = 0
    position: int = 0
    logbook_size: int = 0
    seconds: float = 0.0


class Checkpoint:
    """The state of `parts` (model, optimizer, conductor) and of the run itself, in `folder`.

    A file's name is its step and its SHA-256, so that a damaged one is known; the last KEPT are kept. `run_hash` and
    `data_checksum` name what the state belongs to. Of several processes all save and load, and the one that `writes`
    writes.
    """

    def __init__(
        self, folder: Path, run_hash: str, data_checksum: Any, parts: dict[str, Stateful], writes: bool = True
    ) -> None:
        self.folder, self._parts, self._writes = folder, parts, writes
        self._identity = {"version": VERSION, "run": run_hash, "data": data_checksum}

    def save(self, state: State) -> None:
        content = {"identity": self._identity, "state": asdict(state)}
        content["parts"] = {name: part.state_dict() for name, part in self._parts.items()}
        if not self._writes:
            return
        _write(content, self.folder)
        for old in checkpoints(self.folder)[KEPT:]:
            old.unlink()

    def load(self) -> State:
        """Restore the parts and say how far the run has come; the beginning, where there is no checkpoint.

        A damaged file is named on stderr, and the one before it is taken. Raises ValueError where all are damaged, or
        where the checkpoint is of another version, another run, or other data.
        """
        if self._writes:
            for leftover in self.folder.glob(".unnamed.*"):  # of a process that was killed while it wrote
                leftover.unlink()
        found = checkpoints(self.folder)
        for path in found:
            if path.stem.partition("-")[2] == sha256(path):
                return self._restore(path)
            print(f"{path}: damaged, does not match the checksum in its name; not used", file=sys.stderr)
        if found:
            raise ValueError(
                f"{self.folder}: expected a sound checkpoint, found {len(found)} damaged; "
                "move the run's folder away to start again"
            )
        return State()

    def _restore(self, path: Path) -> State:
        content = torch.load(path, map_location="cpu", weights_only=True)
        for key, what in (("version", "a checkpoint of version"), ("run", "the run"), ("data", "data with checksums")):
            expected, found = self._identity[key], content["identity"][key]
            if expected != found:
                raise ValueError(
                    f"{path}: expected {what} {expected}, found {found}; move the run's folder away to start again"
                )
        for name, part in self._parts.items():
            part.load_state_dict(content["parts"][name])
        return State(**content["state"])


def keep_only(part: str, folder: Path) -> None:
    """Reduce the newest checkpoint in `folder` to one of its parts and delete the others. No run can go on from it."""
    whole = checkpoints(folder)
    content = torch.load(whole[0], map_location="cpu", weights_only=True)
    content["parts"] = {part: content["parts"][part]}
    reduced = _write(content, folder)
    for path in whole:
        if path != reduced:
            path.unlink()


def _write(content: dict[str, Any], folder: Path) -> Path:
    unnamed = folder / "unnamed"
    write_atomically(unnamed, lambda temporary: _save(content, temporary))
    return unnamed.replace(folder / f"{content['state']['step']:08}-{sha256(unnamed)}.pt")


def _save(content: dict[str, Any], path: Path) -> None:
    with path.open("wb") as file:  # given a path, PyTorch does not tell why it could not write
        torch.save(content, file)


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first."""
    return sorted(folder.glob("*.pt"), reverse=True)
