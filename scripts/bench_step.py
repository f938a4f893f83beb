"""What one optimizer step of every strategy costs, as a ratio to Baseline.

    python scripts/bench_step.py [--strategies baseline,gcond_stochastic] [--rounds 10] [--device cpu|cuda]
    [--out results/bench/step.csv] [HYDRA_OVERRIDES, e.g. model=convnext_tiny scale.image_size=128]

All strategies take turns in one process, in a new order each round, so that a machine whose speed drifts slows them
alike. A ratio is the median over rounds of paired ratios, with a 95 % bootstrap interval. CPU: processor time of one
thread; CUDA: time until the device is idle, peak memory and images a second besides. The micro-batch is one made
picture, shown again and again; logging that runs every n steps is off.

`forward` and `forward and backward` are the window's passes without a conductor, the latter of the weighted sum. From
them comes r, the cost of a backward pass in forward passes, and with it the bound: the least that a strategy's own
passes cost. A row of the same model, shapes and strategy is replaced in `--out`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from gcond.config import CONFIG, compose
from gcond.engine.device import commit, describe
from gcond.files import write_text
from gcond.report.records import add_rows, frame
from gcond.report.step import COLUMNS, KEY, page
from gcond.strategy import Joint, Sequential, Stochastic
from gcond.synthetic_run import SyntheticRun
from gcond.timing import Ratio, interleaved, versions

STRATEGIES = sorted(path.stem for path in (CONFIG / "strategy").glob("*.yaml"))
PER_TASK = "strategy.conductor.estimator.forward=per_task"
FORMS = {"gcond_sequential, a forward pass per task": ("gcond_sequential", [PER_TASK])}
SHAPES = ["scale=paper", "scale.steps_per_epoch=1000", "dataset=ct", "scale.micro_batch=2"]
"""The paper's K = 24 and 256 pixels; the micro-batch is what a CPU can do."""
PACKAGES = ("torch", "timm", "torchjd")


class Plain:
    """The window of a rehearsal as anybody would write it, without a conductor."""

    def __init__(self, rehearsal: SyntheticRun) -> None:
        self._run = rehearsal
        self._k = rehearsal.conductor.estimator.accumulation_steps

    def forward(self) -> None:
        for _ in range(self._k):
            self._loss()

    def forward_and_backward(self) -> None:
        self._run.optimizer.zero_grad()
        for _ in range(self._k):
            (self._loss() / self._k).backward()

    def _loss(self) -> torch.Tensor:
        tasks = self._run.conductor.tasks
        values = self._run.losses(list(tasks))
        return sum(weight * values[name] for name, weight in tasks.items())


def passes(rehearsal: SyntheticRun) -> tuple[int, int]:
    """Forward and backward passes of a micro-batch."""
    estimator, m = rehearsal.conductor.estimator, len(rehearsal.conductor.tasks)
    if isinstance(estimator, (Joint, Stochastic)):
        return 1, 1
    assert isinstance(estimator, Sequential)
    return (m if estimator.forward == "per_task" else 1), m


def measure(strategies: list[str], overrides: list[str], rounds: int, device: torch.device) -> pd.DataFrame:
    """One row a strategy."""
    forms = {name: (name, []) for name in strategies}
    if "gcond_sequential" in strategies:
        forms |= FORMS
    peaks = {}
    runs = {}
    for name, (strategy, extra) in forms.items():
        before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0
        runs[name] = SyntheticRun(compose([*SHAPES, *overrides, f"strategy={strategy}", *extra]), device)
        if device.type == "cuda":
            runs[name].step()
            torch.cuda.reset_peak_memory_stats(device)
            runs[name].step()
            peaks[name] = (torch.cuda.max_memory_allocated(device) - before) / 2**20
    plain = Plain(SyntheticRun(compose([*SHAPES, *overrides, "strategy=baseline"]), device))
    works: dict[str, Callable[[], object]] = {name: run.step for name, run in runs.items()}
    works |= {"forward": plain.forward, "forward and backward": plain.forward_and_backward}
    times = interleaved(works, rounds, device)
    baseline = times["baseline"]
    r = float(np.median((times["forward and backward"] - times["forward"]) / times["forward"]))
    cfg = compose([*SHAPES, *overrides])
    scale = cfg.scale
    images = scale.micro_batch * scale.accumulation_steps
    found = []
    for name, taken in times.items():
        run = runs.get(name)
        forward, backward = passes(run) if run is not None else (1, 0 if name == "forward" else 1)
        ratio = Ratio.of(taken, baseline)
        found.append(
            {
                "model": cfg.model.name,
                "dataset": cfg.dataset.name,
                "image_size": scale.image_size,
                "micro_batch": scale.micro_batch,
                "accumulation_steps": scale.accumulation_steps,
                "precision": cfg.precision,
                "device": describe(device),
                "versions": versions(PACKAGES),
                "strategy": name,
                "rounds": rounds,
                "seconds": float(np.median(taken)),
                "ratio": ratio.median,
                "low": ratio.low,
                "high": ratio.high,
                "r": r,
                "forward": forward,
                "backward": backward,
                "images_per_second": images / float(np.median(taken)) if device.type == "cuda" else None,
                "peak_mb": peaks.get(name),
                "commit": commit()[0],
            }
        )
    return frame(found, COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--strategies", default=",".join(STRATEGIES), help="of conf/strategy; baseline is always in it")
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    parser.add_argument("overrides", nargs="*", help="e.g. model=convnext_tiny scale.image_size=128")
    arguments = parser.parse_intermixed_args()
    device = torch.device(arguments.device)
    torch.set_num_threads(1)
    strategies = list(dict.fromkeys(["baseline", *arguments.strategies.split(",")]))
    unknown = sorted(set(strategies) - set(STRATEGIES))
    if unknown:
        raise ValueError(f"--strategies: expected names of conf/strategy, found {', '.join(unknown)}")
    rows = measure(strategies, arguments.overrides, arguments.rounds, device)
    print(page(rows))
    if arguments.out:
        recorded = add_rows(arguments.out, rows, COLUMNS, KEY)
        write_text(arguments.out.with_suffix(".md"), page(recorded))


if __name__ == "__main__":
    main()
