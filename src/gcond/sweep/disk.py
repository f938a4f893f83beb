"""The room that runs take on the disk: checkpoints, and little else."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from gcond.sweep.plan import Planned

PROBE = 10_000  # parameters a group, of the stand-in for a model
ENTRY = 350  # bytes that torch.save adds to each tensor's own


@dataclass(frozen=True)
class Room:
    """Bytes: what runs leave behind, and how much more they hold while they run."""

    lasting: float
    passing: float


def disk_needed(runs: Sequence[Planned], jobs: int) -> Room:
    """What the runs which are left will add, `jobs` of them side by side.

    They leave as much as finished ones of the same kind hold; where there is none, what is computed from the size of
    the model, without metrics and pictures (a few MB). Until it is finished, a run holds its checkpoints whole.
    """
    held: dict[str, list[int]] = {}
    for run in runs:
        if run.done and not run.recorded:
            held.setdefault(_kind(run.cfg), []).append(size_of(run.folder.path))
    left = [run for run in runs if run.left]
    sizes = {kind: _computed(cfg) for kind, cfg in {_kind(run.cfg): run.cfg for run in left}.items()}
    lasting, passing = 0.0, []
    for run in left:
        kind = _kind(run.cfg)
        kept = statistics.median(held[kind]) if kind in held else sizes[kind].lasting
        lasting += max(0.0, kept - size_of(run.folder.path))
        passing.append(sizes[kind].passing)
    return Room(lasting, sum(sorted(passing, reverse=True)[:jobs]))


def _kind(cfg: DictConfig) -> str:
    """What decides the size of a checkpoint."""
    model, optimizer, conductor = cfg.model, cfg.optimizer.build, cfg.strategy.conductor
    parts = [OmegaConf.to_container(part, resolve=True) for part in (model, optimizer, conductor)]
    return json.dumps([*parts, cfg.finished_keeps])


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`; 0 where it does not exist."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # a run at work has just replaced it
            total += path.stat().st_size if path.is_file() else 0
    return total


def _computed(cfg: DictConfig) -> Room:
    """By the model's parameters and what this optimizer and this strategy keep for each of them."""
    import torch  # here, since it takes seconds and is needed for the first sweep with a model only

    from gcond.config import build
    from gcond.engine.checkpoint import KEPT

    with torch.device("meta"):  # shapes without numbers
        model = build(cfg.model, channels=3)  # of photographs; CT's single channel makes it a little smaller
    parameters = sum(parameter.numel() for parameter in model.parameters())
    weights = sum(tensor.nbytes + ENTRY for tensor in model.state_dict().values())
    whole = KEPT * (parameters * bytes_per_parameter(cfg) + weights)  # those of the best epoch, too
    lasting = weights if cfg.finished_keeps == "weights" else whole
    return Room(lasting, whole - lasting)


def bytes_per_parameter(cfg: DictConfig) -> float:
    """Of a checkpoint: float32 weights, the optimizer's moments, the strategy's averages; tried on a stand-in."""
    import torch

    from gcond.engine.settings import GROUPS, step_on_stand_in

    parameters, optimizer, conductor = step_on_stand_in(cfg, PROBE)
    file = io.BytesIO()
    torch.save([parameters, optimizer.state_dict(), conductor.state_dict()], file)
    return file.tell() / (PROBE * len(GROUPS))
