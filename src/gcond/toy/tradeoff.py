"""GradOPS's trade-off over alpha, on the two-dimensional problem and on three regressions that share two features.

The regressions: with white inputs x in R^d, task t predicts y_t = w_t . x by h_t . W x, W [2, d] shared, h_t [2] its
own, the w_t orthogonal. Its loss |w_t - W^T h_t|^2 / 2 over its first value |w_t|^2 / 2 is the unexplained share s_t.
Two features cannot serve three orthogonal tasks: sum_t s_t >= 1, with equality exactly on the Pareto front (the shares
explained are squared lengths of the w_t / |w_t| projected on a plane).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from gcond.strategy import GradientConductor, Raw, Sequential
from gcond.strategy.resolve.gradops import GradOPS
from gcond.toy.descents import Descents, Method
from gcond.toy.problem import F1_SCALE, evaluate

ALPHAS = (-6.0, -3.0, -1.0, 0.0, 1.0, 3.0, 6.0)
LENGTHS = (1.0, 0.7, 0.5)  # |w_t|: the first task dominates the plain sum
DIMENSIONS = 12
STEPS = 300
SEEDS = (0, 1, 2)
TASKS = ("a", "b", "c")


def variants(gradops: Method) -> dict[float, Method]:
    """The strategy `gradops` with its unverified weights, for every alpha."""
    return {
        alpha: replace(gradops, resolver={**gradops.resolver, "weights": "unverified_r_alpha", "alpha": alpha})
        for alpha in ALPHAS
    }


def ends(methods: dict[float, Method], descents: Descents) -> Iterator[dict[str, object]]:
    """Rows of tradeoff.csv: both losses of the two-dimensional problem, as the strategy sees them, at the ends."""
    for alpha, method in methods.items():
        for start, points in descents[method.settings].items():
            (f1, f2), _ = evaluate(points.x1.iloc[-1], points.x2.iloc[-1])
            losses = {"f1": F1_SCALE * f1, "f2": f2}
            about = {"problem": "two-dimensional", "alpha": alpha, "run": start, "steps": method.steps}
            yield from (about | {"task": task, "value": f"{loss:.5f}"} for task, loss in losses.items())


def regressions() -> Iterator[dict[str, object]]:
    """Rows of tradeoff.csv: the unexplained share of every task, for every alpha and seed."""
    for alpha, seed in tqdm([(a, s) for a in ALPHAS for s in SEEDS], desc="regressions", unit="run", disable=None):
        shares = train(GradOPS(weights="unverified_r_alpha", alpha=alpha), STEPS, seed)
        about = {"problem": "regressions", "alpha": alpha, "run": seed, "steps": STEPS}
        yield from (about | {"task": task, "value": f"{s:.5f}"} for task, s in zip(TASKS, shares, strict=True))


def train(resolver: Any, steps: int, seed: int) -> list[float]:
    """The unexplained shares [3] after `steps` of Adam (learning rate 1e-2) from a small random start."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.diag(torch.tensor(LENGTHS, dtype=torch.float64))
    targets = torch.nn.functional.pad(targets, (0, DIMENSIONS - len(LENGTHS)))  # [3, d]
    features = torch.randn(2, DIMENSIONS, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_()
    heads = [torch.randn(2, generator=generator, dtype=torch.float64).mul_(0.1).requires_grad_() for _ in TASKS]
    parameters = [features, *heads]
    conductor = GradientConductor(parameters, dict.fromkeys(TASKS, 1.0), Sequential(1), resolver, Raw(), clip_norm=None)
    optimizer = torch.optim.Adam(parameters, lr=1e-2)

    def losses(_: None, names: Any) -> dict[str, torch.Tensor]:
        index = [TASKS.index(name) for name in names]
        errors = [targets[i] - heads[i] @ features for i in index]
        return {name: 0.5 * (error @ error) for name, error in zip(names, errors, strict=True)}

    for _ in range(steps):
        conductor.step([None], losses)
        optimizer.step()
    values = losses(None, TASKS)
    return [2 * values[t].item() / length**2 for t, length in zip(TASKS, LENGTHS, strict=True)]
