"""Names and random numbers that depend on the seed and on what they are for, and on nothing else."""

import hashlib

import numpy as np


def hex_digits(digits: int, *parts) -> str:
    return _digest(*parts).hex()[:digits]


def uid(*parts) -> str:
    """A UID below The Cancer Imaging Archive's root."""
    return f"1.3.6.1.4.1.14519.5.2.1.{int.from_bytes(_digest(*parts)[:15], 'big')}"


def generator(*parts) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(_digest(*parts), "big"))


def _digest(*parts) -> bytes:
    return hashlib.sha256(":".join(map(str, parts)).encode()).digest()
