"""What a training step will hold in memory, part by part, and the largest micro-batch for a budget.

    gcond plan-memory model=convnextv2_base strategy=gcond_stochastic dataset=ct batch=70 [--budget 16GB]

Reads no data and needs no GPU. `batch=N` is short for `scale.micro_batch=N`; the scale is the paper's unless `scale=`
is given. `device=cpu` plans for the CPU, anything else for CUDA. Sizes: 1 GB is 10^9 bytes, 1 GiB 2^30.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import torch
from hydra.errors import HydraException
from omegaconf import DictConfig

from gcond.config import build, compose
from gcond.engine.batches import planned_classes
from gcond.engine.memory import Plan, Planner, bytes_of
from gcond.synthetic_run import channels_of

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


def main(words: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="gcond plan-memory", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--budget", help="memory of the device, such as 16GB or 16GiB")
    parser.add_argument("overrides", nargs="*", help="e.g. model=convnext_tiny strategy=pcgrad dataset=ct batch=96")
    options = parser.parse_intermixed_args(words)
    try:
        print(report(compose(overrides_of(options.overrides, "paper")), options.budget))
    except (ValueError, HydraException) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
