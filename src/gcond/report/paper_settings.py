"""Table 5 and the training settings of the paper as data. Source: arXiv 2509.07252, supplementary ("Dynamic" is read as
GradNorm's alone; in the journal edition's print, DOI 10.1109/ACCESS.2026.3673372, its cell spans CAGrad and GradNorm).

Values are texts, as scripts/paper_settings.py writes them. "-": the strategy has no such setting. A setting that the
paper gives once for all strategies, or for all of GCond's, is in ALL or GCOND.
"""

STRATEGIES = (
    "baseline",
    "pcgrad",
    "cagrad",
    "gradnorm",
    "gcond_pure",
    "gcond_stochastic",
    "gcond_sequential",
    "gcond_lion",
)
PEERS, GCONDS = STRATEGIES[:4], STRATEGIES[4:]

TITLES = {
    "optimizer": "optimizer",
    "lr": "learning rate",
    "outer_lr": "learning rate of the outer SGD",
    "weight_decay": "weight decay",
    "betas": "betas",
    "outer_momentum": "momentum of the outer SGD",
    "lambda_l1": "lambda L1",
    "lambda_ssim": "lambda 1 - SSIM",
    "gradnorm_alpha": "GradNorm: alpha",
    "gradnorm_lr": "GradNorm: lambda's learning rate",
    "return_raw_grad": "return_raw_grad",
    "stochastic": "stochastic accumulation",
    "momentum_beta": "momentum_beta",
    "trust_ratio_clip": "trust ratio, clip",
    "smooth": "smooth logic",
    "remap_power": "remap_power",
    "projection_max_iters": "projection_max_iters",
    "norm_cap": "norm_cap",
    "thresholds": "conflict thresholds (critical, main, weak)",
    "dominance_window": "dominance_window",
    "norm_ema_beta": "norm_ema_beta",
    "tie_breaking_weights": "tie_breaking_weights (stability, strength)",
    "encoder": "encoder (timm)",
    "decoder_blocks": "decoder: Transformer blocks",
    "decoder_width": "decoder: width",
    "image_size": "image size",
    "patch_size": "patch size",
    "mask_ratio": "mask ratio",
    "epochs": "epochs",
    "micro_batch": "micro-batch",
    "accumulation_steps": "accumulation steps K",
    "effective_batch": "effective batch",
    "clip_norm": "gradient clipping, norm",
    "warmup_epochs": "linear warm-up, epochs",
    "final_lr": "cosine decay to",
}

_LION = "Lion/LARS inside, SGD outside"
TABLE5: dict[str, dict[str, str]] = {
    "optimizer": {**dict.fromkeys(STRATEGIES, "AdamW"), "gcond_lion": _LION},
    "lr": {**dict.fromkeys(STRATEGIES, "0.0002"), "gcond_lion": "1e-05"},
    "outer_lr": {"gcond_lion": "1"},
    "weight_decay": {**dict.fromkeys(STRATEGIES, "0.05"), "gcond_lion": "0"},  # printed: none
    "betas": {
        **dict.fromkeys(STRATEGIES, "0.9/0.95"),
        **dict.fromkeys(("gcond_stochastic", "gcond_sequential"), "0/0.95"),
        "gcond_lion": "-",
    },
    "outer_momentum": {"gcond_lion": "0"},
    "lambda_l1": {**dict.fromkeys(STRATEGIES, "0.85"), "gradnorm": "dynamic"},
    "lambda_ssim": {**dict.fromkeys(STRATEGIES, "0.15"), "gradnorm": "dynamic"},
    "gradnorm_alpha": {"gradnorm": "1.5"},
    "gradnorm_lr": {"gradnorm": "0.001"},
    "return_raw_grad": {**dict.fromkeys(GCONDS, "false"), "gcond_pure": "true"},
    "stochastic": {**dict.fromkeys(GCONDS, "true"), "gcond_sequential": "false"},
    "momentum_beta": {**dict.fromkeys(GCONDS, "0.9"), "gcond_pure": "0"},
    "trust_ratio_clip": {"gcond_lion": "50"},
}
GCOND = {
    "smooth": "true",
    "remap_power": "2",
    "projection_max_iters": "3",
    "norm_cap": "none",
    "thresholds": "-0.8/-0.5/0",
    "dominance_window": "0",
    "norm_ema_beta": "0.95",
    "tie_breaking_weights": "0.8/0.2",
}
ALL = {
    "encoder": "mobilenetv3_small_100",
    "decoder_blocks": "2",
    "decoder_width": "256",
    "image_size": "256",
    "patch_size": "32",
    "mask_ratio": "0.75",
    "epochs": "15",
    "micro_batch": "256",
    "accumulation_steps": "24",
    "effective_batch": "6144",
    "clip_norm": "50",
    "warmup_epochs": "2",
    "final_lr": "1e-06",
}

REASONS = {  # why ours differs, where it does so on purpose
    ("outer_lr", "gcond_lion"): "the outer SGD carries the scheduled rate and Lion/LARS gives sign x trust ratio; in "
    "the paper Lion/LARS multiplies by the rate and SGD by 1. The product is the same",
}


def value(setting: str, strategy: str) -> str:
    """The paper's value of a setting, "-" where it gives the strategy none."""
    if setting in ALL:
        return ALL[setting]
    if setting in GCOND:
        return GCOND[setting] if strategy in GCONDS else "-"
    return TABLE5[setting].get(strategy, "-")
