"""Runs of the whole program on `engine.tiny`, about half a second each."""

from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from gcond.config import CONFIG
from gcond.engine.checkpoint import checkpoints
from gcond.engine.metrics_log import read
from gcond.engine.run_folder import RunFolder
from gcond.train import train

# Two epochs of two optimizer steps of two micro-batches of two images.
TINY = (
    "scale=smoke",
    "dataset=photos",
    "dataset._target_=engine.tiny.load",
    "model=mobilenetv3_small_050",
    "model.width=32",
    "model.depth=1",
    "device=cpu",
    "progress=quiet",
    "finished_keeps=checkpoints",
)
CONFLICTS = (  # GCond arbitrates in every step, and each task wins some
    "strategy=gcond_sequential",
    "strategy.conductor.resolver.thresholds=[-0.8,0.5,0.999]",
    "strategy.conductor.resolver.dominance_window=1",
)


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        return compose("train", list(overrides))


def tiny_config(runs: Path, *overrides: str) -> DictConfig:
    return config(f"runs={runs}", *TINY, *overrides)


def run(cfg: DictConfig) -> RunFolder:
    folder = RunFolder(cfg)
    train(cfg, folder)
    return folder


def steps(folder: RunFolder) -> list[dict[str, Any]]:
    """The records of its optimizer steps."""
    return [record for record in read(folder.metrics) if record["kind"] == "step"]


def parts(folder: RunFolder) -> dict[str, Any]:
    """State of model, optimizer and conductor at the end."""
    return torch.load(checkpoints(folder.checkpoints)[0], weights_only=True)["parts"]
