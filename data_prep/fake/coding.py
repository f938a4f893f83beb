"""How a scanner stores HU as integers: bits, sign, intercept, padding, and the faulty group of RSNA ICH."""

from functools import cache
from typing import NamedTuple

import numpy as np


class Coding(NamedTuple):
    """`padding`: stored value outside the circle of the scan. `wrapped`: HU modulo 4096, not less `intercept`."""

    bits: int
    signed: bool
    intercept: int
    padding: int | None = None
    wrapped: bool = False

    def stored(self, hu: np.ndarray) -> np.ndarray:
        """HU [R, C] int16 -> stored values, uint16 or int16; what `bits` cannot hold is clipped."""
        if self.wrapped:
            return (hu & 4095).astype(np.uint16)
        low, high = (-(1 << self.bits - 1), (1 << self.bits - 1) - 1) if self.signed else (0, (1 << self.bits) - 1)
        stored = np.clip(hu.astype(np.int32) - self.intercept, low, high)
        if self.padding is not None:
            stored[_outside(hu.shape)] = self.padding
        return stored.astype(np.int16 if self.signed else np.uint16)

    def tags(self) -> dict:
        return {"BitsStored": self.bits, "RescaleSlope": 1, "RescaleIntercept": self.intercept}


UNSIGNED_12 = Coding(12, False, -1024)
UNSIGNED_12_FROM_1000 = Coding(12, False, -1000)
SIGNED_12 = Coding(12, True, 0)
SIGNED_16 = Coding(16, True, -1024)
SIGNED_16_PADDED = Coding(16, True, -1024, padding=-2000)
WRAPPED_0 = Coding(12, False, 0, wrapped=True)
WRAPPED_1 = Coding(12, False, 1, wrapped=True)


@cache
def _outside(shape: tuple[int, int]) -> np.ndarray:
    rows, cols = shape
    y, x = np.ogrid[:rows, :cols]
    return (y - (rows - 1) / 2) ** 2 + (x - (cols - 1) / 2) ** 2 > (max(shape) / 2) ** 2
