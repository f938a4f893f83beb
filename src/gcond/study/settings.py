"""The settings of Table 5 of arXiv 2509.07252 as this project composes them: composed.csv.

    python -m gcond.study.settings [--out reproduced/table5] [HYDRA_OVERRIDES]

Composes experiment=table5 at scale=paper, as gcond-train would: a row for each setting and strategy. "-": the strategy
has no such setting. The paper's values are in study/paper.yaml.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from omegaconf import DictConfig, OmegaConf

from gcond.data.intensity import IMAGENET_MEAN, IMAGENET_STD
from gcond.files import OWN, write_text
from gcond.sweep.plan import plan

NONE = "-"
GCOND = (
    "smooth",
    "remap_power",
    "projection_max_iters",
    "norm_cap",
    "thresholds",
    "dominance_window",
    "norm_ema_beta",
    "tie_breaking_weights",
)


def settings(cfg: DictConfig) -> dict[str, object]:
    """Setting -> value of one composed run; names as in study/paper.yaml."""
    conductor = OmegaConf.to_container(cfg.strategy.conductor, resolve=True)
    outer = OmegaConf.to_container(cfg.optimizer.build, resolve=True)
    assert isinstance(conductor, dict)
    assert isinstance(outer, dict)
    estimator, resolver, update = (_kind(conductor[part]) for part in ("estimator", "resolver", "update"))
    lion, gradnorm, gcond = update == "LionLARS", resolver == "GradNorm", resolver == "GCond"
    lr = cfg.optimizer.lr * cfg.strategy.lr_scale
    lambdas = cfg.loss.tasks
    ours = conductor["resolver"]
    return {
        "optimizer": f"Lion/LARS inside, {_kind(outer)} outside" if lion else _kind(outer),
        "lr": lr,
        "outer_lr": lr if lion else NONE,
        "weight_decay": outer["weight_decay"],
        "betas": outer.get("betas", NONE),
        "outer_momentum": outer.get("momentum", NONE),
        "lambda_l1": "dynamic" if gradnorm else lambdas["l1"],
        "lambda_ssim": "dynamic" if gradnorm else lambdas["ssim"],
        "gradnorm_alpha": ours["alpha"] if gradnorm else NONE,
        "gradnorm_lr": ours["lr"] if gradnorm else NONE,
        "return_raw_grad": update == "Raw" if gcond else NONE,
        "stochastic": estimator == "Stochastic" if gcond else NONE,
        "momentum_beta": conductor["update"].get("beta", 0) if gcond else NONE,
        "trust_ratio_clip": conductor["update"]["clip"] if lion else NONE,
        **{name: ours[name] if gcond else NONE for name in GCOND},
        "encoder": cfg.model.encoder,
        "decoder_blocks": cfg.model.depth,
        "decoder_width": cfg.model.width,
        "image_size": cfg.scale.image_size,
        "patch_size": cfg.scale.patch_size,
        "mask_ratio": cfg.scale.mask_ratio,
        "epochs": cfg.scale.epochs,
        "micro_batch": cfg.scale.micro_batch,
        "accumulation_steps": conductor["estimator"]["accumulation_steps"],
        "effective_batch": cfg.scale.micro_batch * conductor["estimator"]["accumulation_steps"],
        "clip_norm": conductor["clip_norm"],
        "warmup_epochs": cfg.scale.warmup_epochs,
        "final_lr": cfg.scale.final_lr,
        "workers": cfg.scale.workers,
        "precision": cfg.precision,
        "imagenet_statistics": (*IMAGENET_MEAN, *IMAGENET_STD),
    }


def of_the_study(overrides: Sequence[str]) -> dict[str, object]:
    """Settings that no strategy decides: of the runs of Table 2 on CT."""
    runs = plan(["experiment=table2", "scale=paper", "dataset=ct", "strategy=baseline", *overrides])
    return {"ct_statistics": f"of the {runs[0].cfg.dataset.statistics}", "seeds": [run.cfg.seed for run in runs]}


def compose(overrides: Sequence[str]) -> pd.DataFrame:
    runs = plan(["experiment=table5", "scale=paper", *overrides])
    common = of_the_study([each for each in overrides if not each.startswith("strategy=")])
    return pd.DataFrame(
        [
            (run.cfg.strategy.name, run.cfg.strategy.label, setting, _text(value))
            for run in runs
            for setting, value in (settings(run.cfg) | common).items()
        ],
        columns=["strategy", "label", "setting", "value"],
    )


def _kind(target: dict[str, Any]) -> str:
    return str(target["_target_"]).rsplit(".", 1)[-1]


def _text(value: object) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "/".join(map(_text, value))
    return f"{value:g}" if isinstance(value, int | float) else str(value)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=OWN / "table5", help=f"default: {OWN}/table5")
    parser.add_argument("overrides", nargs="*", help="as for gcond-train, e.g. optimizer.lr=1e-3")
    options = parser.parse_args(arguments)
    write_text(options.out / "composed.csv", compose(options.overrides).to_csv(index=False, lineterminator="\n"))
    print(f"written: {options.out}/composed.csv")


if __name__ == "__main__":
    main()
