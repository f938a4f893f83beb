"""report.json: what a finished or failed run was, on what, and what came of it."""

from __future__ import annotations

import os
import platform
import time
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from gcond.config import compose
from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.engine.checkpoint import State
from gcond.engine.device import fingerprint
from gcond.engine.distributed import World
from gcond.engine.loggers import experiment
from gcond.engine.metrics_log import read
from gcond.engine.process import rank
from gcond.engine.run_folder import NOT_IN_HASH, SCHEMA, RunFolder, config_hash, warn_if_unwritable
from gcond.files import write_json
from gcond.loss import TASKS
from gcond.strategy.processes import SingleProcess

NAMED = ("dataset", "model", "strategy", "scale", "seed", "experiment", "dataset.root")  # choices that identify a run
EDGE = 0.1  # share of the steps that "first" and "tail" average over


class RunReport:
    """Writes report.json (rank 0 only) when the run ends: status "done" or, on an exception, "failed"."""

    def __init__(self, cfg: DictConfig, folder: RunFolder, team: World | None = None) -> None:
        self._cfg, self._folder = cfg, folder
        self.team = team or World(SingleProcess(), torch.device("cpu"))
        self._content: dict[str, Any] = {
            "schema": SCHEMA,
            "name": folder.name,
            "hash": folder.hash,
            "scale": cfg.scale.name,
            "dataset": cfg.dataset.name,
            "dataset_title": cfg.dataset.name,
            "model": cfg.model.name,
            "strategy": cfg.strategy.name,
            "seed": cfg.seed,
            "variant": variant(),
            "experiment": experiment(),
            "tasks": dict(cfg.loss.tasks),
            "missing_packages": [],
            "trivial": {},
        }
        self._seconds = self._cpu_seconds = 0.0  # of earlier attempts
        self.windows = 0  # of this attempt, when it has ended

    def __enter__(self) -> RunReport:
        commit, dirty = devices.commit()
        self._content |= {
            "commit": commit,
            "dirty": dirty,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._clock, self._cpu_clock = time.perf_counter(), devices.cpu_seconds()
        self._load_start = round(os.getloadavg()[0], 2)
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if rank() > 0:
            return
        if error is None:
            self._write(status="done", error="", **self._results())
        elif isinstance(error, Exception):
            with warn_if_unwritable():
                self._write(status="failed", error=f"{type(error).__name__}: {error}")

    def describe(self, data: Splits, trivial: dict[str, dict[str, float]]) -> None:
        self._content |= {
            "arithmetic": fingerprint(self.team.device),  # now: after an error the device may not compute any more
            "dataset_title": data.title,
            "missing_packages": list(data.missing_packages),
            "data_checksum": data.checksum,
            "intensity": asdict(data.intensity),
            "trivial": trivial,
        }

    def resumed(self, state: State) -> None:
        """Count what earlier attempts took, up to the checkpoint."""
        self._seconds, self._cpu_seconds = state.seconds, state.cpu_seconds

    def spent(self) -> tuple[float, float]:
        """Seconds of work and of CPU, earlier attempts included."""
        return (
            self._seconds + time.perf_counter() - self._clock,
            self._cpu_seconds + devices.cpu_seconds() - self._cpu_clock,
        )

    def _results(self) -> dict[str, Any]:
        records = read(self._folder.metrics)
        steps = [record for record in records if record["kind"] == "step"]
        epochs = [record for record in records if record["kind"] == "validation"]
        final = {record["at"]: _without(record, "kind", "at") for record in records if record["kind"] == "final"}
        taken = [step for step in steps if "skipped" not in step]
        edge = max(1, round(EDGE * len(taken)))
        results: dict[str, Any] = {"steps": len(steps), "skipped_steps": len(steps) - len(taken), "epochs": len(epochs)}
        for task in dict.fromkeys([*TASKS, *self._cfg.loss.tasks]):
            values = [step[f"loss/{task}"] for step in taken if f"loss/{task}" in step]
            if values:
                results[f"train_{task}_first"] = sum(values[:edge]) / edge
                results[f"train_{task}_tail"] = sum(values[-edge:]) / edge
        if self.team.size > 1:
            results["collectives_per_window"] = {
                name: count / self.windows for name, count in self.team.processes.counts.items()
            }
        return results | {"validation": [_without(epoch, "kind") for epoch in epochs], "final": final}

    def _write(self, **results: Any) -> None:
        seconds, cpu_seconds = self.spent()
        measured = {
            "processes": self.team.size,
            "arbitration": self._cfg.arbitration if self.team.size > 1 else "once",
            "device": devices.describe(self.team.device),
            "arithmetic": self._content.get("arithmetic") or fingerprint(self.team.device),
            "tf32": devices.tf32(),
            "seconds": round(seconds, 3),
            "cpu_seconds": round(cpu_seconds, 3),
            "load_start": self._load_start,
            "load_end": round(os.getloadavg()[0], 2),
            "peak_memory_mb": round(devices.peak_memory_mb(self.team.device), 1),
        }
        write_json(self._folder.report, self._content | measured | results)


def _without(record: dict[str, Any], *keys: str) -> dict[str, Any]:
    return {key: value for key, value in record.items() if key not in keys}


def variant() -> str:
    """Overrides that change the config, beside what identifies the run: "optimizer.lr=1e-4,threads=2"."""
    if not HydraConfig.initialized():
        return ""
    overrides = list(HydraConfig.get().overrides.task)
    keys = {text: text.lstrip("+~").split("=", 1)[0] for text in overrides}
    others = sorted(text for text, key in keys.items() if key not in NAMED and key.split(".")[0] not in NOT_IN_HASH)
    whole = _hash(overrides) if others else None
    for text in list(others):
        rest = [*overrides]
        rest.remove(text)
        if whole is not None and _hash(rest) == whole:
            overrides = rest
            others.remove(text)
    return ",".join(others)


def _hash(overrides: list[str]) -> str | None:
    """Of the config that they make; None where there is none, since an override may need another one."""
    try:
        return config_hash(compose(overrides))
    except (HydraException, OmegaConfBaseException):
        return None
