"""What a training step will hold in memory, part by part, and the largest micro-batch for a budget.

    python scripts/plan_memory.py model=convnextv2_base strategy=gcond_stochastic dataset=ct batch=70 [--budget 16GB]
    python scripts/plan_memory.py --measure [--micro-batches 8,32,128] [HYDRA_OVERRIDES]

Reads no data and needs no GPU. `batch=N` is short for `scale.micro_batch=N`; the scale is the paper's unless `scale=`
is given. `device=cpu` plans for the CPU, anything else for CUDA. Sizes: 1 GB is 10^9 bytes, 1 GiB 2^30.

`--measure` takes real steps on the CPU, each case in a process of its own, at the mini scale, and sets the planned peak
beside what the process's resident memory grew by: Baseline and GCond sequential on mobilenetv3_small and convnext_tiny.
"""

from __future__ import annotations

import argparse
import ctypes
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import torch
from omegaconf import DictConfig

from gcond.config import build, compose
from gcond.engine.batches import planned_classes
from gcond.engine.memory import Plan, Planner, bytes_of
from gcond.engine.out_of_memory import process_bytes
from gcond.synthetic_run import SyntheticRun, channels_of

MODELS = ("mobilenetv3_small", "convnext_tiny")
STRATEGIES = ("baseline", "gcond_sequential")
BATCH = "batch="


def overrides_of(words: list[str], scale: str) -> list[str]:
    """Hydra's overrides: `batch=N` spelt out, `scale` chosen where the words choose none."""
    chosen = [] if any(word.startswith("scale=") for word in words) else [f"scale={scale}"]
    return chosen + [f"scale.micro_{word}" if word.startswith(BATCH) else word for word in words]


def planner(cfg: DictConfig) -> Planner:
    with torch.device("meta"):
        model = build(cfg.model, channels=channels_of(cfg), classes=planned_classes(cfg))
    return Planner(cfg, model, torch.device("cpu" if cfg.device == "cpu" else "cuda"))


def table(plan: Plan) -> str:
    lines = [f"micro-batch {plan.micro_batch}, {plan.accumulation_steps} of them a step", "", "held throughout"]
    lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in plan.held.items() if size]
    lines += ["on top, one at a time (passes: a micro-batch's images, activations and their gradients)"]
    lines += [f"  {part:34} {size / 1e9:9.3f} GB" for part, size in plan.phases.items()]
    return "\n".join([*lines, f"{'peak':36} {plan.peak / 1e9:9.3f} GB"])


def report(cfg: DictConfig, budget: str | None) -> str:
    room = None if budget is None else bytes_of(budget, "--budget")
    plans, steps = planner(cfg), cfg.scale.accumulation_steps
    plan = plans.plan(cfg.scale.micro_batch, steps)
    if room is None:
        return table(plan)
    verdict = "fits" if plan.fits(room) else "does not fit"
    lines = [table(plan), "", f"{verdict} into {budget} with a margin of {plan.margin - 1:.0%}"]
    images = cfg.scale.micro_batch * steps
    lines.append(f"largest micro-batch with {steps} of them a step:     {_choice(plans.largest_of(steps, room))}")
    lines.append(f"largest with the effective batch kept at {images}: {_choice(plans.largest(room))}")
    return "\n".join(lines)


def _choice(plan: Plan | None) -> str:
    if plan is None:
        return "none fits"
    return (
        f"scale.micro_batch={plan.micro_batch} scale.accumulation_steps={plan.accumulation_steps} "
        f"({plan.peak / 1e9:.3f} GB)"
    )


def measure(overrides: list[str]) -> tuple[int, int]:
    """Planned peak of the run's tensors on the CPU, and what the resident memory of this process grows by in steps."""
    torch.set_num_threads(1)
    overrides = [*overrides, "device=cpu", "scale.diagnose_every=1"]  # the costliest steps
    cfg = compose(overrides)
    planned = planner(cfg).plan(cfg.scale.micro_batch, cfg.scale.accumulation_steps).peak
    cpu = torch.device("cpu")
    SyntheticRun(
        compose([*overrides, "scale.micro_batch=1"]), cpu, diagnose_every=1
    ).step()  # what libraries build once
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    before = process_bytes()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    run = SyntheticRun(cfg, cpu, diagnose_every=1)
    for _ in range(3):
        run.step()
    peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return planned, int(peak.split()[1]) * 1024 - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--budget", help="memory of the device, such as 16GB or 16GiB")
    parser.add_argument("--measure", action="store_true", help="compare plans with real steps on the CPU")
    parser.add_argument("--micro-batches", default="8,32,128", help="of --measure")
    parser.add_argument("overrides", nargs="*", help="e.g. model=convnext_tiny batch=96")
    arguments = parser.parse_args()
    if not arguments.measure:
        print(report(compose(overrides_of(arguments.overrides, "paper")), arguments.budget))
        return
    print(f"{'model':20} {'strategy':18} micro-batch  planned MB  measured MB  planned / measured")
    for model in MODELS:
        for strategy in STRATEGIES:
            for size in arguments.micro_batches.split(","):
                words = [*arguments.overrides, f"model={model}", f"strategy={strategy}", f"{BATCH}{size}"]
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own: a peak is for good
                    planned, measured = process.submit(measure, overrides_of(words, "mini")).result()
                print(
                    f"{model:20} {strategy:18} {size:>11} {planned / 1e6:11.1f} {measured / 1e6:12.1f} "
                    f"{planned / measured:19.2f}"
                )


if __name__ == "__main__":
    main()
