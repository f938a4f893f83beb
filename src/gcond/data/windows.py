"""HU windows: which Hounsfield range becomes [0, 1]. The paper names none; see docs/data.md."""

import math
from fractions import Fraction
from typing import Literal

import numpy as np

from gcond.data.store import HU_OFFSET

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
    if isinstance(window, str):
        if window not in PRESETS:
            raise ValueError(f"`window` must be one of {', '.join(PRESETS)} or [hu_min, hu_max], found {window!r}")
        return PRESETS[window]
    if len(window) != 2 or not HU_MIN <= window[0] < window[1] <= HU_MAX:
        raise ValueError(
            f"`window` must be [hu_min, hu_max] with {HU_MIN} <= hu_min < hu_max <= {HU_MAX}, found {list(window)}"
        )
    return float(window[0]), float(window[1])


def statistics(histogram: np.ndarray, hu_min: float, hu_max: float) -> tuple[float, float]:
    """Mean and (population) standard deviation of windowed pixels in [0, 1].

    `histogram` [4096] counts the stored values HU + 1024, so the result is exact for every window.
    """
    hu = np.arange(len(histogram), dtype=np.float64) - HU_OFFSET
    unit = np.clip((hu - hu_min) / (hu_max - hu_min), 0, 1)
    mean = float(np.average(unit, weights=histogram))
    return mean, float(np.sqrt(np.average((unit - mean) ** 2, weights=histogram)))


def sums(stored: np.ndarray) -> dict[str, tuple[int, int]]:
    """Per preset: the sum of max(hu_min, min(HU, hu_max)) - hu_min over the pixels, and the sum of its squares.

    Integers, so that sums over slices are exact whatever their order. `stored` holds HU + 1024.
    """
    found = {}
    for name, (hu_min, hu_max) in PRESETS.items():
        above = np.clip(stored.astype(np.int64) - HU_OFFSET, hu_min, hu_max) - hu_min
        found[name] = (int(above.sum()), int((above * above).sum()))
    return found


def statistics_of_sums(window: str, pixels: int, total: int, squares: int) -> tuple[float, float]:
    """Mean and (population) standard deviation in [0, 1] of `pixels` pixels from their `sums` in a preset."""
    hu_min, hu_max = PRESETS[window]
    width = hu_max - hu_min
    mean = Fraction(total, pixels * width)
    return float(mean), math.sqrt(Fraction(squares, pixels * width * width) - mean * mean)
