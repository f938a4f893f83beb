"""What copies the logbook elsewhere while a run is under way. metrics.jsonl stays the truth; a mirror may fail."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gcond.config import build
from gcond.engine.run_folder import read_report

NO_EXPERIMENT = "none"


class Mirror(Protocol):
    """The constructor checks settings and touches nothing; the rest may raise anything (see `Guarded`)."""

    def start(self) -> None:
        """Copy what metrics.jsonl holds already: nothing, or what came before the run was interrupted."""

    def write(self, record: dict[str, Any]) -> None:
        """One record as in metrics.jsonl, "kind" included."""

    def picture(self, step: int, path: Path) -> None:
        """The reconstructions after `step` optimizer steps, a PNG."""

    def finish(self, report: dict[str, Any]) -> None:
        """The run has ended; `report` is report.json, or {"status": "interrupted"}."""


class NoMirror:
    def __init__(self, folder: Path, experiment: str) -> None:
        pass

    def start(self) -> None:
        pass

    def write(self, record: dict[str, Any]) -> None:
        pass

    def picture(self, step: int, path: Path) -> None:
        pass

    def finish(self, report: dict[str, Any]) -> None:
        pass


class Guarded:
    """`mirror`, made harmless: its first exception is printed to stderr, and it is left alone from then on.

    As a context manager it calls `finish` when the block ends, however it ends, if the mirror was started; report.json
    in `folder`, if there is to be one, must have been written by then.
    """

    def __init__(self, mirror: Mirror, folder: Path) -> None:
        self._mirror, self._folder = mirror, folder
        self.started = self.failed = False

    def start(self) -> None:
        self.started = True
        self._try(self._mirror.start)

    def write(self, record: dict[str, Any]) -> None:
        self._try(self._mirror.write, record)

    def picture(self, step: int, path: Path) -> None:
        self._try(self._mirror.picture, step, path)

    def __enter__(self) -> Guarded:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.started:
            self._try(self._finish, error is not None and not isinstance(error, Exception))

    def _finish(self, interrupted: bool) -> None:
        self._mirror.finish({"status": "interrupted"} if interrupted else report_in(self._folder))

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        if self.failed:
            return
        try:
            call(*arguments)
        except Exception as error:
            self.failed = True
            print(
                f"{self._folder.name}: mirroring failed in `{call.__name__.strip('_')}` "
                f"({type(error).__name__}: {error}); the run goes on without it.\n"
                f"    {self._folder / 'metrics.jsonl'} has everything. Send it when the run has ended: "
                f"python -m gcond.engine.wandb_upload {self._folder}",
                file=sys.stderr,
                flush=True,
            )


def report_in(folder: Path) -> dict[str, Any]:
    """What a run that has ended reports; all that is known of one that failed before it could."""
    return read_report(folder) if (folder / "report.json").exists() else {"status": "failed"}


def mirror_of(logger: DictConfig, folder: Path, main: bool) -> Guarded:
    """What the config group `logger` asks for; of several processes the main one mirrors."""
    settings = {"folder": folder, "experiment": experiment()}
    return Guarded(build(logger, **settings) if main else NoMirror(**settings), folder)


def experiment() -> str:
    """The experiment that Hydra was asked for (`experiment=table2`), "none" without one."""
    if not HydraConfig.initialized():
        return NO_EXPERIMENT
    chosen = HydraConfig.get().runtime.choices.get("experiment")
    return NO_EXPERIMENT if chosen in (None, "null") else str(chosen)
