"""All of a run's state through one object: written atomically, read with `weights_only=True`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from gcond.files import write_atomically

VERSION = 1


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
    """The state of `parts` (model, optimizer, conductor) and of the run itself.

    `run_hash` and `data_checksum` name what the state belongs to.
    """

    def __init__(self, path: Path, run_hash: str, data_checksum: str, parts: dict[str, Stateful]) -> None:
        self.path, self._parts = path, parts
        self._identity = {"version": VERSION, "run": run_hash, "data": data_checksum}

    def save(self, state: State) -> None:
        content = {"identity": self._identity, "state": asdict(state)}
        content["parts"] = {name: part.state_dict() for name, part in self._parts.items()}
        write_atomically(self.path, lambda temporary: torch.save(content, temporary))

    def load(self) -> State:
        """Restore the parts and say how far the run has come; the beginning, where there is no checkpoint.

        Raises ValueError where the checkpoint is of another version, another run, or other data.
        """
        if not self.path.exists():
            return State()
        content = torch.load(self.path, map_location="cpu", weights_only=True)
        if content["identity"] != self._identity:
            raise ValueError(
                f"{self.path}: expected {self._identity}, found {content['identity']}; "
                "move the run's folder away to start again"
            )
        for name, part in self._parts.items():
            part.load_state_dict(content["parts"][name])
        return State(**content["state"])
