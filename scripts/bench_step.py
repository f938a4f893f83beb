"""What one optimizer step of every strategy costs, as a ratio to Baseline.

    python scripts/bench_step.py [--rounds 30] [--device cpu|cuda] [HYDRA_OVERRIDES, e.g. scale=mini
    model=convnext_tiny]

All strategies take turns in one process, so that a machine whose speed drifts slows them alike. A ratio is the median
over rounds of paired ratios, with a 95 % bootstrap interval. CPU: processor time of one thread; CUDA: time until the
device is idle. Images are random; logging that runs every n steps is off.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable

import numpy as np
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from tqdm import tqdm

from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch
from gcond.engine.loop import Objective, Trainer
from gcond.engine.settings import Settings
from gcond.model.masking import draw_hidden
from gcond.train import CONFIG, build

STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
CHANNELS = 3


def make_step(strategy: str, overrides: list[str], device: torch.device) -> Callable[[], None]:
    cfg = compose("train", [*overrides, f"strategy={strategy}"])
    settings = Settings(cfg)
    scale = cfg.scale
    torch.manual_seed(0)
    model = build(cfg.model, channels=CHANNELS).to(device)
    intensity = Intensity.of_photographs()
    loss = instantiate(cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=intensity)
    schedule = settings.schedule(1000)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(scale.micro_batch, CHANNELS, scale.image_size, scale.image_size, generator=generator)
    hidden = draw_hidden(scale.micro_batch, settings.patches, scale.mask_ratio, generator)
    trainer = Trainer(
        model,
        Objective(model, loss, intensity),
        settings.conductor(model.parameter_groups(), seed=0),
        instantiate(cfg.optimizer.build)(model.parameters(), lr=schedule.peak),
        schedule,
        itertools.repeat(Batch(images.to(device), hidden.to(device))),
        training=cfg.strategy.model_mode == "train",
        diagnose_every=10**9,
    )
    counter = itertools.count(1)
    return lambda: trainer.step(next(counter)) and None


def seconds(step: Callable[[], None], device: torch.device) -> float:
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    start = clock()
    step()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(ratios, (2000, len(ratios)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", help="e.g. scale=mini model=convnext_tiny")
    arguments = parser.parse_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        steps = {name: make_step(name, arguments.overrides, device) for name in STRATEGIES}
    for step in steps.values():
        step()  # warm-up
    times: dict[str, list[float]] = {name: [] for name in steps}
    for _ in tqdm(range(arguments.rounds), unit="round"):
        for name, step in steps.items():
            times[name].append(seconds(step, device))
    baseline = np.array(times["baseline"])
    what = f"{arguments.rounds} rounds; {' '.join(arguments.overrides) or 'defaults'}; {device}"
    print(f"{'strategy':22} {'ratio':>6}  95 % interval   ({what})")
    for name in sorted(times, key=lambda name: np.median(times[name])):
        ratios = np.array(times[name]) / baseline
        low, high = interval(ratios)
        print(f"{name:22} {np.median(ratios):6.3f}  [{low:.3f}, {high:.3f}]")
    print(f"Baseline's median step: {np.median(baseline):.3f} s")


if __name__ == "__main__":
    main()
