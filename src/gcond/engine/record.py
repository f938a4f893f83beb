"""report.json: what a finished or failed run was, on what, and what came of it."""

from __future__ import annotations

import platform
import time
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from gcond.data.splits import Splits
from gcond.engine import device as devices
from gcond.engine.folder import RunFolder
from gcond.engine.logbook import read
from gcond.files import write_json

SCHEMA = 1
# A run is known by these choices; every other override is its variant, hydra's own settings aside.
NAMED = (
    "dataset",
    "model",
    "strategy",
    "scale",
    "seed",
    "experiment",
    "device",
    "runs",
    "progress",
    "dataset.root",
    "paths.ct",
    "paths.imagenet",
)
EDGE = 0.1  # share of the steps that "first" and "tail" average over


class Record:
    """Writes report.json when the run ends, with status "done" or, on an exception, "failed"."""

    def __init__(self, cfg: DictConfig, folder: RunFolder) -> None:
        self._folder = folder
        self.device = torch.device("cpu")  # until the run has picked its own
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
            "missing_packages": [],
            "trivial": {},
        }
        self.seconds = 0.0  # of earlier attempts

    def __enter__(self) -> Record:
        commit, dirty = devices.commit()
        self._content |= {
            "commit": commit,
            "dirty": dirty,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "started": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        self._clock = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self._write(status="done", error="", **self._results())
        elif isinstance(error, Exception):
            self._write(status="failed", error=f"{type(error).__name__}: {error}")

    def describe(self, data: Splits, trivial: dict[str, dict[str, float]]) -> None:
        self._content |= {
            "dataset_title": data.title,
            "missing_packages": data.facts["missing_packages"],
            "data_checksum": data.facts["checksum"],
            "trivial": trivial,
        }

    def elapsed(self) -> float:
        """Seconds of work, earlier attempts included."""
        return self.seconds + time.perf_counter() - self._clock

    def _results(self) -> dict[str, Any]:
        records = read(self._folder.metrics)
        steps = [record for record in records if record["kind"] == "step"]
        epochs = [record for record in records if record["kind"] == "validation"]
        edge = max(1, round(EDGE * len(steps)))
        results: dict[str, Any] = {"steps": len(steps), "epochs": len(epochs)}
        for task in (key.removeprefix("loss/") for key in steps[0] if key.startswith("loss/")):
            values = [step[f"loss/{task}"] for step in steps]
            results[f"train_{task}_first"] = sum(values[:edge]) / edge
            results[f"train_{task}_tail"] = sum(values[-edge:]) / edge
        results["validation"] = [{key: value for key, value in epoch.items() if key != "kind"} for epoch in epochs]
        return results

    def _write(self, **results: Any) -> None:
        measured = {
            "device": devices.describe(self.device),
            "seconds": round(self.elapsed(), 3),
            "peak_memory_mb": round(devices.peak_memory_mb(self.device), 1),
        }
        write_json(self._folder.report, self._content | measured | results)


def variant() -> str:
    """What was overridden beside the named choices: "optimizer.lr=1e-4,threads=2", "" for nothing."""
    if not HydraConfig.initialized():
        return ""
    overrides = HydraConfig.get().overrides.task
    return ",".join(sorted(text for text in overrides if text.lstrip("+~").split("=", 1)[0] not in NAMED))
