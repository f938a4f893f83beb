"""A hand-made folder of runs, written the way the engine writes one."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

TRIVIAL_L1 = {"dataset_mean": 0.9, "global_median": 0.8, "pixel_median": 0.7, "visible_mean": 0.75}
STRATEGIES = ["baseline", "cagrad", "graddrop", "gradnorm", "pcgrad", "gcond_sequential", "gcond_stochastic"]
STRATEGIES += ["gcond_pure", "gcond_lion", "baseline_integrated"]


def report(dataset: str, strategy: str, seed: int, epochs: list[tuple[float, float, float, float]], **more) -> dict:
    """A report.json; `epochs`: (val_l1, val_ssim, test_l1, test_ssim) per epoch."""
    names = ("val_l1", "val_ssim", "test_l1", "test_ssim")
    return {
        "schema": 1,
        "name": f"{strategy}-{dataset}-{seed}",
        "hash": "0123e4",  # must not be read as the number 123e4
        "scale": "mini",
        "dataset": dataset,
        "dataset_title": {"ct": "CT (2 patients)", "photos": "photos (scikit-image)"}.get(dataset, dataset),
        "model": "mobilenetv3_small",
        "strategy": strategy,
        "seed": seed,
        "variant": "",
        "status": "done",
        "error": "",
        "commit": "aaaaaaaaaaaaaaaa",
        "dirty": False,
        "device": "a test device",
        "torch": "2.14.1",
        "python": "3.11.9",
        "started": "2025-03-04T05:06:07+00:00",
        "seconds": 36.0,
        "peak_memory_mb": 512.5,
        "steps": 8,
        "epochs": len(epochs),
        "missing_packages": [],
        "train_l1_first": 1.0,
        "train_l1_tail": 0.6,
        "train_ssim_first": 0.9,
        "train_ssim_tail": 0.5,
        "validation": [
            {"epoch": index, "step": 4 * (index + 1), **dict(zip(names, values, strict=True))}
            for index, values in enumerate(epochs)
        ],
        "trivial": {name: dict.fromkeys(names, value) for name, value in TRIVIAL_L1.items()},
        **more,
    }


@pytest.fixture
def write_run(tmp_path: Path) -> Callable[..., Path]:
    """write_run(dataset, strategy, seed, epochs, logged=records of metrics.jsonl, **overrides of report.json) -> the
    run's folder."""

    def write(dataset, strategy, seed, epochs, folder: str | None = None, logged: list[dict] = (), **more) -> Path:
        content = report(dataset, strategy, seed, epochs, **more)
        path = tmp_path / "runs" / "mini" / (folder or f"{content['name']}-{content['variant']}")
        path.mkdir(parents=True)
        (path / "report.json").write_text(json.dumps(content))
        if logged:
            (path / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in logged))
        (path / ("DONE" if content["status"] == "done" else "FAILED")).write_text(content["error"])
        return path

    return write


@pytest.fixture
def all_runs(write_run) -> Callable[..., None]:
    """Write every run of Table 2 for seeds 11, 42, 2025; better strategies come later in STRATEGIES."""

    def write(skip: tuple[tuple[str, str, int], ...] = ()) -> None:
        for dataset in ("photos", "ct"):
            for rank, strategy in enumerate(STRATEGIES):
                for offset, seed in enumerate((11, 42, 2025)):
                    level = 0.75 - 0.03 * rank + 0.01 * offset
                    if (dataset, strategy, seed) not in skip:
                        write_run(dataset, strategy, seed, [(level + 0.1, 0.5, 0.9, 0.5), (level, 0.4, level, 0.4)])

    return write
