"""A made-up study in the files that a real one leaves: plausible shapes, no run behind them.

`write(results, runs, scale=…)` fills results/<scale>/{runs,curves,steps,activations}.csv and the folders of local runs
with pictures. Everything follows from the names, so two calls write the same bytes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from zlib import crc32

import numpy as np

from gcond.report import records
from gcond.report.figures.lineup import FIGURES

SEEDS = (11, 42, 2025)
EPOCHS, STEPS, BINS = 10, 500, 50
TITLES = {"photos": "photos (scikit-image)", "ct": "CT (public samples, 10 patients)"}
LEVEL = {"photos": 0.42, "ct": 0.66}  # of L1 at the end
BETTER = {"gcond_stochastic": 0.06, "gcond_sequential": 0.07, "gcond_lion": 0.1, "gcond_pure": 0.03, "cagrad": -0.02}
COSINE = {"pcgrad": -0.35, "gcond_as_pcgrad": -0.1, "gcond_stochastic": 0.25, "gcond_lion": 0.4}
LOGS_PUBLISHED = ("gcond_stochastic", "gcond_sequential", "gcond_lion", "gcond_pure", "gcond_as_pcgrad")
Key = tuple[str, str, str, int, str]  # dataset, model, strategy, seed, variant


def wanted() -> list[Key]:
    """Every run of every figure, once."""
    keys = {
        (dataset, figure.model, strategy, seed, "")
        for figure in FIGURES.values()
        for strategy in (*figure.strategies, *figure.controls)
        for dataset in figure.datasets
        for seed in SEEDS
    }
    return sorted(keys)


def write(
    results: Path, runs: Path | None = None, scale: str = "mini", keep: Callable[[Key], bool] = lambda key: True
) -> None:
    keys = [key for key in wanted() if keep(key)]
    folder = results / scale
    parts = {
        "runs.csv": ([*trivial(), *map(run_row, keys)], records.COLUMNS, records.KEY, 8),
        "curves.csv": (_each(keys, curve), records.CURVE_COLUMNS, records.CURVE_KEY, 8),
        "steps.csv": (_each(keys, steps), records.STEP_COLUMNS, records.STEP_KEY, 6),
        "activations.csv": (_each(keys, activations), records.ACTIVATION_COLUMNS, records.ACTIVATION_KEY, 6),
    }
    for name, (rows, columns, key, digits) in parts.items():
        records.write_csv(folder / name, records.frame(rows, columns), key, digits)
    if runs:
        for key in keys:
            local_run(runs / scale, key)


def _each(keys: Iterable[Key], make: Callable[[Key], list[dict]]) -> list[dict]:
    return [dict(zip(records.KEY, key, strict=True)) | row for key in keys for row in make(key)]


def _random(key: Key, what: str) -> np.random.Generator:
    return np.random.default_rng(crc32(f"{key}{what}".encode()))


def _end(key: Key) -> float:
    dataset, model, strategy, seed, _ = key
    return LEVEL[dataset] - BETTER.get(strategy, 0) - 0.05 * ("v2" in model) + 0.01 * (seed % 7) / 7


def run_row(key: Key) -> dict:
    last = curve(key)[-1]
    scores = {name: last[name] for name in ("val_l1", "val_ssim", "test_l1", "test_ssim")}
    return {
        **dict(zip(records.KEY, key, strict=True)),
        "dataset_title": TITLES[key[0]],
        "status": "done",
        "commit": "c0ffee00c0ffee00",
        "dirty": False,
        "device": "CPU, a made-up machine",
        "started": "2025-03-04T05:06:07+00:00",
        "seconds": 100.0,
        "steps": STEPS,
        "epochs": EPOCHS,
        "best_epoch": EPOCHS,
        **{f"{when}_{name}": value for when in ("best", "last") for name, value in scores.items()},
    }


def trivial() -> list[dict]:
    rows = []
    for dataset, level in {"photos": 0.45, "ct": 0.81}.items():
        for name, more in {"visible_mean": 0.0, "dataset_mean": 0.09}.items():
            names = [f"{split}_{metric}" for split in ("val", "test") for metric in ("l1", "ssim")]
            scores = {f"{when}_{score}": level + more for when in ("best", "last") for score in names}
            rows.append({"dataset": dataset, "dataset_title": TITLES[dataset], "strategy": f"trivial:{name}",
                         "status": "done", **scores})  # fmt: skip
    return rows


def curve(key: Key) -> list[dict]:
    noise = _random(key, "curve").normal(0, 0.008, (EPOCHS, 4))
    rows = []
    for epoch in range(1, EPOCHS + 1):
        l1 = _end(key) + 0.35 * np.exp(-epoch / 2.5)
        values = np.array([l1, 0.85 * l1 + 0.1, l1 + 0.02, 0.85 * l1 + 0.12]) + noise[epoch - 1]
        names = ("val_l1", "val_ssim", "test_l1", "test_ssim")
        rows.append({"epoch": epoch, "step": epoch * STEPS // EPOCHS, **dict(zip(names, values, strict=True))})
    return rows


def steps(key: Key) -> list[dict]:
    random, strategy = _random(key, "steps"), key[2]
    rows, width = [], STEPS // BINS
    for index in range(BINS):
        progress = index / BINS
        l1 = _end(key) + 0.4 * np.exp(-progress * 6) + random.normal(0, 0.01)
        has = strategy != "baseline" and strategy != "baseline_integrated"
        mean = COSINE.get(strategy, 0.1) - 0.9 * np.exp(-progress * 12) + random.normal(0, 0.1)
        low = float(np.clip(mean - 0.2 - 0.2 * random.random(), -0.99, 0.99))
        conflicts = float(np.clip(0.5 - mean, 0, 1)) if low < 0 else 0.0
        row = {
            "bin": index, "first_step": index * width, "last_step": (index + 1) * width - 1,
            "loss_l1": l1, "loss_ssim": 0.85 * l1 + 0.1, "grad_norm_l1": 0.8, "grad_norm_ssim": 0.2,
            "resolved_norm": (0.4 if strategy == "cagrad" else 1.0) * (0.5 + 2 * np.exp(-progress * 5))
            * float(np.exp(random.normal(0, 0.3 if strategy in ("pcgrad", "gradnorm") else 0.1))),
            "norm_jump": 0.2 + 0.1 * random.random(), "cosine_steps": width if has else 0,
        }  # fmt: skip
        if has:
            row |= {"cosine_min": low, "cosine_mean": float(np.clip(mean, -1, 1)), "conflicts": conflicts}
        if strategy in LOGS_PUBLISHED:
            row["published_cosine"] = low if low < 0 else 1.0
        rows.append(row)
    return rows


def activations(key: Key) -> list[dict]:
    wide = 1.8 if "gcond" in key[2] else 1.0
    rows = []
    for epoch in range(1, EPOCHS + 1):
        std = wide * (0.5 + 0.06 * epoch) * (1 + 0.01 * (key[3] % 5))
        normal = dict(zip(records.QUANTILES, (-5, -3.1, -2.3, -1.6, -0.7, 0, 0.7, 1.6, 2.3, 3.1, 6), strict=True))
        quantiles = {f"q{name}": max(-0.4, value * std) for name, value in normal.items()}
        rows.append({"epoch": epoch, "step": epoch, "mean": 0.1, "std": std, "zero_share": 0.01, **quantiles})
    return rows


def local_run(folder: Path, key: Key, images: int = 4, size: int = 64, patch: int = 16) -> Path:
    """report.json, DONE and final_reconstructions.npz, pictures of CT included: they must not be drawn."""
    dataset, model, strategy, seed, _ = key
    path = folder / f"{dataset}-{model}-{strategy}-{seed}"
    path.mkdir(parents=True)
    row = run_row(key)
    names = ("val_l1", "val_ssim", "test_l1", "test_ssim")
    report = {**row, "schema": 1, "error": "", "missing_packages": [], "validation": curve(key),
              "trivial": {"visible_mean": dict.fromkeys(names, 0.5)}}  # fmt: skip
    (path / "report.json").write_text(json.dumps(report))
    (path / "DONE").write_text("")
    pictures(path / "final_reconstructions.npz", 3 if dataset == "photos" else 1, _end(key), images, size, patch)
    return path


def pictures(path: Path, channels: int, error: float, images: int, size: int, patch: int) -> None:
    """Smooth colours; a method is a blur that grows with `error`. The same images and masks for every run."""
    random = np.random.default_rng(7)
    y, x = np.mgrid[0:size, 0:size] / size
    waves = [np.sin(2 * np.pi * (a * x + b * y) + c) for a, b, c in random.uniform(0, 3, (images * channels, 3))]
    original = (127 + 100 * np.array(waves)).reshape(images, channels, size, size).astype(np.uint8)
    across = size // patch
    hidden = np.array([np.sort(random.permutation(across**2)[: across**2 * 3 // 4]) for _ in range(images)])
    masked, pasted = original.copy(), original.copy()
    for image in range(images):
        for place in hidden[image]:
            rows = slice(place // across * patch, (place // across + 1) * patch)
            columns = slice(place % across * patch, (place % across + 1) * patch)
            masked[image, :, rows, columns] = 128
            block = original[image, :, rows, columns].astype(float)
            pasted[image, :, rows, columns] = ((1 - error) * block + error * block.mean()).astype(np.uint8)
    np.savez_compressed(path, original=original, masked=masked, pasted=pasted, hidden=hidden, patch_size=patch)
