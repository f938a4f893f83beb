"""A run's folder: its name, what it holds, and whether it is finished.

runs/<scale>/<dataset>-<model>-<strategy>-seed<seed>-<hash>/
    config.yaml  metrics.jsonl  checkpoints/  report.json  DONE | FAILED
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gcond.files import write_text

NOT_IN_HASH = ("runs", "paths", "progress", "device")  # cannot change the numbers, or (device) stand in the report


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
    """The folder of the run that `cfg` describes; the same config always means the same folder."""

    def __init__(self, cfg: DictConfig) -> None:
        self.hash = config_hash(cfg)
        self.name = f"{cfg.dataset.name}-{cfg.model.name}-{cfg.strategy.name}-seed{cfg.seed}-{self.hash}"
        self.path = Path(cfg.runs) / cfg.scale.name / self.name
        self.checkpoints = self.path / "checkpoints"
        self.metrics = self.path / "metrics.jsonl"
        self.report = self.path / "report.json"

    @property
    def done(self) -> bool:
        return (self.path / "DONE").exists()

    @property
    def begun(self) -> bool:
        return any(self.checkpoints.glob("*.pt"))

    @property
    def error(self) -> str | None:
        """Why the last attempt failed, if it did."""
        failed = self.path / "FAILED"
        return failed.read_text().strip() if failed.exists() else None

    @contextmanager
    def open(self, cfg: DictConfig) -> Iterator[None]:
        """Hold the run for this process; an exception is written to FAILED and raised again.

        Raises RuntimeError where another process holds it.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with (self.path / ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise RuntimeError(f"another process is at work on {self.path}; wait for it or end it") from None
            (self.path / "FAILED").unlink(missing_ok=True)
            write_text(self.path / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(resolved(cfg))))
            try:
                yield
            except Exception as error:
                write_text(self.path / "FAILED", f"{type(error).__name__}: {error}\n")
                raise

    def finish(self) -> None:
        write_text(self.path / "DONE", "")
