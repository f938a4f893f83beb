"""What stands in Table 2, in which order, and on which datasets at which scale."""

import pandas as pd

PAPER_METHODS = {
    "baseline": "Baseline",
    "cagrad": "CAGrad",
    "graddrop": "GradDrop",
    "gradnorm": "GradNorm",
    "pcgrad": "PCGrad",
    "gcond_sequential": "GCond sequential",
    "gcond_stochastic": "GCond stochastic",
}
OTHER_METHODS = {
    "gcond_pure": "GCond pure",
    "gcond_lion": "GCond lion",
    "baseline_integrated": "Baseline integrated (EMA, beta1 = 0; control)",
}
STRATEGIES = PAPER_METHODS | OTHER_METHODS

TRIVIAL = "trivial:"  # strategy prefix of the rows that need no training
TRIVIAL_PREDICTORS = {
    "trivial:dataset_mean": "Dataset mean",
    "trivial:global_median": "Global median of the training set",
    "trivial:pixel_median": "Per-pixel median of the training set",
    "trivial:visible_mean": "Mean of the image's visible pixels",
}

GROUPS = {
    "methods of the paper's Table 2": PAPER_METHODS,
    "other GCond updates, and the control": OTHER_METHODS,
    "trivial predictors (no training)": TRIVIAL_PREDICTORS,
}

DATASETS = {
    "smoke": ("photos", "ct"),
    "mini": ("photos", "ct"),
    "sample": ("imagenet256", "ct"),
    "study": ("imagenet84", "headneck"),
    "sample_gpu": ("imagenet256", "ct"),
    "paper": ("imagenet256", "ct"),
}
PAPER_MODEL = "mobilenetv3_small"
PAPER_SEEDS = (11, 42, 2025)
NOT_EVIDENCE = ("smoke", "mini")  # scales that show that the machinery works
PAPER_RATE = 2e-4
SCALE_RATES = {
    "smoke": 1e-3,
    "mini": 2e-3,
    "sample": 1e-3,
    "study": 2e-3,
    "study_gpu": 2e-3,
    "sample_gpu": 1e-3,
    "paper": PAPER_RATE,
}  # of conf/scale, as are the sizes
SCALE_PIXELS = {"smoke": 64, "mini": 64, "sample": 64, "study": 64, "study_gpu": 128, "sample_gpu": 128, "paper": 256}


def default_datasets(scale: str) -> tuple[str, ...]:
    if scale not in DATASETS:
        raise ValueError(f"`--datasets` has no default at scale {scale!r} (known: {', '.join(DATASETS)}): name them")
    return DATASETS[scale]


def in_lineup(runs: pd.DataFrame, datasets: tuple[str, ...]) -> pd.Series:
    """Mask [rows] of the trained runs that may stand in Table 2, whatever their model, seed and status."""
    return runs.strategy.isin(list(STRATEGIES)) & runs.dataset.isin(datasets) & (runs.variant == "")


def choose_model(runs: pd.DataFrame, datasets: tuple[str, ...]) -> str:
    """The one model of the table where nobody asked for one: the only one that was run, else the paper's."""
    models = sorted(set(runs.model[in_lineup(runs, datasets)]))
    if len(models) == 1:
        return models[0]
    if not models or PAPER_MODEL in models:
        return PAPER_MODEL
    raise ValueError(f"`--model` must be named: the runs were made with {', '.join(models)}")
