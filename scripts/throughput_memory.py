"""Memory of a step for scripts/bench_throughput.py: planned anywhere, measured under a cap on CUDA."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import torch
from throughput_cases import Case, work_of

from gcond.config import build
from gcond.engine.memory import Planner, bytes_of
from gcond.engine.out_of_memory import is_out_of_memory
from gcond.synthetic_run import channels_of

MIB = 2**20
TRIAL_STEPS = 2  # the second has history, momentum and optimizer state


def largest(fits: Callable[[int], bool], start: int) -> int | None:
    """The largest n >= 1 with fits(n), where smaller ones fit too; None where not even 1 does. Looks around `start`
    first, in growing steps."""
    good, bad, n = 0, math.inf, start
    step = 1
    while bad - good > 1:
        if fits(n):
            good = n
        else:
            bad = n
        if bad == math.inf:
            n, step = good + step, 2 * step
        elif good == 0:
            n, step = max(1, int(bad) - step), 2 * step
        else:
            n = (good + int(bad)) // 2
    return good or None


def planned(case: Case, method: str, device: torch.device) -> dict[str, object]:
    """Micro-batch and MB as planned for CUDA: of the case itself there, at the paper's shapes for a case on the CPU.

    In Table 4 it is the largest micro-batch that the cap has room for, without a margin; K stays.
    """
    if method == "plain":
        return {}  # no strategy to plan
    on_cpu = device.type == "cpu"
    cfg = case.paper_config(method) if on_cpu else case.config(method)
    with torch.device("meta"):
        model = build(cfg.model, channels=channels_of(cfg))
    planner, steps = Planner(cfg, model, torch.device("cuda")), cfg.scale.accumulation_steps
    if case.own or (case.table == "table4" and on_cpu):
        plan = planner.largest_of(steps, bytes_of(case.cap, "--cap"), step_only=True)
    else:
        plan = planner.plan(cfg.scale.micro_batch, steps)
    return {} if plan is None else {"planned_micro_batch": plan.micro_batch, "planned_mb": plan.step_peak / MIB}


def measured(case: Case, method: str, device: torch.device, start: int) -> tuple[int, float] | None:
    """Micro-batch and peak in MB of a method that is alone on a CUDA device, under the cap; None where it fails.

    The micro-batch is `start`; of a case with own ones it is the largest, and `start` where to look first.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as process:  # its own: the cap is for good
        return process.submit(_measured, case, method, str(device), start).result()


def _measured(case: Case, method: str, device_name: str, start: int) -> tuple[int, float] | None:
    device = torch.device(device_name)
    room = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(bytes_of(case.cap, "--cap") / room, device.index)  # None: the current
    cfg = case.config("baseline")
    short = len(cfg.loss.tasks)  # micro-batches of a trial: one is alive at a time, so that more do not hold more

    def peak(size: int, steps: int) -> float | None:
        return peak_mb(case, method, device, f"scale.micro_batch={size}", f"scale.accumulation_steps={steps}")

    size = largest(lambda n: peak(n, short) is not None, start) if case.own else start
    while size:
        found = peak(size, cfg.scale.accumulation_steps)
        if found is not None:
            return size, found
        size = size - 1 if case.own else None
    return None


def peak_mb(case: Case, method: str, device: torch.device, *more: str) -> float | None:
    """None: out of memory. All of it is free again afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    try:
        work = work_of(case, method, device, *more)
        for _ in range(TRIAL_STEPS):
            work()
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        return None
    return torch.cuda.max_memory_allocated(device) / MIB
