"""Times several functions in turn in one process, and gives ratios of their times with intervals."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version

import numpy as np
import torch
from tqdm import tqdm

from gcond.engine.device import commit

DRAWS = 2000


@dataclass(frozen=True)
class Ratio:
    """The median of paired ratios, and the 95 % bootstrap interval of that median."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, times: np.ndarray, base: np.ndarray) -> Ratio:
        """`times` and `base` [rounds], taken in the same rounds."""
        ratios = times / base
        return cls(float(np.median(ratios)), *interval(ratios))


def interval(values: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    draws = np.random.default_rng(0).choice(values, (DRAWS, len(values)))
    low, high = np.quantile(np.median(draws, axis=1), [0.025, 0.975])
    return float(low), float(high)


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU: processor time of this process. CUDA: time until the device is idle."""

    def now() -> float:
        if device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(device)
        return time.perf_counter()

    start = now()
    work()
    return now() - start


def interleaved(
    works: Mapping[str, Callable[[], object]],
    rounds: int,
    device: torch.device,
    warm_up: int = 1,
    prepare: Callable[[str], object] = lambda name: None,
) -> dict[str, np.ndarray]:
    """Seconds [rounds] of each: all take a turn in every round, in a new order, so that a machine whose speed drifts
    slows them alike. `prepare(name)` runs before each turn and is not timed."""
    random = np.random.default_rng(0)
    names = list(works)
    taken: dict[str, list[float]] = {name: [] for name in names}
    with tqdm(total=(warm_up + rounds) * len(names), unit="turn", disable=None) as bar:
        for number in range(warm_up + rounds):
            for name in random.permutation(names):
                prepare(name)
                turn = seconds(works[name], device)
                if number >= warm_up:
                    taken[name].append(turn)
                bar.update()
    return {name: np.array(values) for name, values in taken.items()}


def stamp(*packages: str) -> dict[str, object]:
    """Versions (of PyTorch and timm unless others are named), commit and day of a measurement, for bench.csv."""
    revision, dirty = commit()
    found = [
        f"Python {platform.python_version()}",
        *(f"{package} {version(package)}" for package in packages or ("torch", "timm")),
    ]
    day = datetime.now(UTC).date().isoformat()
    return {"versions": ", ".join(found), "commit": revision[:10] + " changed" * dirty, "started": day}
