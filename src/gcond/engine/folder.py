"""A run's folder: its name, what it holds, and whether it is finished.

runs/<scale>/<dataset>-<model>-<strategy>-seed<seed>-<hash>/     or runs/<scale>/<name>/
    config.yaml  metrics.jsonl  checkpoints/  reconstructions/  final_reconstructions.npz  wandb/  report.json
    DONE | FAILED
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

from omegaconf import DictConfig, OmegaConf

from gcond.engine.full_disk import explaining_a_full_disk
from gcond.files import write_text

SCHEMA = 1  # of report.json
# What cannot change the numbers, or (device) stands in the report.
NOT_IN_HASH = ("name", "runs", "recorded", "paths", "progress", "device", "checkpoint_minutes", "logger")
NOT_IN_HASH += ("reconstructions", "finished_keeps")


LOCK_TRIES, LOCK_SECONDS = 10, 0.05  # `make status` holds a run's lock for a moment to see whether it is free

_held: list[TextIO] = []  # locks of this process


def _let_go() -> None:
    """A DataLoader's worker outlives a training process that was killed by seconds; it must not keep the run locked."""
    for lock in _held:
        lock.close()


os.register_at_fork(after_in_child=_let_go)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The config with every interpolation filled in, less what cannot change the numbers."""
    content = OmegaConf.to_container(cfg, resolve=True)
    assert isinstance(content, dict)
    kept = {str(key): value for key, value in content.items() if key not in NOT_IN_HASH}
    kept["dataset"] = {key: value for key, value in kept["dataset"].items() if key != "root"}
    return kept


def config_hash(cfg: DictConfig) -> str:
    text = json.dumps(resolved(cfg), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:10]


class RunFolder:
    """The folder of the run that `cfg` describes: the same config always means the same folder, unless it has a name.

    Raises ValueError for a `name` that is not one folder's name.
    """

    def __init__(self, cfg: DictConfig) -> None:
        self.hash = config_hash(cfg)
        own = f"{cfg.dataset.name}-{cfg.model.name}-{cfg.strategy.name}-seed{cfg.seed}-{self.hash}"
        self.name = own if cfg.name is None else str(cfg.name)
        if Path(self.name).name != self.name or self.name.startswith(".") or not self.name:
            raise ValueError(f"`name`: expected the name of a folder, without / and a leading dot, found {self.name!r}")
        self.path = Path(cfg.runs) / cfg.scale.name / self.name
        self.checkpoints = self.path / "checkpoints"
        self.reconstructions = self.path / "reconstructions"
        self.final_reconstructions = self.path / "final_reconstructions.npz"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    def finished(self) -> dict[str, Any] | None:
        """The report of the run, if it is finished.

        Raises ValueError where another version of this program wrote it.
        """
        if not self.done:
            return None
        try:
            report = json.loads(self.report.read_text(encoding="utf-8"))
            sound = report["status"] == "done" and "data_checksum" in report
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if report.get("schema") != SCHEMA:
            raise ValueError(
                f"{self.report}: expected schema {SCHEMA}, found {report.get('schema')!r}; choose another `runs` or "
                "`name`, or move the folder away"
            )
        return report if sound else None

    @property
    def begun(self) -> bool:
        return any(self.checkpoints.glob("*.pt"))

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, if it did."""
        failed = self.path / "FAILED"
        return failed.read_text().strip() if failed.exists() else None

    def check(self, cfg: DictConfig) -> None:
        """Raise ValueError where the folder holds a run of another config than `cfg`."""
        path = self.path / "config.yaml"
        if not path.exists():
            return
        there, here = _flat(OmegaConf.load(path)), _flat(OmegaConf.create(_yaml(cfg)))
        keys = sorted(key for key in there.keys() | here.keys() if there.get(key, "-") != here.get(key, "-"))
        if keys:
            shown = ", ".join(f"{key} {there.get(key, '-')} there, {here.get(key, '-')} here" for key in keys[:5])
            more = f" and {len(keys) - 5} more" if len(keys) > 5 else ""
            raise ValueError(
                f"{self.path}: expected the config that the run began with, found another: {shown}{more}. "
                "Choose another `name`, or move the folder away"
            )

    @contextmanager
    def open(self, cfg: DictConfig, main: bool = True) -> Iterator[None]:
        """Hold the run for this process; an exception is written to FAILED and raised again.

        DONE is written when the block ends without one. Of several processes the `main` one does that for all. Raises
        RuntimeError where another process holds it, ValueError where it is a run of another config.
        """
        if not main:
            yield
            return
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            self._lock(lock)
            self.check(cfg)
            for outcome in (self.path / "FAILED", self.report):  # of an attempt before
                outcome.unlink(missing_ok=True)
            _held.append(lock)
            try:
                with explaining_a_full_disk(self.path):
                    write_text(self.path / "config.yaml", _yaml(cfg))
                yield
                self.finish()
            except Exception as error:
                with telling_what_could_not_be_written():
                    write_text(self.path / "FAILED", f"{type(error).__name__}: {error}\n")
                raise
            finally:
                _held.remove(lock)

    def _lock(self, lock: TextIO) -> None:
        for _ in range(LOCK_TRIES):
            try:
                return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(LOCK_SECONDS)
        raise RuntimeError(f"another process is at work on {self.path}; wait for it or end it")

    def finish(self) -> None:
        write_text(self.path / "DONE", "")


@contextmanager
def telling_what_could_not_be_written() -> Iterator[None]:
    """For what is written about an error: a disk that is full must not hide the error itself."""
    try:
        yield
    except OSError as error:
        print(f"could not be written: {error}", file=sys.stderr)


def _yaml(cfg: DictConfig) -> str:
    return OmegaConf.to_yaml(OmegaConf.create(resolved(cfg)))


def _flat(content: Any, prefix: str = "") -> dict[str, str]:
    """{"optimizer.lr": "0.001", ...}"""
    if OmegaConf.is_config(content):
        content = OmegaConf.to_container(content)
    if not isinstance(content, dict):
        return {prefix.removesuffix("."): json.dumps(content)}
    return {key: value for name, part in content.items() for key, value in _flat(part, f"{prefix}{name}.").items()}
