"""HU windows: which Hounsfield range becomes [0, 1]. The paper names none; see docs/data.md."""

import math
from fractions import Fraction
from typing import Literal

import numpy as np

HU_OFFSET = 1024  # CT is kept as HU + 1024
HU_MIN, HU_MAX = -1024, 3071
"""What the store can hold: everything outside was clipped when it was written."""

PRESETS: dict[str, tuple[int, int]] = {
    "c600w2800": (-800, 2000),  # centre 600, width 2800: the usual bone window
    "c700w3200": (-900, 2300),
    "c600w2400": (-600, 1800),
    "c500w2000": (-500, 1500),
    "m1000p2000": (-1000, 2000),  # minus 1000 to plus 2000
    "m1024p2048": (-1024, 2048),
    "12bit": (-1024, 3071),
}


Window = Literal[tuple(PRESETS)] | tuple[float, float]


def resolve(window: Window) -> tuple[float, float]:
    """A preset's name, or [hu_min, hu_max] -> (hu_min, hu_max) in HU. Raises ValueError for anything else."""
    limits = PRESETS.get(window) if isinstance(window, str) else window
    if limits is None or len(limits) != 2 or not HU_MIN <= limits[0] < limits[1] <= HU_MAX:
        raise ValueError(
            f"`window` must be one of {', '.join(PRESETS)}, or [hu_min, hu_max] with {HU_MIN} <= hu_min < hu_max <= "
            f"{HU_MAX}, found {window!r}"
        )
    return PRESETS[window] if isinstance(window, str) else (float(limits[0]), float(limits[1]))


def statistics(histogram: np.ndarray, hu_min: float, hu_max: float) -> tuple[float, float]:
    """Mean and (population) standard deviation in [0, 1] of windowed pixels; `histogram` [4096] counts HU + 1024."""
    return of_sums(int(histogram.sum()), *sums(histogram, hu_min, hu_max), hu_min, hu_max)


def sums(histogram: np.ndarray, hu_min: float, hu_max: float) -> tuple[float, float]:
    """The sum of max(hu_min, min(HU, hu_max)) - hu_min over the pixels, and the sum of its squares.

    Integers in a preset, so that sums over slices are exact whatever their order.
    """
    above = np.clip(np.arange(len(histogram)) - HU_OFFSET, hu_min, hu_max) - hu_min
    return (histogram @ above).item(), (histogram @ above**2).item()


def of_sums(pixels: int, total: float, squares: float, hu_min: float, hu_max: float) -> tuple[float, float]:
    """`statistics` of `pixels` pixels, from their `sums`."""
    width = Fraction(hu_max - hu_min)
    mean = Fraction(total) / (pixels * width)
    return float(mean), math.sqrt(Fraction(squares) / (pixels * width**2) - mean**2)
