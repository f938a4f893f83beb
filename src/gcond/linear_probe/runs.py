"""Finished runs, read only: their config, and their weights at the first and at the last step."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from gcond.data.splits import Splits
from gcond.engine.checkpoint import Checkpoint, checkpoints
from gcond.engine.seeding import seeded
from gcond.model import MaskedAutoencoder
from gcond.train import build

ROOTS = {"ct": "--ct", "imagenet256": "--imagenet"}


@dataclass(frozen=True)
class Finished:
    path: Path
    cfg: DictConfig
    report: dict[str, Any]

    def untrained(self, data: Splits) -> MaskedAutoencoder:
        """With the weights, and the BatchNorm statistics, that the run began with."""
        with seeded(self.cfg.seed, "weights"):
            model: MaskedAutoencoder = build(self.cfg.model, channels=data.intensity.channels)
        return model

    def trained(self, data: Splits) -> MaskedAutoencoder:
        """From the last checkpoint. Raises ValueError where there is none, or one of other data or another step."""
        folder = self.path / "checkpoints"
        if not checkpoints(folder):
            raise ValueError(f"{folder}: expected the run's last checkpoint, found none; the run must be made again")
        model = self.untrained(data)
        parts = {"model": model}
        step = Checkpoint(folder, self.report["hash"], data.facts["checksum"], parts, writes=False).load().step
        if step != self.report["steps"]:
            raise ValueError(
                f"{folder}: expected a checkpoint of step {self.report['steps']}, found one of step {step}"
            )
        return model


def open_run(path: Path, roots: dict[str, Path | None]) -> Finished:
    """`roots`: where the data of a kind are, which a run does not record. Raises ValueError where a folder is needed
    and not named."""
    cfg = OmegaConf.load(path / "config.yaml")
    assert isinstance(cfg, DictConfig)
    if cfg.dataset.name in ROOTS:
        root = roots[cfg.dataset.name]
        if root is None:
            raise ValueError(
                f"{path.name}: expected the folder of its data ({ROOTS[cfg.dataset.name]} DIR), found none"
            )
        cfg.dataset.root = str(root)
    return Finished(path, cfg, json.loads((path / "report.json").read_text()))


def read_data(run: Finished) -> Splits:
    """Raises ValueError for data of another version than the run's."""
    data: Splits = build(run.cfg.dataset)
    expected, found = run.report["data_checksum"], data.facts["checksum"]
    if expected != found:
        raise ValueError(
            f"{run.path.name}: trained on data with the checksum {_short(expected)}, found {_short(found)}; "
            "name the run's own data (--ct, --imagenet), or make the run again"
        )
    return data


def _short(checksum: Any) -> str:
    if isinstance(checksum, dict):
        return ", ".join(f"{split} {value[:10]}" for split, value in checksum.items())
    return str(checksum)[:10]
