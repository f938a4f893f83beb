"""All of a run's state through one object: written atomically, checked when read, loaded with `weights_only=True`."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from gcond.engine.run_folder import warn_if_unwritable
from gcond.files import sha256, write_atomically

VERSION = 3
KEPT = 2


@dataclass(frozen=True)
class State:
    """How far a run has come: optimizer steps, micro-batches, bytes of metrics.jsonl, seconds of work and of CPU."""

    step: int = 0
    position: int = 0
    logbook_size: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0


class Checkpoint:
    """The state of `parts` (model, optimizer, conductor: what has a `state_dict`) and of the run itself, in `folder`.

    A file's name is its step and its SHA-256, so that a damaged one is known; the last KEPT are kept. `run_hash` and
    `data_checksum` name what the state belongs to. Of several processes all save and load, and only the one that
    `writes` writes.
    """

    def __init__(
        self, folder: Path, run_hash: str, data_checksum: Any, parts: dict[str, Any], writes: bool = True
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

    def load(self, last: int | None = None) -> State:
        """Restore the parts and say how far the run has come; the beginning, where there is no checkpoint.

        A damaged file is named on stderr, and the one before it is taken. `last` is the step at which the run ends;
        from there nothing goes on, so one part (see `keep_only`) is enough. Raises ValueError where all are damaged, or
        where the checkpoint is of another version, another run, other data, or a step after the `last`.
        """
        if self._writes:
            for leftover in self.folder.glob(".unnamed.*"):  # of a process that was killed while it wrote
                leftover.unlink()
        found = checkpoints(self.folder)
        for path in found:
            if _sound(path):
                return self._restore(path, last)
            print(f"{path}: damaged, does not match the checksum in its name; not used", file=sys.stderr)
        if found:
            raise ValueError(
                f"{self.folder}: expected a sound checkpoint, found {len(found)} damaged; "
                "move the run's folder away to start again"
            )
        return State()

    def _restore(self, path: Path, last: int | None) -> State:
        def expect(what: str, expected: Any, found: Any, fits: bool | None = None) -> None:
            if not (expected == found if fits is None else fits):
                raise ValueError(
                    f"{path}: expected {what} {expected}, found {found}; move the run's folder away to start again"
                )

        content = torch.load(path, map_location="cpu", weights_only=True)
        known = isinstance(content, dict) and content.keys() >= {"identity", "state", "parts"}
        expect("a checkpoint of version", VERSION, "something else", known)
        for key, what in (("version", "a checkpoint of version"), ("run", "the run"), ("data", "data with checksums")):
            expect(what, self._identity[key], content["identity"][key])
        parts, step = content["parts"], content["state"]["step"]
        if last is not None:
            expect("a step up to the run's last,", last, step, step <= last)
        if step != last:
            expect("the parts", sorted(self._parts), sorted(parts), parts.keys() >= self._parts.keys())
        try:
            state = State(**content["state"])
            for name in (name for name in self._parts if name in parts):
                self._parts[name].load_state_dict(parts[name])
        except (KeyError, RuntimeError, TypeError) as error:
            raise ValueError(
                f"{path}: does not fit this version of the program ({error}); move the run's folder away to start again"
            ) from error
        return state


def keep_only(part: str, folder: Path) -> None:
    """Leave one part of the newest checkpoint in `folder`, and nothing else: no run can go on from it.

    What was left by a process that was killed in here is thinned by the next one. A disk that cannot take the smaller
    file is told, and the newest checkpoint stays whole.
    """
    with warn_if_unwritable():
        newest = next(path for path in checkpoints(folder) if _sound(path))
        for path in checkpoints(folder):
            if path != newest:
                path.unlink()  # first, which makes room
        content = torch.load(newest, map_location="cpu", weights_only=True)
        if content["parts"].keys() != {part}:
            content["parts"] = {part: content["parts"][part]}
            _write(content, folder)
            newest.unlink()


def _sound(path: Path) -> bool:
    """Whether the content has the checksum in the file's name."""
    return path.stem.partition("-")[2] == sha256(path)


def _write(content: dict[str, Any], folder: Path) -> Path:
    unnamed = folder / "unnamed"

    def save(path: Path) -> None:
        with path.open("wb") as file:  # given a path, PyTorch does not tell why it could not write
            torch.save(content, file)

    write_atomically(unnamed, save)
    return unnamed.replace(folder / f"{content['state']['step']:08}-{sha256(unnamed)}.pt")


def checkpoints(folder: Path) -> list[Path]:
    """The checkpoints in `folder`, the newest first."""
    return sorted(folder.glob("[0-9]*-*.pt"), reverse=True)
