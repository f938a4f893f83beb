"""What a config means, checked before any data is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from gcond.engine.labels import SOURCES, kind_of
from gcond.engine.precision import PRECISION
from gcond.engine.progress import KINDS
from gcond.engine.schedule import WarmupCosine
from gcond.model.masking import hidden_count
from gcond.strategy import GradientConductor
from gcond.strategy.processes import Alone, Processes

GROUPS = ("encoder", "body", "head")  # of MaskedAutoencoder.parameter_groups


class Settings:
    """Raises ValueError that names the key where a setting is out of range or contradicts another."""

    def __init__(self, cfg: DictConfig, processes: Processes | None = None) -> None:
        self._cfg, self._processes = cfg, processes or Alone()
        scale = cfg.scale
        for key in ("micro_batch", "accumulation_steps", "epochs", "diagnose_every", "image_size", "patch_size"):
            _expect(isinstance(scale[key], int) and scale[key] >= 1, f"scale.{key}", "an integer >= 1", scale[key])
        for key in ("steps_per_epoch", "eval_images", "curve_images"):  # a scale need not have the last
            value = scale.get(key)
            _expect(value is None or value >= 1, f"scale.{key}", "null or an integer >= 1", value)
        probed = scale.probe_micro_batches
        _expect(
            isinstance(probed, int) and probed >= 0 and probed % 2 == 0,
            "scale.probe_micro_batches",
            "an even integer, 0 for no probe",
            probed,
        )
        _expect(
            scale.image_size % scale.patch_size == 0,
            "scale.image_size",
            f"a multiple of {scale.patch_size}",
            scale.image_size,
        )
        _expect(cfg.optimizer.lr > 0, "optimizer.lr", "a number > 0", cfg.optimizer.lr)
        _expect(cfg.strategy.lr_scale > 0, "strategy.lr_scale", "a number > 0", cfg.strategy.lr_scale)
        _expect(
            cfg.strategy.model_mode in ("train", "eval"),
            "strategy.model_mode",
            "train or eval",
            cfg.strategy.model_mode,
        )
        _expect(cfg.precision in PRECISION, "precision", f"one of {', '.join(PRECISION)}", repr(cfg.precision))
        _expect(isinstance(cfg.compile, bool), "compile", "true or false", cfg.compile)
        pictures = cfg.reconstructions.images
        _expect(isinstance(pictures, int) and pictures >= 0, "reconstructions.images", "an integer >= 0", pictures)
        _expect(cfg.checkpoint_minutes > 0, "checkpoint_minutes", "a number > 0", cfg.checkpoint_minutes)
        _expect(
            cfg.finished_keeps in ("weights", "checkpoints"),
            "finished_keeps",
            "weights or checkpoints",
            repr(cfg.finished_keeps),
        )
        loss = instantiate(cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=None)
        unknown = sorted(set(cfg.loss.tasks) - set(loss.tasks))
        _expect(not unknown, "loss.tasks", f"lambdas for {', '.join(loss.tasks)}", ", ".join(unknown))
        kind = kind_of(cfg.loss)
        _expect(
            (kind is not None) == loss.classifies,
            "loss.labels",
            f"one of {', '.join(SOURCES)}" if loss.classifies else "nothing, since no task needs them",
            kind,
        )
        group = cfg.strategy.conductor.resolver.get("group", "encoder")
        _expect(
            group == "encoder" or "class" not in cfg.loss.tasks,
            "strategy.conductor.resolver.group",
            "encoder, the only group that class shares with the other tasks",
            group,
        )
        self.patches = (scale.image_size // scale.patch_size) ** 2
        hidden_count(self.patches, scale.mask_ratio)
        _expect(cfg.progress in KINDS, "progress", f"one of {', '.join(KINDS)}", repr(cfg.progress))
        self._build_conductor = _instantiate(cfg.strategy.conductor)
        self.conductor({name: [torch.nn.Parameter(torch.zeros(1))] for name in GROUPS}, seed=0)
        self.schedule(scale.steps_per_epoch or 1000)  # 1000: any number, to check what does not depend on it

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
        _expect(
            train_images >= window,
            "scale.steps_per_epoch",
            f"a number, since {train_images} images do not fill a window of {window}",
            None,
        )
        return train_images // window

    def schedule(self, steps_per_epoch: int) -> WarmupCosine:
        scale = self._cfg.scale
        return WarmupCosine(
            peak=self._cfg.optimizer.lr * self._cfg.strategy.lr_scale,
            final=scale.final_lr,
            warmup_steps=round(scale.warmup_epochs * steps_per_epoch),
            total_steps=scale.epochs * steps_per_epoch,
        )


def _instantiate(group: DictConfig) -> Any:
    """As Hydra does it, but what a constructor refuses is its own ValueError, which names the key."""
    try:
        return instantiate(group)
    except InstantiationException as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise


def _expect(condition: bool, key: str, expected: str, found: Any) -> None:
    if not condition:
        raise ValueError(f"`{key}`: expected {expected}, found {found}")
