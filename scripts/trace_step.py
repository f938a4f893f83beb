"""What a training step waits for: the parts of real steps on real data, and whether the data keep up.

    python scripts/trace_step.py [--steps 60] [--rounds 12] [--device cpu|cuda] [--chrome trace.json]
    [--cases ct:memory:0,ct:store:0,...] [--out results/bench/trace.csv] [HYDRA_OVERRIDES, e.g. scale=paper]

A case is dataset:kept:workers. `memory` is how small data are kept; `store` reads every image when its turn comes, as
data above 2 GiB are read. Each case is a run of `gcond.train.train` in a folder of its own, whose parts a stopwatch
times where the training code calls them; the first steps are left out. Then, in turns, the data alone (the run's
micro-batches, taken as fast as they come) and the step alone (a made micro-batch again and again).

All times are wall times: a stall is one whatever the processor does meanwhile. On CUDA, and for `--chrome`, a second
run is profiled, so that the profiler slows nothing that is reported; from its events come how busy the device was, and
how much of the copies ran beside a kernel. That part has been tested on made events only. `--chrome` writes the first
case's timeline, the parts in it, for chrome://tracing or https://ui.perfetto.dev.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, nullcontext
from functools import wraps
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pandas as pd
import torch
from torch.profiler import ProfilerActivity, profile, record_function
from torch.utils.data import DataLoader

from gcond.config import build, compose
from gcond.data.images import TensorImages
from gcond.engine import batches
from gcond.engine.batches import MicroBatches
from gcond.engine.device import commit, describe
from gcond.engine.run_folder import RunFolder
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, Trainer
from gcond.files import write_text
from gcond.report.records import add_rows, frame
from gcond.report.trace import COLUMNS, KEY, PARTS, page
from gcond.strategy import GradientConductor
from gcond.strategy.estimate import Window
from gcond.synthetic_run import SyntheticRun
from gcond.timing import versions
from gcond.train import train

CASES = "ct:memory:0,ct:store:0,ct:store:1,ct:store:2,photos:memory:0,photos:memory:1"
WARM_UP = 4  # steps left out: the first is diagnosed, and memory is allocated
PROFILED = 8  # steps
TURN_SECONDS = 0.5  # at least, of the data alone
ALONE = ["reconstructions.images=0", "progress=quiet", "checkpoint_minutes=1000", "scale.diagnose_every=1000000000"]
RUN = [*ALONE, "scale.epochs=1", "scale.warmup_epochs=0.1", "scale.eval_images=2"]


class Stopwatch:
    """Wall seconds of each part of every lap. A part inside another stops the outer one; the rest is `other`."""

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.laps: list[dict[str, float]] = []
        self._clock, self._open = clock, ["other"]
        self._lap = dict.fromkeys(PARTS, 0.0)
        self._since = clock()

    def lap(self) -> None:
        self._note()
        self.laps.append(self._lap)
        self._lap = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        self._note()
        self._open.append(name)
        try:
            with record_function(name) if torch.autograd._profiler_enabled() else nullcontext():
                yield
        finally:
            self._note()
            self._open.pop()

    def around(self, call: Callable[..., Any], name: str) -> Callable[..., Any]:
        @wraps(call)
        def timed(*arguments: Any, **named: Any) -> Any:
            with self.part(name):
                return call(*arguments, **named)

        return timed

    def each(self, items: Iterator[Any], name: str) -> Iterator[Any]:
        while True:
            with self.part(name):
                item = next(items)
            yield item

    def _note(self) -> None:
        now = self._clock()
        self._lap[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def watching(watch: Stopwatch, after_lap: Callable[[int], object] = lambda laps: None) -> Iterator[None]:
    """While this is open, `watch` times the parts of every training step; a lap ends with the step."""
    step = Trainer.step

    def lapped(trainer: Trainer, number: int) -> dict[str, Any]:
        record = step(trainer, number)
        watch.lap()
        after_lap(len(watch.laps))
        return record

    class Loader(DataLoader):
        def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
            return watch.each(super().__iter__(), "data")

    parts = [
        (MicroBatches, "__next__", "windowing"),
        (batches.SideStream, "start", "transfer"),
        (batches.SideStream, "finish", "transfer"),
        (Objective, "__call__", "passes"),
        (Window, "backward", "passes"),
        (GradientConductor, "step", "arbitration"),
        (torch.amp.GradScaler, "step", "optimizer"),
    ]
    with ExitStack() as stack:
        for owner, name, part in parts:
            stack.enter_context(patch.object(owner, name, watch.around(getattr(owner, name), part)))
        stack.enter_context(patch.object(Trainer, "step", lapped))
        stack.enter_context(patch("gcond.engine.batches.DataLoader", Loader))
        yield


def run(words: Sequence[str], steps: int, after_lap: Callable[[int], object] = lambda laps: None) -> pd.DataFrame:
    """Seconds of the parts of `steps` real training steps, one row a step, after those of the warm-up."""
    watch = Stopwatch()
    with tempfile.TemporaryDirectory() as runs, watching(watch, after_lap):
        cfg = compose([*words, *RUN, f"scale.steps_per_epoch={WARM_UP + steps}", f"runs={runs}"])
        train(cfg, RunFolder(cfg))
    return pd.DataFrame(watch.laps[WARM_UP:])


def profiled(words: Sequence[str], device: torch.device, chrome: Path | None) -> dict[str, float]:
    """What the device did in some steps: {} on the CPU. `chrome` is written."""
    cuda = device.type == "cuda"
    profiler = profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])])

    def after_lap(laps: int) -> None:
        if laps in (WARM_UP, WARM_UP + PROFILED):
            if cuda:
                torch.cuda.synchronize(device)
            profiler.start() if laps == WARM_UP else profiler.stop()

    run(words, PROFILED, after_lap)
    if chrome is not None:
        profiler.export_chrome_trace(str(chrome))
    if not cuda:
        return {}
    events = [
        (event.name, event.time_range.start, event.time_range.end)
        for event in profiler.events()
        if event.device_type == torch.autograd.DeviceType.CUDA and not event.is_user_annotation
    ]
    return on_device(events)


def on_device(events: Iterable[tuple[str, float, float]]) -> dict[str, float]:
    """`busy`, `copying` and `hidden` of gcond.report.trace, from (name, start, end) of what ran on the device.

    A copy within the device is a kernel's work; one from the host is what might hold a step up.
    """
    events = list(events)
    copies = union((start, end) for name, start, end in events if "HtoD" in name)
    kernels = union((start, end) for name, start, end in events if "HtoD" not in name and "DtoH" not in name)
    span = max(end for _, _, end in events) - min(start for _, start, _ in events)
    beside = length(union([*copies])) + length(kernels) - length(union([*copies, *kernels]))
    return {
        "busy": length(kernels) / span,
        "copying": length(copies) / span,
        "hidden": beside / length(copies) if copies else 1.0,
    }


def union(intervals: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The same points in disjoint intervals, in order."""
    found: list[tuple[float, float]] = []
    for start, end in sorted(intervals):
        if found and start <= found[-1][1]:
            found[-1] = (found[-1][0], max(found[-1][1], end))
        else:
            found.append((start, end))
    return found


def length(intervals: Iterable[tuple[float, float]]) -> float:
    return sum(end - start for start, end in intervals)


def alone(words: Sequence[str], store: bool, device: torch.device, rounds: int) -> tuple[np.ndarray, np.ndarray]:
    """Images a second of the data alone and of the step alone [rounds], taken in turns."""
    cfg = compose([*words, *ALONE])
    scale, settings = cfg.scale, Settings(cfg)
    data, rehearsal = build(cfg.dataset), SyntheticRun(cfg, device)
    if store == isinstance(data.train, TensorImages):
        raise ValueError(f"--cases: expected {'memory' if store else 'store'}, as {cfg.dataset.name} is kept here")
    batches = MicroBatches(
        data.train,
        data.intensity,
        scale.micro_batch,
        settings.patches,
        scale.mask_ratio,
        cfg.seed,
        device,
        scale.workers,
    )
    window = scale.micro_batch * scale.accumulation_steps

    def synchronise() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter()

    def of_data() -> float:
        for _ in range(2 * scale.workers + 2):  # what lay ready since the last turn
            next(batches)
        start, taken = synchronise(), 0
        while synchronise() - start < TURN_SECONDS or taken < scale.accumulation_steps:
            next(batches)
            taken += 1
        return taken * scale.micro_batch / (synchronise() - start)

    def of_step() -> float:
        start = synchronise()
        rehearsal.step()
        return window / (synchronise() - start)

    with closing(batches):
        of_step()
        turns = [(of_data(), of_step()) for _ in range(rounds)]
    of_datas, of_steps = np.array(turns).T
    return of_datas, of_steps


def quartiles(values: np.ndarray | pd.Series) -> list[float]:
    return [float(value) for value in np.quantile(values, [0.25, 0.5, 0.75])]


def measure(
    case: str, overrides: list[str], steps: int, rounds: int, device: torch.device, chrome: Path | None
) -> dict:
    """The row of one case."""
    dataset, kept, workers = case.split(":")
    words = ["scale=mini", f"device={device}", *overrides, f"dataset={dataset}", f"scale.workers={workers}"]
    load = os.getloadavg()[0]
    held = {"memory": nullcontext(), "store": patch("gcond.data.images.IN_MEMORY_BYTES", 0)}
    with held[kept]:
        laps = run(words, steps)
        seen = profiled(words, device, chrome) if device.type == "cuda" or chrome is not None else {}
        loader, step = alone(words, kept == "store", device, rounds)
    wall = laps.sum(axis=1)
    shares = laps.div(wall, axis=0)
    cfg = compose(words)
    return {
        "device": describe(device),
        "precision": cfg.precision,
        "model": cfg.model.name,
        "strategy": cfg.strategy.name,
        "image_size": cfg.scale.image_size,
        "micro_batch": cfg.scale.micro_batch,
        "accumulation_steps": cfg.scale.accumulation_steps,
        "dataset": dataset,
        "kept": kept,
        "workers": int(workers),
        "steps": steps,
        "rounds": rounds,
        **dict(zip(("seconds_low", "seconds", "seconds_high"), quartiles(wall), strict=True)),
        **shares.median().to_dict(),
        **dict(zip(("data_low", "data", "data_high"), quartiles(shares.data), strict=True)),
        "loader": float(np.median(loader)),
        "step": float(np.median(step)),
        **dict(zip(("headroom_low", "headroom", "headroom_high"), quartiles(loader / step), strict=True)),
        **seen,
        "load": load,
        "versions": versions(("torch", "timm", "datasets")),
        "commit": commit()[0],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--cases", default=CASES, help="dataset:memory|store:workers, by commas")
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--chrome", type=Path, help="write the first case's timeline there")
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    parser.add_argument("overrides", nargs="*", help="e.g. scale=paper scale.micro_batch=96")
    arguments = parser.parse_intermixed_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    cases = arguments.cases.split(",")
    for case in cases:
        if case.count(":") != 2 or case.split(":")[1] not in ("memory", "store") or not case.split(":")[2].isdecimal():
            raise ValueError(f"--cases: expected dataset:memory|store:workers, found {case}")
    rows = []
    for number, case in enumerate(cases):
        print(f"{case} ({number + 1} of {len(cases)})")
        chrome = arguments.chrome if number == 0 else None
        rows.append(measure(case, arguments.overrides, arguments.steps, arguments.rounds, device, chrome))
    table = frame(rows, COLUMNS)
    if arguments.out:
        table = add_rows(arguments.out, table, COLUMNS, KEY)
        write_text(arguments.out.with_suffix(".md"), page(table))
    print(page(table))


if __name__ == "__main__":
    main()
