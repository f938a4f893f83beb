"""Randomness has an owner: every component seeds its own generator from the run's seed and its name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def subseed(seed: int, *names: str | int) -> int:
    """A seed for the component `names`, the same on every machine and unrelated between components."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *names: str | int) -> torch.Generator:
    return torch.Generator().manual_seed(subseed(seed, *names))


@contextmanager
def seeded(seed: int, *names: str | int) -> Iterator[None]:
    """Seed PyTorch's global generator inside, for code that draws from it (weight initialisation); restore it after."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(subseed(seed, *names))
        yield
