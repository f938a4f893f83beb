"""What a training step will hold in memory, part by part, and the largest micro-batch that fits.

    python scripts/plan_memory.py [--device-gb 80] [HYDRA_OVERRIDES, e.g. scale=paper dataset=imagenet256
    model=convnextv2_base strategy=gcond_stochastic]
    python scripts/plan_memory.py --measure [--micro-batches 8,32,128] [HYDRA_OVERRIDES]

Reads no data and needs no GPU; 1 GB is 10^9 bytes. `device=cpu` plans for the CPU, anything else for CUDA. `--measure`
takes real steps on the CPU, each case in a process of its own, and sets the planned peak beside what the process's
resident memory grew by: Baseline and GCond sequential on mobilenetv3_small and convnext_tiny.
"""

from __future__ import annotations

import argparse
import ctypes
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import get_context
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from gcond.data.intensity import Intensity
from gcond.engine.batches import Batch
from gcond.engine.memory import Plan, Planner
from gcond.engine.out_of_memory import process_bytes
from gcond.engine.probe import StepProbe
from gcond.engine.settings import Settings
from gcond.model.masking import draw_hidden
from gcond.train import CONFIG, build

CHANNELS = {"ct": 1, "photos": 3, "imagenet256": 3}
MODELS = ("mobilenetv3_small", "convnext_tiny")
STRATEGIES = ("baseline", "gcond_sequential")


def channels(cfg: DictConfig) -> int:
    if cfg.dataset.name not in CHANNELS:
        raise ValueError(
            f"`dataset`: expected one of {', '.join(CHANNELS)}, whose channels are known here, found "
            f"{cfg.dataset.name}; add it to CHANNELS"
        )
    return CHANNELS[cfg.dataset.name]


def planner(cfg: DictConfig) -> Planner:
    with torch.device("meta"):
        model = build(cfg.model, channels=channels(cfg))
    return Planner(cfg, model, torch.device("cpu" if cfg.device == "cpu" else "cuda"))


def table(plan: Plan) -> str:
    lines = [f"micro-batch {plan.micro_batch}, {plan.accumulation_steps} of them a step", "", "held throughout"]
    lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in plan.held.items() if size]
    lines += ["on top, one at a time"]
    lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in plan.phases.items()]
    return "\n".join([*lines, f"{'peak':36} {plan.peak / 1e9:9.3f} GB"])


def report(cfg: DictConfig, device_gb: float | None) -> str:
    plans = planner(cfg)
    plan = plans.plan(cfg.scale.micro_batch, cfg.scale.accumulation_steps)
    if device_gb is None:
        return table(plan)
    verdict = "fits" if plan.fits(device_gb * 1e9) else "does not fit"
    largest = plans.largest(device_gb * 1e9)
    fitting = "no micro-batch fits"
    if largest is not None:
        fitting = (
            f"the largest micro-batch that fits: scale.micro_batch={largest.micro_batch} "
            f"scale.accumulation_steps={largest.accumulation_steps} ({largest.peak / 1e9:.3f} GB)"
        )
    return f"{table(plan)}\n\n{verdict} into {device_gb:g} GB with a margin of {plan.margin - 1:.0%}; {fitting}"


def measure(overrides: list[str]) -> tuple[int, int]:
    """Planned peak of the run's tensors on the CPU, and what the resident memory of this process grows by in steps."""
    torch.set_num_threads(1)
    with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
        cfg = compose("train", [*overrides, "device=cpu"])
    planned = planner(cfg).plan(cfg.scale.micro_batch, cfg.scale.accumulation_steps).peak
    step_of(cfg, micro_batch=1)()  # what libraries load and build once
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = process_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    step = step_of(cfg, cfg.scale.micro_batch)
    for _ in range(3):
        step()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return planned, int(peak.split()[1]) * 1024 - before


def step_of(cfg: DictConfig, micro_batch: int) -> Callable[[], None]:
    """A diagnosed optimizer step, the costliest kind."""
    settings = Settings(cfg)
    scale = cfg.scale
    model = build(cfg.model, channels=channels(cfg)).train(cfg.strategy.model_mode == "train")
    intensity = Intensity(0, 1, (0.0,) * channels(cfg), (1.0,) * channels(cfg))
    loss = instantiate(cfg.loss.reconstruction)(patch_size=scale.patch_size, intensity=intensity)
    conductor = settings.conductor(model.parameter_groups(), seed=0)
    optimizer = instantiate(cfg.optimizer.build)(model.parameters(), lr=1e-3)
    generator = torch.Generator().manual_seed(0)

    def batches() -> Iterator[Batch]:
        while True:
            images = torch.randn(micro_batch, channels(cfg), scale.image_size, scale.image_size, generator=generator)
            yield Batch(images, draw_hidden(micro_batch, settings.patches, scale.mask_ratio, generator))

    def losses(batch: Batch, tasks: Sequence[str]) -> dict[str, Tensor]:
        return loss(model(batch.images, batch.hidden), batch.images, batch.hidden, tasks)  # type: ignore[no-any-return]

    def step() -> None:
        conductor.step(batches(), losses, diagnose=True)
        probe = StepProbe(conductor)
        optimizer.step()
        probe.measure(1e-3)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--device-gb", type=float, help="memory of the device in 10^9 bytes")
    parser.add_argument("--measure", action="store_true", help="compare plans with real steps on the CPU")
    parser.add_argument("--micro-batches", default="8,32,128", help="of --measure")
    parser.add_argument("overrides", nargs="*", help="e.g. scale=paper model=convnext_tiny")
    arguments = parser.parse_args()
    if not arguments.measure:
        with initialize_config_dir(version_base="1.3", config_dir=str(CONFIG)):
            print(report(compose("train", arguments.overrides), arguments.device_gb))
        return
    print(f"{'model':20} {'strategy':18} micro-batch  planned MB  measured MB  planned / measured")
    for model in MODELS:
        for strategy in STRATEGIES:
            for size in arguments.micro_batches.split(","):
                choices = [*arguments.overrides, f"model={model}", f"strategy={strategy}", f"scale.micro_batch={size}"]
                with get_context("spawn").Pool(1) as process:
                    planned, measured = process.apply(measure, (choices,))
                print(
                    f"{model:20} {strategy:18} {size:>11} {planned / 1e6:11.1f} {measured / 1e6:12.1f} "
                    f"{planned / measured:19.2f}"
                )


if __name__ == "__main__":
    main()
