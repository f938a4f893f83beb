"""Every method in conf/strategy, as a function from task gradients to the update, and the matrices it is tried on."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from hydra.utils import get_class
from omegaconf import OmegaConf
from strategy.problems import conflict, matrix
from torch import Tensor

import gcond.config  # noqa: F401  what the settings interpolate
from gcond.strategy.conflict import LossWeighting

CONF = Path(__file__).parents[2] / "conf" / "strategy"


@cache
def settings() -> dict[str, str]:
    """Strategy name -> its resolver's settings, as YAML."""
    return {
        path.stem: OmegaConf.to_yaml(OmegaConf.load(path).strategy.conductor.resolver, resolve=True, sort_keys=True)
        for path in sorted(CONF.glob("*.yaml"))
    }


@cache
def families() -> dict[str, tuple[str, ...]]:
    """Strategies with the same resolver and settings: the first by name -> all of them."""
    groups: dict[str, list[str]] = {}
    for name, text in settings().items():
        groups.setdefault(text, []).append(name)
    return {names[0]: tuple(names) for names in groups.values()}


def build(name: str, **changes: Any) -> Any:
    """A fresh resolver of that strategy, with changed settings."""
    arguments = _arguments(name) | changes
    return get_class(arguments.pop("_target_"))(**arguments)


@cache
def _arguments(name: str) -> dict[str, Any]:
    return OmegaConf.to_container(OmegaConf.create(settings()[name]))


@cache
def kind(name: str) -> str:
    resolver = build(name)
    if isinstance(resolver, LossWeighting):
        return "loss weighting"
    return "coordinates" if resolver.resolve(conflict([[1.0, 0.0], [0.0, 1.0]])).coefficients is None else "Gram"


def update(name: str, rows: object, before: object | None = None, seed: int = 0, **changes: Any) -> Tensor:
    """The update [P] of a fresh resolver for `rows` [m, P], after a first step on `before` if it has a memory."""
    resolver = build(name, **changes)
    remembers = resolver.remembers or kind(name) == "coordinates"
    if before is not None and remembers:
        _apply(resolver.resolve(conflict(before, seed=seed + 1)), matrix(before))
    return _apply(resolver.resolve(conflict(rows, before, seed=seed, step=1)), matrix(rows))


def _apply(resolution: Any, rows: Tensor) -> Tensor:
    return resolution.weights @ rows if resolution.blockwise is None else resolution.blockwise(rows, 0)


@dataclass(frozen=True)
class Case:
    """Task gradients [m, P] of a step and of the step before it, and a seed for what the method draws.

    Where the update may vanish, errors are relative to `least`, the gradients' norm, if that is larger.
    """

    rows: np.ndarray
    before: np.ndarray
    seed: int
    least: float = 0.0

    def update(self, name: str, transform: Any = lambda rows: rows, **changes: Any) -> Tensor:
        return update(name, transform(self.rows), transform(self.before), self.seed, **changes)


def random_cases(count: int, tasks: tuple[int, ...] = (2, 3, 4, 5), conflicts: bool = True) -> list[Case]:
    """Independent rows of norms within a factor ten, every other round of m in strong conflict; or no pair at all."""
    cases = []
    for seed in range(count):
        random = np.random.default_rng(seed)
        m = tasks[seed % len(tasks)]
        size = m + 1 + seed % 3
        rows, before = random.standard_normal((2, m, size))
        if not conflicts:
            rotation, _ = np.linalg.qr(random.standard_normal((size, size)))
            rows, before = np.abs(rows) @ rotation, np.abs(before) @ rotation
        elif seed // len(tasks) % 2 == 0:
            rows[1:] -= random.uniform(0.3, 1.0) * rows[0]
        norms = 10 ** random.uniform(-0.5, 0.5, (m, 1))
        cases.append(Case(norms * rows, norms * before, seed))
    return cases


def dependent_cases() -> list[Case]:
    """Of the kinds on which TorchJD tests its aggregators, built anew: low rank; stationary, in all tasks or in half of
    them; with a direction that serves all; and up to 50 tasks."""
    random = np.random.default_rng(1)

    def orthonormal(size: int, rank: int) -> np.ndarray:
        return np.linalg.qr(random.standard_normal((size, rank)))[0]

    def of_rank(m: int, size: int, rank: int) -> np.ndarray:
        lengths = np.abs(random.standard_normal(rank))
        return orthonormal(m, rank) * lengths @ orthonormal(size, rank).T

    def stationary(m: int, size: int, rank: int, balanced: int) -> np.ndarray:
        """With w J = 0 for weights w that are > 0 for the first `balanced` tasks, 0 for the others."""
        w = random.uniform(0.5, 1.5, m) * (np.arange(m) < balanced)
        left = random.standard_normal((m, rank))
        left -= np.outer(w, w @ left) / (w @ w)
        return left / np.linalg.norm(left) * m**0.5 @ orthonormal(size, rank).T

    def descending(m: int, size: int, rank: int) -> np.ndarray:
        rows = of_rank(m, size, rank)
        return np.sign(rows @ rows.sum(0))[:, None] * rows

    matrices = [of_rank(*dims) for dims in ((4, 3, 1), (4, 3, 2), (9, 11, 5))]
    for dims in ((20, 10, 5), (20, 10, 1), (20, 100, 1), (20, 100, 19)):
        matrices += [stationary(*dims, balanced=20), stationary(*dims, balanced=10), descending(*dims)]
    matrices += [random.standard_normal((m, size)) for m, size in ((10, 5), (20, 200), (50, 5))]
    return [Case(rows, rows, seed, float(np.linalg.norm(rows))) for seed, rows in enumerate(matrices)]


_random = np.random.default_rng(7)
UGLY = {
    "zero": np.zeros((3, 4)),
    "one zero row": np.array([[1.0, 2, 3], [0, 0, 0], [-1, -2, 1]]),
    "one task": np.array([[3.0, -4.0]]),
    "anti-parallel": np.array([[1.3, -0.7, 2.1], [-2.6, 1.4, -4.2]]),
    "sum is zero": np.array([[1, 0], [-0.5, 0.75**0.5], [-0.5, -(0.75**0.5)]]),
    "equal rows": np.array([[1.0, 2], [1, 2], [-2, 0]]),
    "more tasks than parameters": _random.standard_normal((6, 2)),
    "rank one": np.outer(np.array([1.0, -0.5, 2, 0.1]), _random.standard_normal(5)),
    "unlike norms": _random.standard_normal((4, 8)) * [[1e-6], [1e6], [1], [1e-3]],
}
SCALES = (1e-10, 1e-4, 1.0, 1e8, 1e15)
