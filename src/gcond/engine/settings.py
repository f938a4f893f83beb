"""What a config means, checked before any data is read."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from gcond.config import build, check_settings
from gcond.engine.trainer import WarmupCosine, optimizer_of
from gcond.model.masking import hidden_count
from gcond.schema import check
from gcond.strategy import GradientConductor
from gcond.strategy.processes import Processes, SingleProcess

GROUPS = ("encoder", "body", "head")  # of MaskedAutoencoder.parameter_groups
Tried = tuple[list[torch.nn.Parameter], torch.optim.Optimizer, GradientConductor]


class Settings:
    """A run's settings, proved by building what they ask for, and by one step of strategy and optimizer on a stand-in.

    Raises ValueError that names the key where a setting is out of range or contradicts another.
    """

    def __init__(self, cfg: DictConfig, processes: Processes | None = None) -> None:
        check(cfg)
        self._cfg, self._processes = cfg, processes or SingleProcess()
        scale = cfg.scale
        loss = build(cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=None)
        unknown = sorted(set(cfg.loss.tasks) - set(loss.tasks))
        _expect(not unknown, "loss.tasks", f"lambdas for {', '.join(loss.tasks)}", ", ".join(unknown))
        kind = cfg.loss.get("labels")
        wanted = "rotation or dataset" if loss.classifies else "nothing, since no task needs them"
        _expect((kind is not None) == loss.classifies, "loss.labels", wanted, kind)
        group = cfg.strategy.conductor.resolver.get("group", "encoder")
        if group != "encoder" and "class" in cfg.loss.tasks:
            shared = "encoder, the only group that class shares with the other tasks"
            raise ValueError(f"`strategy.conductor.resolver.group`: expected {shared}, found {group}")
        self.patches = (scale.image_size // scale.patch_size) ** 2
        try:
            hidden_count(self.patches, scale.mask_ratio)
        except ValueError as error:
            raise ValueError(f"`scale.mask_ratio`: {error}") from None
        check_settings(cfg.dataset, later=["root"] if cfg.dataset.get("root") is None else [])  # not needed to plan
        if cfg.get("logger") is not None:
            check_settings(cfg.logger)
        self._build_conductor = build(cfg.strategy.conductor)
        self.conductor({name: [torch.nn.Parameter(torch.zeros(1))] for name in GROUPS}, seed=0)
        peak = self.schedule(scale.steps_per_epoch or 1000).peak  # 1000: any number, for what does not depend on it
        optimizer_of(cfg.optimizer.build, [torch.nn.Parameter(torch.zeros(1))], peak)
        decay = cfg.optimizer.build.get("weight_decay", 0)
        _expect(peak * decay < 2, "optimizer.build.weight_decay", f"less than 2 / learning rate = {2 / peak:g}", decay)
        content: Any = OmegaConf.to_container(cfg, resolve=True)
        content["optimizer"]["lr"] = 1e-3  # any, so that rates and decays share a step
        content["optimizer"]["build"].pop("weight_decay", None)
        for parts in (("model",), ("loss", "optimizer", "strategy")):
            _prove(json.dumps({name: content[name] for name in parts}))

    def conductor(
        self, groups: dict[str, Any], seed: int, tasks: Mapping[str, float] | None = None
    ) -> GradientConductor:
        """Of parameter groups; `tasks`, name -> lambda, may take the place of the config's."""
        return self._build_conductor(
            groups,
            tasks or OmegaConf.to_container(self._cfg.loss.tasks),
            seed=seed,
            nonfinite=self._cfg.nonfinite,
            processes=self._processes,
        )

    def steps_per_epoch(self, train_images: int) -> int:
        """As the scale says, or one pass over the training split, the incomplete last window left out."""
        scale = self._cfg.scale
        if scale.steps_per_epoch is not None:
            return int(scale.steps_per_epoch)
        window = scale.micro_batch * scale.accumulation_steps
        expected = f"a number, since {train_images} images do not fill a window of {window}"
        _expect(train_images >= window, "scale.steps_per_epoch", expected, None)
        return train_images // window

    def schedule(self, steps_per_epoch: int) -> WarmupCosine:
        scale = self._cfg.scale
        return WarmupCosine(
            peak=self._cfg.optimizer.lr * self._cfg.strategy.lr_scale,
            final=scale.final_lr,
            warmup_steps=round(scale.warmup_epochs * steps_per_epoch),
            total_steps=scale.epochs * steps_per_epoch,
        )


@functools.cache
def _prove(parts: str) -> None:
    """Build the model, without memory, or take a step with the strategy; once for equal settings."""
    cfg = OmegaConf.create(parts)
    if "strategy" in cfg:
        step_on_stand_in(cfg, size=1)
        return
    with torch.device("meta"):
        build(cfg.model, channels=1, classes=None)


def step_on_stand_in(cfg: DictConfig, size: int) -> Tried:
    """Three groups of `size` parameters, and the config's optimizer and strategy for them, after one step of a window
    that has a micro-batch for each task.

    Raises ValueError where the step fails.
    """
    tasks = {str(name): weight for name, weight in cfg.loss.tasks.items()}
    strategy: Any = OmegaConf.to_container(cfg.strategy, resolve=True)
    if "accumulation_steps" in strategy["conductor"]["estimator"]:
        strategy["conductor"]["estimator"]["accumulation_steps"] = len(tasks)
    groups = {name: [torch.nn.Parameter(torch.ones(size))] for name in GROUPS}
    parameters = [parameter for group in groups.values() for parameter in group]
    conductor = build(OmegaConf.create({"strategy": strategy}).strategy.conductor)(
        groups, tasks, processes=SingleProcess()
    )
    optimizer = optimizer_of(cfg.optimizer.build, parameters, cfg.optimizer.lr * cfg.strategy.lr_scale)

    def losses(batch: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """Large, so that no lower bound of a loss that may be meant is above them."""
        places = {name: place for place, name in enumerate(tasks)}
        return {name: 1e6 + sum(((p - 2 - places[name]) ** 2).mean() for p in parameters) for name in names}

    try:
        conductor.step(iter(range(len(tasks))), losses)
        optimizer.step()
    except Exception as error:  # of any kind, from a method of anybody's
        raise ValueError(f"`strategy`: a step with these settings fails: {type(error).__name__}: {error}") from error
    return parameters, optimizer, conductor


def _expect(condition: bool, key: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"`{key}`: expected {expected}, found {found}")
