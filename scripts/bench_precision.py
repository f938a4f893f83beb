"""What low-precision buffers cost in agreement with float32: GCond on the same weights and micro-batches.

    python scripts/bench_precision.py [--steps 96] [--seeds 11,42,2025] [--out results/bench/precision.csv]
    [HYDRA_OVERRIDES]

One run per case trains in float32 on real data (scale=mini with K = 8 and the paper's learning rate, at which CT's
losses conflict). In every step the other conductors see the same weights
and the same micro-batches, each with its own history and momentum, and what they make is compared with float32's. The
yardstick is float32 again with the micro-batches of a task in reverse order: rounding alone. A finished case is left
out when the script is started again with the same `--out` and commit.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from gcond.config import build, compose
from gcond.engine.batches import MicroBatches, seeded, subseed
from gcond.engine.device import commit, describe
from gcond.engine.settings import Settings
from gcond.engine.trainer import Objective, optimizer_of
from gcond.files import write_text
from gcond.report.precision import COLUMNS, KEY, page
from gcond.report.records import frame, read_csv, write_csv
from gcond.strategy import GradientConductor, Stochastic
from gcond.timing import versions

FORMS = {
    "float32": [],
    "float32, micro-batches in reverse": [],
    "bfloat16 reference": ["+strategy.conductor.reference_dtype=bfloat16"],
    "bfloat16 buffers": ["+strategy.conductor.buffer_dtype=bfloat16"],
}
CASES = [
    (dataset, strategy, mode)
    for dataset in ("ct", "photos")
    for strategy in ("gcond_sequential", "gcond_stochastic")
    for mode in ("train", "eval")
]
DECISIONS = ("zone/", "wins/")


class Lockstep:
    """A float32 run whose every step other conductors repeat.

    Batches of one window are held together, and every conductor writes `p.grad`; the float32 one comes last.
    """

    def __init__(self, overrides: list[str], steps: int) -> None:
        cfg = compose(overrides)
        settings, device = Settings(cfg), torch.device("cpu")
        data = build(cfg.dataset)
        loss = build(cfg.loss.reconstruction)(patch_size=cfg.scale.patch_size, intensity=data.intensity)
        with seeded(cfg.seed, "weights"):
            self.model = build(cfg.model, channels=data.intensity.channels)
        self.conductors = {
            name: Settings(compose([*overrides, *extra])).conductor(
                self.model.parameter_groups(), seed=subseed(cfg.seed, "resolver")
            )
            for name, extra in FORMS.items()
        }
        self.schedule = settings.schedule(steps // cfg.scale.epochs)
        self.optimizer = optimizer_of(cfg.optimizer.build, self.model.parameters(), self.schedule.peak)
        self.objective = Objective(self.model, loss, data.intensity)
        size = cfg.scale.micro_batch, settings.patches, cfg.scale.mask_ratio
        self.batches = MicroBatches(data.train, data.intensity, *size, cfg.seed, device)
        self.model.train(cfg.strategy.model_mode == "train")
        self._step = 0

    def step(self) -> dict[str, tuple[dict[str, float], Tensor, Tensor]]:
        """Of every conductor: what it logs, its resolved gradient [P] and what stands in `p.grad` [P]."""
        k = self.conductors["float32"].estimator.accumulation_steps
        window = [next(self.batches) for _ in range(k)]
        found = {}
        for name in reversed(FORMS):
            conductor = self.conductors[name]
            shown = turned(window, conductor) if "reverse" in name else window
            metrics = conductor.step(shown, self.objective, diagnose=True)
            gradient = torch.cat([p.grad.flatten() for p in self.model.parameters() if p.grad is not None])
            found[name] = metrics, conductor.resolved_gradient.float(), gradient
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule(self._step)
        self.optimizer.step()
        self._step += 1
        return found


def turned(window: Sequence[Any], conductor: GradientConductor) -> list[Any]:
    """Every task's micro-batches in reverse order."""
    blocks = len(conductor.tasks) if isinstance(conductor.estimator, Stochastic) else 1
    size = len(window) // blocks
    return [batch for i in range(blocks) for batch in reversed(window[i * size : (i + 1) * size])]


def measure(case: tuple[str, str, str], seed: int, steps: int, overrides: list[str], bar: tqdm) -> list[dict]:
    dataset, strategy, mode = case
    words = ["scale=mini", "scale.micro_batch=4", "scale.accumulation_steps=8", "scale.lr=2e-4", "scale.epochs=1"]
    words += [f"dataset={dataset}", f"strategy={strategy}", f"seed={seed}"]
    words += [f"scale.steps_per_epoch={steps}", "scale.warmup_epochs=0.13", f"strategy.model_mode={mode}", *overrides]
    lockstep = Lockstep(words, steps)
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in FORMS}
    for _ in range(steps):
        found = lockstep.step()
        expected, resolved, gradient = found["float32"]
        for name, (metrics, own_resolved, own_gradient) in found.items():
            same = all(metrics[key] == value for key, value in expected.items() if key.startswith(DECISIONS))
            seen[name].append(
                {
                    "same": same,
                    "conflicts": sum(metrics[f"zone/{zone}"] for zone in ("weak", "main", "critical")) > 0,
                    "resolved": float((own_resolved - resolved).norm() / resolved.norm()),
                    "written": float((own_gradient - gradient).norm() / gradient.norm()),
                }
            )
        bar.update()
    common = {"dataset": dataset, "strategy": strategy, "mode": mode, "seed": seed, "steps": steps}
    about = {"device": describe(torch.device("cpu")), "versions": versions(("torch", "timm")), "commit": commit()[0]}
    rows = []
    for name, steps_of in seen.items():
        table = pd.DataFrame(steps_of)
        rows.append(
            common
            | {"form": name, "conflicts": int(table.conflicts.sum()), "same": int(table.same.sum())}
            | {"resolved": float(np.median(table.resolved)), "resolved_worst": float(table.resolved.max())}
            | {"written": float(np.median(table.written)), "written_worst": float(table.written.max())}
            | about
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--steps", type=int, default=96)
    parser.add_argument("--seeds", default="11,42,2025")
    parser.add_argument("--out", type=Path, help="a CSV file; the page is written beside it")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_intermixed_args()
    torch.set_num_threads(1)
    seeds = [int(seed) for seed in arguments.seeds.split(",")]
    table = frame([], COLUMNS)
    if arguments.out and arguments.out.exists():
        table = read_csv(arguments.out, COLUMNS, KEY)
        table = table[(table["commit"] == commit()[0]) & (table.steps == arguments.steps)]
    done = set(zip(table.dataset, table.strategy, table["mode"], table.seed, strict=True))
    left = [(case, seed) for seed in seeds for case in CASES if (*case, seed) not in done]
    with tqdm(total=len(left) * arguments.steps, unit="step", mininterval=2) as bar:
        for case, seed in left:
            rows = frame(measure(case, seed, arguments.steps, arguments.overrides, bar), COLUMNS)
            table = pd.concat([table, rows])
            if arguments.out:
                write_csv(arguments.out, table, KEY)
                write_text(arguments.out.with_suffix(".md"), page(read_csv(arguments.out, COLUMNS, KEY)))
    print(page(table))


if __name__ == "__main__":
    main()
