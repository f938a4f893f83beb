"""The settings of Table 5 of arXiv 2509.07252 as this project composes them: composed.csv.

Composes experiment=table5 at scale=paper, as gcond-train would: a row for each setting and strategy. "-": the strategy
has no such setting. The paper's values are in study/paper.yaml.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, ListConfig, OmegaConf

from gcond.data.intensity import IMAGENET_MEAN, IMAGENET_STD
from gcond.files import write_text
from gcond.study.methods import facts
from gcond.sweep.plan import plan

NONE = "-"
CONDUCTOR = "strategy.conductor"
SAME_NAME = {  # part of a composed run -> settings that it calls as study/paper.yaml does
    "": ["precision"],
    "model": ["encoder"],
    "optimizer.build": ["weight_decay", "betas"],
    "scale": ["image_size", "patch_size", "mask_ratio", "epochs", "micro_batch", "warmup_epochs", "final_lr",
              "workers"],
    CONDUCTOR: ["clip_norm"],
    f"{CONDUCTOR}.estimator": ["accumulation_steps"],
    f"{CONDUCTOR}.resolver": ["smooth", "remap_power", "projection_max_iters", "norm_cap", "thresholds",
                              "dominance_window", "norm_ema_beta", "tie_breaking_weights"],
}  # fmt: skip
OTHER_NAME = {  # setting -> where a composed run has it
    "outer_momentum": "optimizer.build.momentum",
    "lambda_l1": "loss.tasks.l1",
    "lambda_ssim": "loss.tasks.ssim",
    "gradnorm_alpha": f"{CONDUCTOR}.resolver.alpha",
    "gradnorm_lr": f"{CONDUCTOR}.resolver.lr",
    "momentum_beta": f"{CONDUCTOR}.update.beta",
    "trust_ratio_clip": f"{CONDUCTOR}.update.clip",
    "decoder_blocks": "model.depth",
    "decoder_width": "model.width",
}
PLACES = {name: f"{part}.{name}".lstrip(".") for part, names in SAME_NAME.items() for name in names} | OTHER_NAME


def settings(cfg: DictConfig) -> dict[str, Any]:
    """Setting -> value of one composed run; names as in study/paper.yaml."""
    found = {name: OmegaConf.select(cfg, place, default=NONE) for name, place in PLACES.items()}
    parts = [cfg.optimizer.build, *(cfg.strategy.conductor[part] for part in ("estimator", "resolver", "update"))]
    outer, estimator, resolver, update = (part["_target_"].rsplit(".", 1)[-1] for part in parts)
    lr = cfg.optimizer.lr * cfg.strategy.lr_scale
    found |= {"optimizer": outer, "lr": lr, "outer_lr": NONE, "return_raw_grad": NONE, "stochastic": NONE}
    found |= {"effective_batch": found["micro_batch"] * found["accumulation_steps"]}
    found |= {"imagenet_statistics": [*IMAGENET_MEAN, *IMAGENET_STD]}
    if resolver == "GradNorm":
        found |= {"lambda_l1": "dynamic", "lambda_ssim": "dynamic"}
    if resolver == "GCond":
        found |= {"return_raw_grad": update == "Raw", "stochastic": estimator == "Stochastic"}
        found |= {"momentum_beta": 0} if update == "Raw" else {}
    if update == "LionLARS":
        found |= {"optimizer": f"Lion/LARS inside, {outer} outside", "outer_lr": lr}
    return found


def write(folder: Path) -> None:
    """composed.csv in `folder`."""
    write_text(folder / "composed.csv", compose([]).to_csv(index=False, lineterminator="\n"))


def compose(overrides: Sequence[str]) -> pd.DataFrame:
    """Columns strategy, label, setting and value; what no strategy decides is that of Table 2's runs on CT."""
    of_all = [each for each in overrides if not each.startswith("strategy=")]
    seeds = plan(["experiment=table2", "scale=paper", "dataset=ct", "strategy=baseline", *of_all])
    common = {"ct_statistics": f"of the {seeds[0].cfg.dataset.statistics}", "seeds": [run.cfg.seed for run in seeds]}
    rows = []
    for run in plan(["experiment=table5", "scale=paper", *overrides]):
        found, about = settings(run.cfg) | common, (run.cfg.strategy.name, run.cfg.strategy.label)
        rows += [(*about, name, _text(found[name])) for name in facts("paper")["table5"]["titles"]]
    return pd.DataFrame(rows, columns=["strategy", "label", "setting", "value"])


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, list | ListConfig):
        return "/".join(map(_text, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)
