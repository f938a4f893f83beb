"""The room that runs take on the disk: two checkpoints, and little else."""

from __future__ import annotations

import io
import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from gcond.sweep.plan import Planned

PROBE = 10_000  # parameters a group, of the stand-in for a model


def disk_needed(runs: Sequence[Planned]) -> float:
    """Bytes that the runs which are left will add.

    As much as finished ones of the same kind hold; where there is none, computed from the size of the model, which
    takes the seconds that PyTorch needs to load. Metrics and pictures (a few MB) are in the former only.
    """
    held: dict[str, list[int]] = {}
    for run in runs:
        if run.folder.done:
            held.setdefault(_kind(run.cfg), []).append(size_of(run.folder.path))
    computed: dict[str, int] = {}
    needed = 0.0
    for run in runs:
        if not run.done:
            kind = _kind(run.cfg)
            if kind in held:
                expected = statistics.median(held[kind])
            else:
                if kind not in computed:
                    computed[kind] = _computed(run.cfg)
                expected = computed[kind]
            needed += max(0.0, expected - size_of(run.folder.path))
    return needed


def _kind(cfg: DictConfig) -> str:
    """What decides the size of a checkpoint."""
    model, optimizer, conductor = cfg.model, cfg.optimizer.build, cfg.strategy.conductor
    return json.dumps([OmegaConf.to_container(part, resolve=True) for part in (model, optimizer, conductor)])


def size_of(folder: Path) -> int:
    """Bytes of all files in `folder`; 0 where it does not exist."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def _computed(cfg: DictConfig) -> int:
    """Both checkpoints, by the model's parameters and what this optimizer and this strategy keep for each of them.

    0 for settings that the run itself will refuse, and name.
    """
    import torch  # here, since it takes seconds and is needed for the first sweep with a model only

    from gcond.engine.checkpoint import KEPT
    from gcond.train import build

    try:
        with torch.device("meta"):  # shapes without numbers
            model = build(cfg.model, channels=3)  # of photographs; CT's single channel makes it a little smaller
        parameters = sum(parameter.numel() for parameter in model.parameters())
        return round(KEPT * parameters * bytes_per_parameter(cfg))
    except (ValueError, InstantiationException):
        return 0


def bytes_per_parameter(cfg: DictConfig) -> float:
    """Of a checkpoint: float32 weights, the optimizer's moments, the strategy's averages; tried on a stand-in."""
    import torch
    from hydra.utils import instantiate

    from gcond.engine.settings import GROUPS, Settings

    groups = {name: [torch.nn.Parameter(torch.ones(PROBE))] for name in GROUPS}
    parameters = [parameter for group in groups.values() for parameter in group]
    conductor = Settings(cfg).conductor(groups, seed=0)
    optimizer = instantiate(cfg.optimizer.build)(parameters, lr=1e-3)

    def losses(batch: Any, tasks: Sequence[str]) -> dict[str, torch.Tensor]:
        return {task: sum(((p - 2 - at) ** 2).mean() for p in parameters) for at, task in enumerate(tasks)}

    conductor.step(iter(range(1000)), losses)
    optimizer.step()
    file = io.BytesIO()
    torch.save([parameters, optimizer.state_dict(), conductor.state_dict()], file)
    return file.tell() / (PROBE * len(GROUPS))
